"""Tokens as text: pieces that make up the whole again, though a token may be a part of a character."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that make no character yet
BEFORE = 16  # tokens of the prompt that are decoded along with what follows it


def split_text(prompt: Sequence[int], tokens: Sequence[int], decode: Decode) -> tuple[str, list[str]]:
    """The prompt's text and one piece for each of `tokens`: joined, the text that `decode` makes of all.

    A token that only begins a character has an empty piece; the one that completes it has the character.
    """
    context = list(prompt[-BEFORE:])
    whole = decode([*context, *tokens])
    known = decode(context) if context else ""
    at = _common(known, whole)
    text = decode(list(prompt)) if prompt else ""
    text = text[: len(text) - (len(known) - at)]
    pieces = []
    for count in range(1, len(tokens) + 1):
        end = max(at, _common(decode([*context, *tokens[:count]]), whole))
        pieces.append(whole[at:end])
        at = end
    return text, pieces


def texts_of(tokens: Iterable[int], decode: Decode, near: Sequence[int] = ()) -> dict[int, str]:
    """What each of `tokens` adds to a text; some decoders drop the space of one that stands alone.

    `near`: tokens of which one is put before them.
    """
    anchor = next((t for t in near if (text := decode([t])) and UNFINISHED not in text), None)
    if anchor is None:
        return {token: decode([token]) for token in set(tokens)}
    start, found = decode([anchor]), {}
    for token in set(tokens):
        both = decode([anchor, token])
        found[token] = both[len(start) :] if both.startswith(start) else decode([token])
    return found


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i in range(most) if one[i] != other[i])
