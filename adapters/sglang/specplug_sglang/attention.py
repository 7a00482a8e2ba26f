"""Attention of tree nodes and sparse drafts on a CPU: SGLang's torch_native backend, which honours no tree mask, and ours.

On a GPU nothing here is used: SGLang's Triton and FlashInfer backends take the mask, and the slots of a draft, as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import Tensor

from specplug_kernels import tree_attention
from specplug_sglang import ALGORITHM
from specplug_sglang.view import NodeView

BACKEND = "torch_native"


def register() -> None:
    """Have runners of a SPECPLUG server that ask for torch_native get ours; all others what they got before."""
    theirs = ATTENTION_BACKENDS[BACKEND]

    def create(runner: Any) -> Any:
        ours = getattr(runner.spec_algorithm, "name", None) == ALGORITHM
        return TreeAttentionBackend(runner) if ours else theirs(runner)

    register_attention_backend(BACKEND)(create)


class TreeAttentionBackend(TorchNativeAttnBackend):
    """torch_native, and forwards whose `spec_info` carries a `NodeView`: all rows in one call, gathered by slot."""

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self._view: NodeView | None = None
        self._biases: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._view = getattr(forward_batch.spec_info, "view", None)
        self._biases.clear()

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: ForwardBatch, save_kv_cache: bool = True
    ) -> Tensor:
        if self._view is None:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward_nodes(self._view, q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: ForwardBatch, save_kv_cache: bool = True
    ) -> Tensor:
        if self._view is None:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward_nodes(self._view, q, k, v, layer, forward_batch, save_kv_cache)

    def _forward_nodes(
        self, view: NodeView, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: ForwardBatch, save: bool
    ) -> Tensor:
        if save and k is not None and v is not None:
            where = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)
        rows, nodes, _ = view.visible.shape
        query = q.view(rows, nodes, layer.tp_q_head_num, layer.qk_head_dim).transpose(1, 2)
        out = tree_attention(
            query,
            self._gathered(self.token_to_kv_pool.get_key_buffer(layer.layer_id), view.slots, q.dtype),
            self._gathered(self.token_to_kv_pool.get_value_buffer(layer.layer_id), view.slots, q.dtype),
            prefix=0,
            bias=self._bias(view, layer, q.dtype),
            scale=layer.scaling,
        )
        return out.reshape(rows * nodes, layer.tp_q_head_num * layer.v_head_dim)

    def _gathered(self, buffer: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, Hkv, K, D] of a pool's [size, Hkv, D]. A gather is what paged memory costs without a paged kernel."""
        rows, columns = slots.shape
        found = buffer.index_select(0, slots.flatten()).view(rows, columns, *buffer.shape[1:])
        return found.transpose(1, 2).to(dtype)

    def _bias(self, view: NodeView, layer: Any, dtype: torch.dtype) -> Tensor:
        """[B, 1, q, K] additive, made once a forward for all layers of a kind."""
        window = layer.sliding_window_size if (layer.sliding_window_size or -1) > -1 else None
        key = (window, dtype)
        if key not in self._biases:
            visible = view.visible if window is None else view.within(window)
            blank = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._biases[key] = blank.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
        return self._biases[key]
