"""What was measured, in forms that print and that are written as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from specplug_hf.calibration.grid import Cell
from specplug_hf.commands.summary import Spread

TRANSFORMERS, NONE, STEP = "transformers, a step", "none, a round", "draft, a step"
GOAL_SHARE = 0.85  # of the theoretical speed-up
GOAL_STEP = 1.3  # times reading the weights once, a draft step


def verify_name(nodes: int) -> str:
    """The part's name."""
    return f"verify, {nodes} node{'s' * (nodes > 1)}"


@dataclass(frozen=True, slots=True)
class Part:
    """One measured time. Seconds; `limit`: by the device's figures, `at_copy`: with a measured copy's bandwidth in them."""

    name: str
    seconds: Spread
    limit: float
    at_copy: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        over = {"over_limit": self.seconds.median / self.limit, "over_copy": self.seconds.median / self.at_copy}
        return asdict(self) | over


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """At one acceptance: the best chain by figures (`theory`, `theory_gamma`) and by measured times.

    `seconds`: the measured parts of its round. `over_transformers`, `over_none`: against each way to decode plainly, where it
    was measured; `share`: the smaller of the two over `theory`.
    """

    acceptance: float
    theory_gamma: int
    theory: float
    gamma: int
    tokens: float
    seconds: float
    over_transformers: float | None
    over_none: float | None

    @property
    def share(self) -> float | None:
        known = [value for value in (self.over_transformers, self.over_none) if value is not None]
        return min(known) / self.theory if known else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"share": self.share}


@dataclass(frozen=True, slots=True)
class Whole:
    """Rounds of one chain that nothing waits in, beside the sum of the parts. Seconds."""

    gamma: int
    seconds: Spread
    parts: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(slots=True)
class CellResult:
    """One cell. `weights_seconds`: reading the weights once, by the device's figures; `left_out`: parts, and why."""

    cell: Cell
    weights_seconds: float
    parts: dict[str, Part] = field(default_factory=dict)
    speedups: list[SpeedUp] = field(default_factory=list)
    whole: Whole | None = None
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def step_over_weights(self) -> float | None:
        """A draft step over reading the weights once."""
        step = self.parts.get(STEP)
        return None if step is None else step.seconds.median / self.weights_seconds

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rows": self.cell.rows,
            "context": self.cell.context,
            "parts": [part.as_dict() for part in self.parts.values()],
            "draft_step_over_weights": self.step_over_weights,
            "speedups": [speedup.as_dict() for speedup in self.speedups],
            "whole": None if self.whole is None else self.whole.as_dict(),
            "left_out": self.left_out,
            "seconds": self.seconds,
        }
