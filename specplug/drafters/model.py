"""`model`: a smaller model drafts (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), with any KV policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from specplug.drafters.expand import check_stop
from specplug.drafters.running import RunningDraft
from specplug.errors import OptionError
from specplug.kv_policies import Full, KVPolicy, check_policy
from specplug.needs import Need


@dataclass
class ModelDraft(RunningDraft):
    """`model`: the draft, in whatever form the adapter takes (a loaded model, a path).

    `stop`: no further drafting below a token that the draft gave a lower probability; 0: never. See `expand`.
    """

    model: Any = None
    kv_policy: KVPolicy = Full()
    stop: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL_RUNNER})

    def __post_init__(self) -> None:
        check_policy("model", self.kv_policy)
        check_stop("model", self.stop)

    @property
    def key(self) -> str:
        model = getattr(getattr(self, "_runner", None), "identity", "")
        stop = f", stop {self.stop:g}" if self.stop else ""
        return f"{type(self).__name__}[{model + ', ' if model else ''}{self.kv_policy.key}{stop}]"

    def setup(self) -> None:
        if self.model is None:
            raise OptionError("drafter 'model' needs a draft: pass draft_model=... (a loaded model or a path).")
        self._runner = self.host.runner(self.model, self.kv_policy)
