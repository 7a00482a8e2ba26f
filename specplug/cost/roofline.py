"""The roofline: a forward takes as long as its slower half, memory or arithmetic, phase by phase.

Two phases, one after the other: the linear layers, which read the weights once for all tokens, and attention, which
reads every row's keys and values. The time of a phase is the larger of its bytes over the bandwidth and its operations
over the arithmetic; a forward is the sum of both, plus what layers cost on top. A verify of N nodes reads what a
decode step reads, so its nodes are free up to arithmetic / bandwidth (DESIGN.md section 5; MagicDec, arXiv
2408.11049, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specplug.cost.base import Load
from specplug.cost.device import Device
from specplug.cost.model_shape import ModelShape
from specplug.errors import OptionError, unknown_name

NO_MODEL = ("none", "prompt_lookup")  # drafters that run no forward


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that the roofline does not see. `layer`: a layer and forward. `token`: a layer and token of the batch."""

    layer: float = 0.0
    token: float = 0.0


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where a forward's time goes, in seconds."""

    linear: float
    attention: float
    exchange: float
    overhead: float

    @property
    def total(self) -> float:
        """All phases, one after the other."""
        return self.linear + self.attention + self.exchange + self.overhead


def forward(shape: ModelShape, device: Device, load: Load, overheads: Overheads | None = None) -> Seconds:
    """One forward of `shape` over `load` on `device`."""
    overheads = overheads or Overheads()
    # each device holds whole KV heads: with more devices than heads some hold the same
    split = min(device.count, shape.kv_heads)
    weights = shape.step_bytes + load.tokens * shape.row_bytes
    return Seconds(
        linear=max(weights / device.bandwidth, load.tokens * shape.linear_flops / device.flops) / device.count,
        attention=max(
            load.context * shape.kv_bytes_per_token / device.bandwidth / split,
            load.pairs * shape.attention_flops / device.flops / min(device.count, shape.heads),
        ),
        exchange=_exchange(shape, device, load.tokens),
        overhead=shape.layers * (device.launch + overheads.layer + overheads.token * load.tokens),
    )


def free_nodes(shape: ModelShape, device: Device) -> tuple[float, float]:
    """How much arithmetic hides behind memory: tokens of the whole batch in the linear layers, nodes a row in attention."""
    balance = device.flops / device.bandwidth  # operations for which a byte's time lasts
    split = min(device.count, shape.heads) / min(device.count, shape.kv_heads)
    linear = balance * shape.step_bytes / shape.linear_flops
    return linear, balance * split * shape.kv_bytes_per_token / shape.attention_flops


def _exchange(shape: ModelShape, device: Device, tokens: int) -> float:
    """Two all-reduces a layer, each moving 2 (n - 1) / n of the hidden vectors through every device's link."""
    if device.count == 1 or not device.interconnect:
        return 0.0
    moved = 2 * shape.layers * 2 * (device.count - 1) / device.count * tokens * shape.row_bytes
    return moved / device.interconnect


@dataclass(frozen=True, slots=True)
class Roofline:
    """A `CostModel` from figures alone. `drafts`: the shapes of drafters that run a model of their own, by name.

    The drafter `self` is the target over what its budget leaves of the cache. `round_overhead`: s a round.
    """

    target_shape: ModelShape
    device: Device
    drafts: Mapping[str, ModelShape] = field(default_factory=dict)
    overheads: Overheads = Overheads()
    round_overhead: float = 0.0

    def target(self, load: Load) -> float:
        """Seconds of one forward of the target."""
        return forward(self.target_shape, self.device, load, self.overheads).total

    def draft(self, drafter: str, load: Load) -> float:
        """Seconds of one forward of what `drafter` drafts with. Raises `OptionError` for a drafter without a shape."""
        shape = self.target_shape if drafter == "self" else self.drafts.get(drafter)
        if shape is not None:
            return forward(shape, self.device, load, self.overheads).total
        if drafter in NO_MODEL:
            return 0.0
        raise OptionError(str(unknown_name("drafter of this cost model", drafter, ["self", *NO_MODEL, *self.drafts])))

    def overhead(self, rows: int) -> float:
        """Seconds of a round besides forwards."""
        return self.round_overhead
