"""A cost model for hosts that nobody has measured: right in shape, wrong in scale, corrected by the first rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specplug.cost.base import Load

# Bytes that a device moves in the time of one operation on one weight byte: what a further token costs of a forward
# that is bound by memory. A GPU computes some 180 operations a byte in bf16, a CPU core some 5 in float32.
TOKEN_SHARE = {"cpu": 0.06, "cuda": 0.006}
WEIGHTS = 2e8  # bytes, where the host does not say


@dataclass(frozen=True, slots=True)
class Guess:
    """In units of bytes moved, not seconds. `drafts`: by drafter, its model's weights over the target's."""

    weight_bytes: float = WEIGHTS
    kv_bytes: float = 0.0
    token_share: float = TOKEN_SHARE["cpu"]
    drafts: Mapping[str, float] = field(default_factory=dict)

    def target(self, load: Load) -> float:
        return self.weight_bytes * (1 + self.token_share * load.tokens) + self.kv_bytes * load.context

    def draft(self, drafter: str, load: Load) -> float:
        return self.drafts.get(drafter, 0.0) * self.target(load)

    def overhead(self, rows: int) -> float:
        return 0.0
