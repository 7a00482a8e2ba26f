"""CUDA graphs: SGLang's verify forward for every width that a tree may have, and drafts that read a fixed part of the cache.

Importing it loads neither SGLang nor torch's CUDA. What captures is in `setup` and `recorder`, loaded where a server has
CUDA graphs; on a CPU and with --disable-cuda-graph a server keeps the empty `Graphs()`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from specplug_sglang.graphs.draft import DraftGraphs
from specplug_sglang.graphs.verify import VerifyGraphs
from specplug_sglang.view import NodeView

__all__ = ["Graphs"]


class Graphs:
    """What is captured for one server. Empty, it changes nothing: everything runs as SGLang would run it."""

    def __init__(self, verify: VerifyGraphs | None = None, drafts: dict[Any, DraftGraphs] | None = None) -> None:
        """`drafts`: by SGLang's model runner."""
        self.verify = verify
        self.drafts = drafts or {}

    def verifying(self, width: int) -> AbstractContextManager[None]:
        """Around a verify of `width` nodes a row: that width's graphs are in place, if it has any."""
        return nullcontext() if self.verify is None else self.verify.at(width)

    def draft(
        self,
        runner: Any,
        tokens: Tensor,
        view: NodeView,
        write: Tensor,
        positions: Tensor,
        rows: Tensor,
        lengths: Tensor,
    ) -> Tensor | None:
        """The logits of `DraftGraphs.forward`; None: to be run eagerly."""
        graphs = self.drafts.get(runner)
        return None if graphs is None else graphs.forward(tokens, view, write, positions, rows, lengths)
