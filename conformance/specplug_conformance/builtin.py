"""The built-in plugins' own cases, and the toy adapter."""

from __future__ import annotations

from typing import Any

from specplug.controllers import BatchTable, Fixed, Goodput, Slo
from specplug.drafters import ModelDraft, NoDraft, PromptLookup, SelfDraft
from specplug.kv_policies import Full, Streaming
from specplug.trees import Chain, Dynamic, KAry, Sequoia
from specplug_conformance.case import Case
from specplug_conformance.toy.subject import ToySubject


def _model(draft: Any) -> ModelDraft:
    return ModelDraft(draft)


def _model_with_window(draft: Any) -> ModelDraft:
    return ModelDraft(draft, Streaming(sink=1, window=3))


CASES = (
    Case("toy", "adapter", ToySubject),
    Case("none", "drafter", NoDraft),
    Case("self", "drafter", lambda: SelfDraft(Streaming(sink=1, window=4))),
    Case("model", "drafter", _model),
    Case("model+streaming", "drafter", _model_with_window),
    Case("prompt_lookup", "drafter", PromptLookup, tree="chain:length=5"),
    Case("full", "kv_policy", Full),
    Case("streaming", "kv_policy", lambda: Streaming(sink=2, window=5)),
    Case("chain", "tree", lambda: Chain(4)),
    Case("dynamic", "tree", lambda: Dynamic(8, 3)),
    Case("kary", "tree", lambda: KAry(2, 2)),
    Case("sequoia", "tree", lambda: Sequoia(9, 4)),
    Case("fixed", "controller", Fixed),
    Case("auto", "controller", Goodput),
    Case("goodput", "controller", Goodput),
    Case("batch_table", "controller", lambda: BatchTable("1-3/2-2/3-0")),
    Case("slo", "controller", lambda: Slo(ms=1.0)),
)
