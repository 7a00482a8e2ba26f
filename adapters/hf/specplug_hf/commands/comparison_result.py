"""What a comparison of drafters found: figures of every drafter on every kind of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specplug_hf.commands.comparison_drafters import Absent, Entry
from specplug_hf.commands.comparison_texts import Text
from specplug_hf.commands.measure import Sample
from specplug_hf.commands.summary import Spread, by_contender, paired

PLAIN = "plain"


@dataclass(slots=True)
class Kind:
    """One kind of text. Options are chosen on every other text, and everybody is measured on the rest."""

    name: str
    texts: list[Text]
    samples: list[Sample] = field(default_factory=list)
    choosing: list[Sample] = field(default_factory=list)

    @property
    def chosen_on(self) -> list[Text]:
        """The texts that options are chosen on."""
        return self.texts[1::2]

    @property
    def measured(self) -> list[Text]:
        """The texts that are measured on."""
        return self.texts[::2]

    @property
    def share(self) -> float:
        """Mean share of n-grams that stood before, of the texts that are measured on."""
        return sum(text.share for text in self.measured) / len(self.measured)

    @property
    def rate(self) -> Spread:
        """Tokens a second of plain `generate`."""
        return Spread.of(sample.rate for sample in by_contender(self.samples)[PLAIN])

    def figures(self, name: str) -> Figures:
        """Of the drafter `name`."""
        samples = by_contender(self.samples)[name]
        stats = [sample.stats for sample in samples if sample.stats is not None]
        proposed = sum(s.proposed for s in stats)
        speedup = paired(self.samples, name, PLAIN)
        assert speedup is not None  # plain was measured on the same prompts in the same turns
        return Figures(
            option=samples[0].option,
            speedup=speedup,
            rate=Spread.of(sample.rate for sample in samples),
            accepted_length=_length(samples),
            acceptance=sum(s.accepted for s in stats) / proposed if proposed else None,
        )

    def beside_parts(self, entry: Entry) -> dict[str, tuple[float, float]]:
        """By tree that `entry` and one of its parts were tried with: its accepted length, and the better part's, on the texts that
        options are chosen on."""
        tried: dict[str, dict[str, list[Sample]]] = {}
        for sample in self.choosing:
            tried.setdefault(sample.contender, {}).setdefault(sample.tree, []).append(sample)
        own, parts = tried.get(entry.name, {}), [tried.get(name, {}) for name in entry.parts]
        found = {}
        for tree, samples in own.items():
            lengths = [_length(part[tree]) for part in parts if tree in part]
            if lengths:
                found[tree] = _length(samples), max(lengths)
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the texts, and every call."""
        return {
            "kind": self.name,
            "share": self.share,
            "plain": self.rate.as_dict(),
            "measured_on": [{"name": text.name, "share": text.share} for text in self.measured],
            "chosen_on": [{"name": text.name, "share": text.share} for text in self.chosen_on],
            "samples": [sample.as_dict() for sample in self.samples],
            "choosing": [sample.as_dict() for sample in self.choosing],
        }


def _length(samples: Sequence[Sample]) -> float:
    """Accepted length over all rounds of `samples`; 1 without any."""
    stats = [sample.stats for sample in samples if sample.stats is not None]
    rounds = sum(s.row_rounds for s in stats)
    return sum(s.emitted for s in stats) / rounds if rounds else 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """A drafter on one kind of text. `speedup`: over plain `generate`, of pairs; `rate`: tokens a second."""

    option: str
    speedup: Spread
    rate: Spread
    accepted_length: float
    acceptance: float | None  # None: nothing was proposed

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "option": self.option,
            "speedup": self.speedup.as_dict(),
            "rate": self.rate.as_dict(),
            "accepted_length": self.accepted_length,
            "acceptance": self.acceptance,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """A drafter: its figures by kind of text, and the most bytes it held besides what plain decoding holds."""

    name: str
    memory_bytes: int
    figures: dict[str, Figures]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        kinds = {kind: figures.as_dict() for kind, figures in self.figures.items()}
        return {"drafter": self.name, "memory_bytes": self.memory_bytes, "kinds": kinds}


def lines(names: Sequence[str], kinds: Sequence[Kind], memory: dict[tuple[str, str], int]) -> list[Line]:
    """One line a drafter. `memory`: bytes by drafter and option; a line has the most of the options that were chosen."""
    found = []
    for name in names:
        figures = {kind.name: kind.figures(name) for kind in kinds}
        found.append(Line(name, max(memory[name, each.option] for each in figures.values()), figures))
    return found


def as_dict(found: Sequence[Line], absent: Sequence[Absent], kinds: Sequence[Kind]) -> dict[str, Any]:
    """JSON-ready: who took part, who could not and why, and everything that was measured."""
    return {
        "drafters": [line.as_dict() for line in found],
        "not_available": {one.name: one.why for one in absent},
        "kinds": [kind.as_dict() for kind in kinds],
    }
