"""specplug: speculative decoding as a plugin. `model.generate(..., assistant=specplug)`, and the same output faster."""

from __future__ import annotations

from specplug.adapters import Attachment, attach, install_own
from specplug.controllers import Arm, Controller, Plan
from specplug.default import default_speculator, last_stats
from specplug.drafters import Drafter, DraftRequest
from specplug.errors import (
    OptionError,
    PluginLoadError,
    ProposalError,
    SpecplugError,
    UnknownNameError,
    UnsupportedError,
)
from specplug.hindsight import Hindsight
from specplug.hookspecs import hookimpl
from specplug.host import Batch, Commit, Host
from specplug.kv_policies import KVPolicy, KVSelection
from specplug.needs import Need
from specplug.ragged import ragged_trees
from specplug.round import Round, run_round
from specplug.speculator import Speculator
from specplug.stats import SpecStats
from specplug.tree import TreeBatch, TreeShape, chain_trees, fill_shape, roots_only
from specplug.trees import TreeBuilder
from specplug.verify import Targets, Verdict

__version__ = "0.1.0"

__all__ = [
    "Arm",
    "Attachment",
    "Batch",
    "Commit",
    "Controller",
    "DraftRequest",
    "Drafter",
    "Hindsight",
    "Host",
    "KVPolicy",
    "KVSelection",
    "Need",
    "OptionError",
    "Plan",
    "PluginLoadError",
    "ProposalError",
    "Round",
    "SpecStats",
    "SpecplugError",
    "Speculator",
    "Targets",
    "TreeBatch",
    "TreeBuilder",
    "TreeShape",
    "UnknownNameError",
    "UnsupportedError",
    "Verdict",
    "attach",
    "chain_trees",
    "default_speculator",
    "fill_shape",
    "hookimpl",
    "last_stats",
    "ragged_trees",
    "roots_only",
    "run_round",
]

install_own()
