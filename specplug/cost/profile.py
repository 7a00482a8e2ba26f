"""A profile: what was measured of one model on one device, as a small JSON file. `specplug calibrate` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specplug.cost.base import Load
from specplug.cost.fitted import FittedCost, HeldOut, Sample
from specplug.errors import OptionError

FORMAT = 1
GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was accepted of one drafter's proposals under one law (Sequoia, arXiv 2402.12374, section 4).

    `ranks[k]`: P(the child of rank k is the accepted one), not rising; one entry for a drafter of chains. `depths[d]`:
    P(the first child is accepted | its parent, at depth d, was); empty: as at the root. `proposing`: share of the rows and
    rounds in which anything was proposed. `trials`: rows and rounds it was seen in.
    """

    ranks: Sequence[float]
    depths: Sequence[float] = ()
    proposing: float = 1.0
    trials: int = 0

    def __post_init__(self) -> None:
        rates = (*self.ranks, *self.depths, self.proposing)
        if not self.ranks or not all(0 <= rate <= 1 for rate in rates):
            raise OptionError(f"An acceptance is one or more numbers from 0 to 1, got {self}.")


@dataclass(frozen=True, slots=True)
class Profile:
    """Times, their fit, and acceptance by rank for each drafter.

    `model`, `device`, `dtype`, `kernel`: what it holds for, as the adapter calls them. `acceptance`: by drafter
    (`Drafter.key`, as the parts of `cost`) and law ("greedy", "sampled"). `versions`: of what was installed. `measured`:
    the date.
    """

    model: str
    device: str
    dtype: str
    kernel: str
    cost: FittedCost
    samples: Sequence[Sample] = ()
    errors: Mapping[str, HeldOut] = field(default_factory=dict)
    acceptance: Mapping[str, Mapping[str, Seen]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: str = ""

    def check(self, model: str, device: str, dtype: str) -> None:
        """Raise `OptionError` if it was measured with another model, device or dtype."""
        for what, mine, theirs in (
            ("model", self.model, model), ("device", self.device, device), ("dtype", self.dtype, dtype),
        ):  # fmt: skip
            if mine != theirs:
                raise OptionError(
                    f"The profile was measured with {what} {mine!r}, this is {theirs!r}; run `specplug calibrate` for it."
                )

    def as_json(self) -> str:
        """Everything, for `Profile.parse`."""
        grid = [{"part": s.part, **s.load._asdict(), "seconds": s.seconds} for s in self.samples]
        plain = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("model", "device", "dtype", "kernel", "measured")},
            "versions": dict(self.versions),
            "coefficients": {part: list(values) for part, values in self.cost.coefficients.items()},
            "held_out": {part: asdict(error) for part, error in self.errors.items()},
            "acceptance": {
                drafter: {law: asdict(seen) for law, seen in laws.items()} for drafter, laws in self.acceptance.items()
            },
            "grid": grid,
        }
        return json.dumps(plain, indent=1)

    @classmethod
    def parse(cls, text: str, source: str = "profile") -> Profile:
        """The profile in `text`. Raises `OptionError` that names `source` and what is wrong."""
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT:
                raise OptionError(f"{source}: format {plain['format']!r}; this specplug reads {FORMAT}.")
            return _profile(plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OptionError(f"{source} is not a profile that `specplug calibrate` wrote: {error!r}.") from error


def read_profile(path: str | Path) -> Profile:
    """The profile in a file. Raises `OptionError` if there is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise OptionError(f"profile: there is no file {str(path)!r}; `specplug calibrate` writes one.")
    return Profile.parse(path.read_text(encoding="utf-8"), str(path))


def _profile(plain: Mapping[str, Any]) -> Profile:
    coefficients = {part: tuple(map(float, values)) for part, values in plain["coefficients"].items()}
    return Profile(
        **{name: str(plain[name]) for name in ("model", "device", "dtype", "kernel", "measured")},
        cost=FittedCost(coefficients),
        samples=tuple(
            Sample(s["part"], Load(s["rows"], s["tokens"], s["context"]), float(s["seconds"])) for s in plain["grid"]
        ),
        errors={part: HeldOut(**error) for part, error in plain["held_out"].items()},
        acceptance={
            drafter: {law: _seen(seen) for law, seen in laws.items()} for drafter, laws in plain["acceptance"].items()
        },
        versions=dict(plain["versions"]),
    )


def _seen(plain: Mapping[str, Any]) -> Seen:
    ranks, depths = tuple(map(float, plain["ranks"])), tuple(map(float, plain["depths"]))
    return Seen(ranks, depths, float(plain["proposing"]), int(plain["trials"]))
