"""What fits: weights, caches, and what is set aside, against the devices' memory."""

from __future__ import annotations

from dataclasses import dataclass

from specplug.cost.device import Device
from specplug.cost.model_shape import ModelShape
from specplug.errors import OptionError

RESERVE = 2 * 2.0**30  # bytes a device for its runtime, activations and graphs: not modelled, set aside


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of `device` beside a target and, if there is one, a draft model. Bytes of one device.

    A draft model keeps its whole cache, whatever its policy reads of it; the target drafting for itself keeps none.
    """

    target: ModelShape
    device: Device
    draft: ModelShape | None = None
    reserve: float = RESERVE

    @property
    def weights(self) -> float:
        """Bytes of weights on each device."""
        return sum(shape.stored_bytes for shape in self._shapes) / self.device.count

    @property
    def kv_per_token(self) -> float:
        """Bytes on each device of one token of one row, in every cache; KV heads are not split."""
        return sum(s.kv_bytes_per_token / min(self.device.count, s.kv_heads) for s in self._shapes)

    @property
    def _shapes(self) -> tuple[ModelShape, ...]:
        return (self.target,) if self.draft is None else (self.target, self.draft)

    @property
    def room(self) -> float:
        """Bytes left for caches on each device; negative if the weights alone do not fit."""
        return self.device.memory - self.reserve - self.weights

    def needed(self, rows: int, context: int) -> float:
        """Bytes on each device for `rows` rows of `context` tokens, the reserve included."""
        return self.reserve + self.weights + rows * context * self.kv_per_token

    def fits(self, rows: int, context: int) -> bool:
        """Whether `rows` rows of `context` tokens fit."""
        return self.needed(rows, context) <= self.device.memory

    def most_rows(self, context: int) -> int:
        """The largest batch at a context; 0 if not even one row fits."""
        return self._most(context, "context")

    def most_context(self, rows: int) -> int:
        """The longest context, in tokens, of a batch of `rows`; 0 if the weights leave no room."""
        return self._most(rows, "rows")

    def _most(self, other: int, what: str) -> int:
        if other < 1:
            raise OptionError(f"{what} is {other}; it must be at least 1.")
        return max(0, int(self.room // (other * self.kv_per_token)))
