"""A recording with its texts as JSON-ready values: what the page shows, and what `specplug trace --json` writes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from specplug.trace.records import Generation, Origin, Recording, RoundRecord, RowRound
from specplug.trace.text import Decode, split_text, texts_of

NEAR = 32  # tokens of a row among which a whole one is looked for


def describe(recording: Recording, decode: Decode, about: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything that was recorded. `decode` makes text of token ids; `about`: what else is to be known, label and value."""
    return {
        "about": dict(about or {}),
        "texts": _texts(recording, decode),
        "totals": _totals(recording),
        "generations": [_generation(generation, decode) for generation in recording.generations],
    }


def _generation(generation: Generation, decode: Decode) -> dict[str, Any]:
    places = {identity: place for place, identity in enumerate(generation.rows)}
    model, device, dtype = generation.identity
    return {
        "controller": generation.controller,
        "arms": list(generation.arms),
        "model": model,
        "device": device,
        "dtype": dtype,
        "rows": [_row(generation, identity, decode) for identity in generation.rows],
        "rounds": [_round(finished, places) for finished in generation.rounds],
    }


def _row(generation: Generation, identity: Hashable, decode: Decode) -> dict[str, Any]:
    row, tokens = generation.rows[identity], list(generation.tokens(identity))
    prompt, pieces = split_text(row.prompt, [token.token for token in tokens], decode)
    return {
        "name": str(identity),
        "prompt": prompt,
        "prompt_tokens": len(row.prompt),
        "tokens": [
            {"token": token.token, "text": piece, "origin": token.origin.value, "round": token.round}
            for token, piece in zip(tokens, pieces, strict=True)
        ],
    }


def _round(finished: RoundRecord, places: Mapping[Hashable, int]) -> dict[str, Any]:
    return {
        "arm": finished.arm,
        "has_draft": finished.has_draft,
        "size": finished.size,
        "depth": finished.depth,
        "context": finished.context,
        "sampled": finished.sampled,
        "reason": finished.reason,
        "predicted_tokens": finished.predicted_tokens,
        "predicted_seconds": finished.predicted_seconds,
        "seconds": dict(finished.seconds),
        "rows": {str(places[identity]): _row_round(row) for identity, row in finished.rows.items()},
    }


def _row_round(row: RowRound) -> dict[str, Any]:
    return {
        "nodes": [
            {"token": n.token, "parent": n.parent, "accepted": n.accepted, "draft": n.draft, "target": n.target}
            for n in row.nodes
        ],
        "tokens": list(row.tokens),
        "accepted": row.accepted,
        "path": list(row.path),
        "alternatives": [[list(pair) for pair in found] for found in row.alternatives],
        "bonus": row.bonus,
        "cut": row.cut,
    }


def _totals(recording: Recording) -> dict[str, Any]:
    """Over all rows. `tokens` and the counts by origin hold each row's root too; `seconds` and what is made of them do not."""
    origins = dict.fromkeys((origin.value for origin in Origin), 0)
    for generation in recording.generations:
        for row in generation.rows:
            for token in generation.tokens(row):
                origins[token.origin.value] += 1
    rounds = [finished for generation in recording.generations for finished in generation.rounds]
    emitted = sum(len(row.tokens) for finished in rounds for row in finished.rows.values())
    row_rounds = sum(len(finished.rows) for finished in rounds)
    seconds = sum(sum(finished.seconds.values()) for finished in rounds)
    return {
        "tokens": sum(origins.values()),
        **origins,
        "rounds": len(rounds),
        "proposed": sum(row.proposed for finished in rounds for row in finished.rows.values()),
        "accepted_length": emitted / row_rounds if row_rounds else 0.0,
        "seconds": seconds,
        "tokens_per_second": emitted / seconds if seconds else 0.0,
    }


def _texts(recording: Recording, decode: Decode) -> dict[str, str]:
    """Of every token that is shown by itself, by its number."""
    found: dict[int, str] = {}
    for generation in recording.generations:
        near = [
            token.token
            for row in generation.rows
            for token, _ in zip(generation.tokens(row), range(NEAR), strict=False)
        ]
        found |= texts_of(set(_shown(generation)) - found.keys(), decode, near)
    return {str(token): text for token, text in sorted(found.items())}


def _shown(generation: Generation) -> Iterator[int]:
    for finished in generation.rounds:
        for row in finished.rows.values():
            yield from (node.token for node in row.nodes)
            yield from row.tokens
            yield from (token for found in row.alternatives for token, _ in found)
