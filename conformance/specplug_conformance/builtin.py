"""The built-in plugins' own cases, and the toy adapter."""

from __future__ import annotations

from typing import Any

from specplug.controllers import BatchTable, Fixed, Goodput, Slo
from specplug.drafters import LayerSkip, Lookahead, Merged, ModelDraft, NoDraft, PromptLookup, SelfDraft, Suffix
from specplug.host import SkippedLayers
from specplug.kv_policies import Full, Lambda, Retrieval, SnapKV, Squeezed, Streaming
from specplug.trees import Chain, Dynamic, KAry, Sequoia
from specplug_conformance.case import Case
from specplug_conformance.makers import corpus, heads, kvpress
from specplug_conformance.toy.subject import ToySubject


def _model(draft: Any) -> ModelDraft:
    return ModelDraft(draft)


def _model_with_window(draft: Any) -> ModelDraft:
    return ModelDraft(draft, Streaming(sink=1, window=3))


def _merged(draft: Any) -> Merged:
    return Merged([ModelDraft(draft), PromptLookup()])


CASES = (
    Case("toy", "adapter", ToySubject),
    Case("none", "drafter", NoDraft),
    Case("self", "drafter", lambda: SelfDraft(Streaming(sink=1, window=4))),
    Case("model", "drafter", _model),
    Case("model+streaming", "drafter", _model_with_window),
    Case("prompt_lookup", "drafter", PromptLookup, tree="chain:length=5"),
    Case("suffix", "drafter", Suffix),
    Case("retrieval_corpus", "drafter", corpus),
    Case("lookahead", "drafter", lambda: Lookahead(window=3, ngram=3, guesses=2), tree="kary:branch=2,depth=3"),
    Case("layer_skip", "drafter", lambda: LayerSkip(layers=SkippedLayers(frozenset({0}), frozenset({1})), stop=0.3)),
    Case("mlp_speculator", "drafter", heads),
    Case("merged", "drafter", _merged),
    Case("full", "kv_policy", Full),
    Case("streaming", "kv_policy", lambda: Streaming(sink=2, window=5)),
    Case("lambda", "kv_policy", lambda: Lambda(sink=2, window=5)),
    Case("snapkv", "kv_policy", lambda: SnapKV(budget=7, window=4, pool=3, refresh=2)),
    Case("retrieval", "kv_policy", lambda: Retrieval(budget=8, window=4, chunk=2, refresh=2)),
    Case("squeezed", "kv_policy", lambda: Squeezed(budget=8, window=4, cluster=2, refresh=2)),
    Case("kvpress", "kv_policy", kvpress),
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
