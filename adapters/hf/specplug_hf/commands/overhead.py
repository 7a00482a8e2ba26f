"""A round's own cost: all of its time that no model forward takes, beside one forward of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.measure import call, decoding_start, watched
from specplug_hf.commands.models import Models, synchronize
from specplug_hf.commands.setups import Contender
from specplug_hf.commands.summary import Spread


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds. `round_ms`: everything but model forwards, a round; `target_ms`: the target over one token a row."""

    contender: str
    option: str
    round_ms: Spread
    target_ms: Spread
    verify_ms: Spread  # the target over a tree
    share: Spread  # round_ms / target_ms
    parts_ms: dict[str, float]  # by the statistics' own clocks, a round, forwards included

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Run:
    overhead: float  # seconds a round
    verify: float  # seconds, mean of the target's forwards
    rounds: int
    parts: dict[str, float]


def overhead(
    models: Models, contender: Contender, baseline: Contender, batches: Sequence[PromptBatch], new_tokens: int
) -> Overhead:
    """Measure `contender` with every forward watched; `baseline` (`none`) gives the target's plain forward."""
    pairs = [
        (_watch(models, contender, batch, new_tokens), _watch(models, baseline, batch, new_tokens)) for batch in batches
    ]
    runs = [run for run, _ in pairs]
    rounds = sum(run.rounds for run in runs)
    return Overhead(
        contender=contender.name,
        option=contender.option.label,
        round_ms=Spread.of(1e3 * run.overhead for run in runs),
        target_ms=Spread.of(1e3 * plain.verify for _, plain in pairs),
        verify_ms=Spread.of(1e3 * run.verify for run in runs),
        share=Spread.of(run.overhead / plain.verify for run, plain in pairs),
        parts_ms={name: 1e3 * sum(run.parts[name] for run in runs) / rounds for name in runs[0].parts},
    )


def _watch(models: Models, contender: Contender, batch: PromptBatch, new_tokens: int) -> _Run:
    """One call. The draft's forwards are watched too; a target that drafts for itself counts as forwards as well."""
    option = contender.option
    speculator = option.speculator
    assert speculator is not None
    draft = speculator.draft_model
    with watched(models.target) as target, watched(draft if draft is not None else models.target) as drafting:
        call(models, option, batch, new_tokens)
        synchronize(models.target)
        end = perf_counter()
    stats = speculator.stats
    forwards = target.spans[1:] + (drafting.spans if draft is not None else [])
    decoding = end - decoding_start(target, stats)
    spent = sum(stop - start for start, stop in forwards)
    parts = {name: getattr(stats, f"seconds_{name}") for name in ("draft", "verify", "commit", "other")}
    seconds = target.seconds[1:]
    return _Run((decoding - spent) / max(1, stats.rounds), sum(seconds) / max(1, len(seconds)), stats.rounds, parts)
