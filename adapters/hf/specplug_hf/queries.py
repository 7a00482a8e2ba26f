"""The last committed queries of every layer, for KV policies that choose by them.

Fused kernels return no attention weights, so what a query attends to is computed again from queries and keys; the queries
pass through our attention function, prompts included, and the last few are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specplug_hf.attention import AttentionSwap, watch_queries


class QueryLog:
    """Of every layer the last `size` committed queries, rotated as attended. B rows, in the order of the batch."""

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        self.size = size
        self._swap = AttentionSwap(model, own=True)
        self._config = model.config.get_text_config(decoder=True)
        self._rings: dict[int, Tensor] = {}  # by layer: [B, Hq, size, D], the newest last
        self._scales: dict[int, float] = {}
        self._seen: dict[int, Tensor] = {}
        self._counts: Tensor  # [B] int64, of the real ones

    @contextmanager
    def reading_prompt(self) -> Iterator[None]:
        """Keep the queries of the forwards within, run as the model runs them."""
        self._seen = {}
        with self._swap.held(), watch_queries(self._keep_last):
            yield

    def settle_prompt(self, counts: Sequence[int], device: torch.device) -> None:
        """What was seen belongs to a prompt whose last `counts[b]` columns are real in row b, without a hole among them."""
        self._rings, self._seen = self._seen, {}
        width = max((ring.shape[2] for ring in self._rings.values()), default=0)
        self._counts = torch.tensor(counts, device=device).clamp(max=width)

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Keep the queries of the one forward within."""
        self._seen = {}
        with watch_queries(self._keep_all):
            yield

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        """Of the nodes just seen, `path` [B, m] are committed: the first `counts[b]` of row b."""
        fresh = torch.tensor(counts, device=path.device)
        total = (self._counts + fresh).clamp(max=self.size)
        for layer, seen in self._seen.items():
            self._rings[layer] = self._advanced(self._rings[layer], seen, path[:, : max(counts)], fresh)
        self._counts, self._seen = total, {}

    def _advanced(self, ring: Tensor, seen: Tensor, path: Tensor, fresh: Tensor) -> Tensor:
        """`ring` [B, Hq, q, D] with `fresh[b]` of `seen` behind it, at most `size`."""
        held = ring.shape[2]
        source = torch.cat([ring, seen], dim=2)
        width = min(self.size, held + path.shape[1])
        # place j of the new ring, counted from its end: a fresh one as long as there are, then the old ones
        column = torch.arange(width, device=path.device) - width + fresh[:, None] + held  # in [ring | fresh]
        node = (column - held).clamp(min=0)
        node = path.gather(1, node.clamp(max=path.shape[1] - 1))
        index = torch.where(column < held, column.clamp(min=0), held + node).to(source.device)
        return source.gather(2, index[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3]))

    def layer(self, layer: int) -> tuple[Tensor, Tensor, float]:
        """Queries [B, Hq, q, D], how many of each row's are real [B], and the scale of their dot products."""
        ring = self._rings[layer]
        return ring, self._counts.to(ring.device), self._scales[layer]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only the batch rows `rows` stay."""
        index = torch.tensor(rows, device=self._counts.device)
        self._counts = self._counts[index]
        self._rings = {layer: ring[index.to(ring.device)] for layer, ring in self._rings.items()}

    def _keep_last(self, module: nn.Module, query: Tensor, scaling: float | None) -> None:
        layer = self._layer_of(module)
        if layer is not None:
            before = self._seen.get(layer)
            query = query[:, :, -self.size :]
            self._seen[layer] = (query if before is None else torch.cat([before, query], 2))[:, :, -self.size :].clone()
            self._scales[layer] = query.shape[-1] ** -0.5 if scaling is None else scaling

    def _keep_all(self, module: nn.Module, query: Tensor, scaling: float | None) -> None:
        layer = self._layer_of(module)
        if layer is not None:
            self._seen[layer] = query

    def _layer_of(self, module: nn.Module) -> int | None:
        """Its layer's number; None for attention that is not the text's (an image's)."""
        return getattr(module, "layer_idx", None) if getattr(module, "config", None) is self._config else None
