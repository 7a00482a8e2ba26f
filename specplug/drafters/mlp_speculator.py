"""`mlp_speculator`: small heads on the target's last hidden state and the token just chosen (Wertheimer et al., arXiv 2404.19124).

No second model and no cache: a head is one product with the vocabulary, so a level costs next to nothing. `specplug train
mlp-speculator` makes heads for a target; IBM's published ones load as they are.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.expand import check_stop, expand
from specplug.errors import OptionError
from specplug.host import DraftRunner
from specplug.mlp import CPUHeads, Heads, HeadsConfig, HeadsRunner, placed, read_config, read_heads
from specplug.needs import Need
from specplug.subtree import beginning
from specplug.tree import TreeBatch, TreeShape
from specplug.trees import DEFAULT_ACCEPTANCE, Chain, non_rising
from specplug.trees.sequoia import grow


@dataclass
class MLPSpeculator(Drafter):
    """`path`: a folder with `config.json` and safetensors in the published format. `heads`: in its place, heads in memory, which
    must not change any more. `stop`: see `expand`.

    Trees are cut to the number of heads. The weights are read once for each device and dtype, and shared by all generations.
    """

    path: str = ""
    heads: Heads | None = None
    stop: float = 0.0
    config: HeadsConfig = field(init=False)
    _loaded: dict[tuple[int, torch.device, torch.dtype], Heads | CPUHeads] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HIDDEN_STATES})
    checked: ClassVar[bool] = False
    drafts_with_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.path = os.fspath(self.path)
        check_stop("mlp_speculator", self.stop)
        if self.heads is not None and not isinstance(self.heads, Heads):
            raise OptionError(
                f"mlp_speculator: heads={self.heads!r} must be Heads; a checkpoint is named by path=FOLDER."
            )
        if bool(self.path) == (self.heads is not None):
            raise OptionError("mlp_speculator needs a checkpoint, mlp_speculator:path=FOLDER, or heads in memory.")
        self.config = read_config(self._folder) if self.heads is None else self.heads.config

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def key(self) -> str:
        name = f"{self._folder.resolve().name} " if self.path else ""
        stop = f", stop {self.stop:g}" if self.stop else ""
        return f"{type(self).__name__}[{name}{self.config.n_predict}x{self.config.width}{stop}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        """The checkpoint's own tree, its best nodes alone where a verify's cost grows with its nodes, and chains."""
        heads = self.config.n_predict
        own = candidate_tree(self.config)
        small = (beginning(own, size) for size in (2 * heads, heads + 1, heads) if size < own.size)
        chains = (Chain(length).build() for length in (heads, max(1, heads // 2)))
        return tuple(dict.fromkeys([own, *small, *chains]))

    def fitted(self, shape: TreeShape) -> TreeShape:
        return shape.cut(self.config.n_predict)

    def setup(self) -> None:
        self._runner: DraftRunner = HeadsRunner(self._heads_here())

    def draft(self, request: DraftRequest) -> TreeBatch:
        return expand(self.host, self._runner, request, self.stop)

    def _heads_here(self) -> Heads | CPUHeads:
        """The heads on the host's device, in the target's dtype."""
        host, dtype = self.host, getattr(torch, self.host.identity[2])
        key = (host.vocab_size, host.device, dtype)
        with self._lock:
            if key not in self._loaded:
                heads = (
                    read_heads(self._folder, self.config, host.vocab_size, host.device, dtype)
                    if self.heads is None
                    else placed(self.heads, host.vocab_size, host.device, dtype)
                )
                self._loaded[key] = CPUHeads(heads) if host.device.type == "cpu" else heads
            return self._loaded[key]


def candidate_tree(config: HeadsConfig) -> TreeShape:
    """The tree that a checkpoint asks for: `n_candidates` paths' worth of nodes, the most probable ones, with no more children
    at a level than `top_k_tokens_per_head` allows. The authors keep the best paths of every round's full tree instead."""
    ranks = non_rising(DEFAULT_ACCEPTANCE)
    levels = [ranks[:count] for count in config.widths]
    nodes = grow(levels, config.n_candidates * config.n_predict, config.n_predict)
    return TreeShape.from_parents([-1, *(parent for parent, _ in nodes)])
