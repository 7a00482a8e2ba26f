"""The built-in plugins, registered as any other plugin is."""

from __future__ import annotations

from specplug.controllers import BatchTable, Fixed, Goodput, Slo
from specplug.drafters import (
    LayerSkip,
    Lookahead,
    Merged,
    MLPSpeculator,
    ModelDraft,
    NoDraft,
    PromptLookup,
    RetrievalCorpus,
    SelfDraft,
    Suffix,
)
from specplug.hookspecs import Register, hookimpl
from specplug.kv_policies import Full, KVPress, Lambda, Retrieval, SnapKV, Squeezed, Streaming
from specplug.trees import Chain, Dynamic, KAry, Sequoia


@hookimpl
def specplug_register_drafters(register: Register) -> None:
    register("none", NoDraft)
    register("self", SelfDraft)
    register("model", ModelDraft)
    register("prompt_lookup", PromptLookup)
    register("suffix", Suffix)
    register("retrieval_corpus", RetrievalCorpus)
    register("lookahead", Lookahead)
    register("layer_skip", LayerSkip)
    register("mlp_speculator", MLPSpeculator)
    register("merged", Merged)


@hookimpl
def specplug_register_kv_policies(register: Register) -> None:
    register("full", Full)
    register("streaming", Streaming)
    register("lambda", Lambda)
    register("snapkv", SnapKV)
    register("retrieval", Retrieval)
    register("squeezed", Squeezed)
    register("kvpress", KVPress)


@hookimpl
def specplug_register_trees(register: Register) -> None:
    register("chain", Chain)
    register("dynamic", Dynamic)
    register("sequoia", Sequoia)
    register("kary", KAry)


@hookimpl
def specplug_register_controllers(register: Register) -> None:
    register("fixed", Fixed)
    register("auto", Goodput)  # over every drafter there is, unless one is named
    register("batch_table", BatchTable)
    register("goodput", Goodput)
    register("slo", Slo)


@hookimpl
def specplug_register_commands(register: Register) -> None:
    from specplug.commands import plan as plan_command  # noqa: PLC0415
    from specplug.commands import plugins as plugins_command  # noqa: PLC0415
    from specplug.commands import simulate as simulate_command  # noqa: PLC0415

    register("plan", plan_command.add_parser)
    register("plugins", plugins_command.add_parser)
    register("simulate", simulate_command.add_parser)
