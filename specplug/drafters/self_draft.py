"""`self`: the target drafts for itself over a sparse view of its own KV cache (MagicDec, arXiv 2408.11049).

No second model, no prefill, no second cache: with a long context and a big batch a decode step is bound by reading the
KV cache, so a forward that reads 512 positions instead of 32 k is cheap although all weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from specplug.drafters.running import RunningDraft
from specplug.kv_policies import KVPolicy, Streaming, check_policy
from specplug.needs import Need
from specplug.tree import TreeShape
from specplug.trees import Chain


@dataclass
class SelfDraft(RunningDraft):
    """The target over `kv_policy`'s view of its own cache."""

    kv_policy: KVPolicy = Streaming()
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TARGET_RUNNER})

    def __post_init__(self) -> None:
        check_policy("self", self.kv_policy)

    @property
    def min_context(self) -> int:
        """The cache must be well over what the draft reads of it (MagicDec, section 3)."""
        return 4 * (self.budget or 0)

    def shapes(self) -> tuple[TreeShape, ...]:
        return Chain(3).build(), Chain(2).build(), Chain(5).build()

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.kv_policy.key}]"

    def setup(self) -> None:
        self._runner = self.host.runner(None, self.kv_policy)
