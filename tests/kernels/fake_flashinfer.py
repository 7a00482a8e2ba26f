"""A stand-in for the flashinfer package, for tests on a CPU: NOT FlashInfer, and none of its code.

What the project uses of it, in plain torch, by the semantics of the wrappers of 0.6.13 and FA2 kernels, the inconvenient ones included:

- a masked score becomes -50000 before it is scaled, so a query that sees nothing has a log-sum-exp of about -50000 (0.7: -inf);
- weights are rounded to the dtype of the query, and a masked value is multiplied by zero: NaN stays NaN;
- the log-sum-exp is to the base of 2;
- `packed_custom_mask` sets row pointers that count bits where the kernel counts bytes; `custom_mask` wants them on the device;
- a causal kernel of one's own runs its mask hook only on tiles of keys that reach a tile's first diagonal;
- partial results of rows that are split among processors need room in the workspace.

`test_flashinfer_package.py` compares its signatures with the real ones where the package is installed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__version__ = "0.6.13+fake"

MASKED = -5e4  # 0.6.13; from 0.7 on it is -inf
PROCESSORS = 132
KEY_TILE = 16  # the smallest a kernel may choose, where a forgotten look at the mask shows most


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None,
        mask_indptr_buf: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
    ) -> None:
        assert kv_layout == "NHD" and backend == "fa2", "the stand-in is for FA2 and NHD only"
        self.workspace = float_workspace_buffer.numel() * float_workspace_buffer.element_size()
        self.jit = None if jit_args is None else _Variant(jit_args)
        self.graph = use_cuda_graph
        buffers = (qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf)
        if use_cuda_graph and not all(torch.is_tensor(buffer) for buffer in buffers):
            raise ValueError("buffers should be torch.Tensors in CUDA graph mode")
        self._buffers = buffers
        self._custom_mask_buf, self._mask_indptr_buf = custom_mask_buf, mask_indptr_buf
        self._most_rows: int | None = None
        self.plans = 0

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        custom_mask: Tensor | None = None,
        packed_custom_mask: Tensor | None = None,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: str | torch.dtype = "float16",
        kv_data_type: str | torch.dtype | None = None,
    ) -> None:
        given = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        if any(tensor.dtype != torch.int32 for tensor in given):
            raise TypeError("the kernels read int32")
        rows = len(qo_indptr) - 1
        if len(paged_kv_indptr) != rows + 1 or len(paged_kv_last_page_len) != rows:
            raise ValueError("The length of qo_indptr and paged_kv_indptr should be the same.")
        if len(paged_kv_indices) < int(paged_kv_indptr[-1]):
            raise ValueError("fewer page indices than the pointers say")
        if num_qo_heads % num_kv_heads:
            raise RuntimeError("num_qo_heads should be divisible by num_kv_heads")
        if custom_mask is not None:
            raise RuntimeError("input_indptr must be a CUDA tensor")  # segment_packbits, of pointers on the host
        listed = paged_kv_indptr.diff()
        lengths = (listed - 1).clamp(min=0) * page_size + paged_kv_last_page_len
        pointers = torch.zeros_like(qo_indptr)
        pointers[1:] = (qo_indptr.diff() * ((listed - 1) * page_size + paged_kv_last_page_len)).cumsum(0)
        self._keep(given, packed_custom_mask, pointers)
        self.group, self.page_size, self.causal = num_qo_heads // num_kv_heads, page_size, causal
        self.scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self.window, self.cap = window_left, logits_soft_cap or 0.0
        self.dtypes = (q_data_type, q_data_type if kv_data_type is None else kv_data_type)
        self._split(qo_indptr.diff().tolist(), listed.tolist(), num_kv_heads, head_dim_qk)
        self.lengths = lengths.tolist()
        self.plans += 1

    def _keep(self, given: tuple[Tensor, ...], bits: Tensor | None, pointers: Tensor) -> None:
        if not self.graph:
            self._buffers = tuple(tensor.clone() for tensor in given)
            self._custom_mask_buf = None if bits is None else bits.clone()
            self._mask_indptr_buf = None if bits is None else pointers
            return
        total = int(given[0][-1])
        self._most_rows = self._most_rows or total
        if total > self._most_rows or len(given[0]) != len(self._buffers[0]):
            raise ValueError("The batch size should be fixed during the lifecycle of the wrapper in cuda graph mode")
        if len(given[2]) > len(self._buffers[2]):
            raise ValueError("The length of paged_kv_indices exceeds the allocated buffer size.")
        for buffer, tensor in zip(self._buffers, given, strict=True):
            buffer[: len(tensor)].copy_(tensor)
        if bits is not None:
            if self._custom_mask_buf is None or self._mask_indptr_buf is None:
                raise ValueError("custom_mask_buf must be initialized with a torch.Tensor in cuda graph mode")
            self._custom_mask_buf[: len(bits)].copy_(bits)
            self._mask_indptr_buf.copy_(pointers)

    def _split(self, queries: list[int], listed: list[int], kv_heads: int, head_dim: int) -> None:
        """How PrefillPlan cuts rows up, and the room that takes."""
        packed = [count * self.group for count in queries]
        average = (sum(queries) - len(queries) + 1) * self.group if self.graph else sum(packed) // max(1, len(packed))
        self.tile = 128 if average > 64 and head_dim < 256 else 64 if average > 16 else 16
        most = 2 * PROCESSORS // kv_heads
        low, high = max(128 // self.page_size, 1), max(1, *listed)
        while low < high:
            middle = (low + high) // 2
            parts = sum(-(-p // self.tile) * -(-max(n, 1) // middle) for p, n in zip(packed, listed, strict=True))
            low, high = (middle + 1, high) if parts > most else (low, middle)
        if not self.graph and low >= max(1, *listed):
            return
        parts = sum(-(-p // self.tile) * -(-max(n, 1) // low) for p, n in zip(packed, listed, strict=True))
        if self.graph:
            parts = max(most, -(-sum(packed) // self.tile) + len(packed) - 1)
        if kv_heads * self.group * parts * self.tile * (head_dim + 1) * 4 > self.workspace:
            raise RuntimeError("Failed to allocate memory for batch_prefill_tmp_v")

    def run(
        self,
        q: Tensor,
        paged_kv_cache: tuple[Tensor, Tensor],
        *args: Any,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        keys, values = paged_kv_cache
        self._check(q, keys, values)
        out = torch.zeros(q.shape, dtype=q.dtype) if out is None else out
        lse = torch.empty(q.shape[:2]) if lse is None else lse
        if out.shape != q.shape or out.dtype != q.dtype or not out.is_contiguous():
            raise ValueError("Invalid shape of out")
        if lse.shape != q.shape[:2] or lse.dtype != torch.float32 or not lse.is_contiguous():
            raise ValueError("Invalid shape of lse")
        starts, pages, indices, last = self._buffers
        for row in range(len(last)):
            first, stop = int(pages[row]), int(pages[row + 1])
            length = (stop - first - 1) * self.page_size + int(last[row]) if stop > first else 0
            entry = torch.arange(length)
            page = indices[first + entry // self.page_size].long()
            asking = slice(int(starts[row]), int(starts[row + 1]))
            seen = self._seen(row, asking.stop - asking.start, length, args)
            slot = entry % self.page_size
            out[asking], lse[asking] = self._attend(q[asking], keys[page, slot], values[page, slot], seen)
        return (out, lse) if return_lse else out

    def _check(self, q: Tensor, keys: Tensor, values: Tensor) -> None:
        if (q.dtype, keys.dtype) != self.dtypes:
            raise ValueError("The dtype of q does not match the q_data_type specified in plan function.")
        if q.shape[0] != int(self._buffers[0][-1]):
            raise ValueError("q.shape[0] does not match qo_indptr[-1]")
        if keys.stride() != values.stride():
            raise RuntimeError("k/v strides differs")
        if keys.shape[1] != self.page_size or q.shape[1] != keys.shape[2] * self.group:
            raise RuntimeError("the kernel would read other slots than were planned")
        for tensor in (q, keys, values):
            steps = [
                s * tensor.element_size() for s, n in zip(tensor.stride()[:-1], tensor.shape, strict=False) if n > 1
            ]
            if tensor.stride(-1) != 1 or any(step % 16 for step in (*steps, tensor.data_ptr())):
                raise RuntimeError("misaligned address")

    def _seen(self, row: int, queries: int, length: int, args: tuple[Any, ...]) -> Tensor:
        """[queries, heads or 1, length] bool"""
        query, entry = torch.arange(queries)[:, None, None], torch.arange(length)
        seen = torch.ones(queries, 1, length, dtype=torch.bool)
        if self.window >= 0:
            seen &= entry + queries + self.window >= length + query
        if self._custom_mask_buf is not None:
            offset = query * length + entry
            first = int(self._mask_indptr_buf[row])
            seen &= (self._custom_mask_buf[first + offset // 8] >> (offset % 8).to(torch.uint8)) & 1 == 1
        elif self.causal and self.jit is None:
            seen &= entry + queries <= length + query
        elif self.causal:
            seen = seen & self._hooked(row, queries, length, args)
        return seen

    def _hooked(self, row: int, queries: int, length: int, args: tuple[Any, ...]) -> Tensor:
        """Causal, by tiles of packed rows: the hook and the diagonal count only from the tile's first masked keys on."""
        entry, hook = torch.arange(length), self.jit.mask(row, queries, length, args)
        visible = hook & (entry + queries <= length + torch.arange(queries)[:, None])
        packed = torch.arange(queries * self.group).view(queries, self.group) // self.tile * self.tile
        masked_from = (length + -(-packed // self.group) - queries).clamp(min=0) // KEY_TILE * KEY_TILE
        return visible[:, None] | (entry < masked_from[..., None])

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Of one row: q [n, H, D], keys [t, Hkv, D]"""
        keys, values = (t.float().repeat_interleave(self.group, 1) for t in (keys, values))
        scores = torch.einsum("nhd,thd->nht", q.float(), keys)
        scale, cap = (self.scale, self.cap) if self.jit is None else (self.jit.scale, self.jit.cap)
        factor = scale * math.log2(math.e)
        if cap > 0:
            scores, factor = torch.tanh(scores * scale / cap), cap * math.log2(math.e)
        if seen.shape[1] != 1:
            seen = seen.repeat(1, q.shape[1] // self.group, 1)
        scores = torch.where(seen, scores, MASKED)
        top = torch.cat([scores, scores.new_full((*scores.shape[:2], 1), MASKED)], -1).amax(-1)
        blind, base = top == MASKED, torch.where(top == -math.inf, 0.0, top)
        weights = torch.exp2((scores - base[..., None]) * factor).to(q.dtype).float()
        total = weights.sum(-1) + torch.exp2((MASKED - base) * factor)
        out = torch.einsum("nht,thd->nhd", weights, values) * torch.where(blind, 0.0, 1 / total)[..., None]
        return out.to(q.dtype), torch.log2(total) + torch.where(blind, top, top * factor)


class _Variant:
    """The one kernel of one's own that the stand-in knows: `SpecplugTreeBitmap`, by what its hook is documented to do."""

    def __init__(self, arguments: list[Any]) -> None:
        name, *dtypes, index, dim, value_dim, tensors, tensor_types, scalars, scalar_types, variant, source = arguments
        assert isinstance(name, str) and dtypes == dtypes[:1] * 3 and index == torch.int32 and dim == value_dim
        assert len(tensors) == len(tensor_types) and len(scalars) == len(scalar_types)
        assert f"struct {variant.split('<')[0]} " in source and variant.startswith("SpecplugTreeBitmap<")
        self.names, self.capped = [*tensors, *scalars], variant.endswith("<true>")

    def mask(self, row: int, queries: int, length: int, arguments: tuple[Any, ...]) -> Tensor:
        given = dict(zip(self.names, arguments, strict=True))
        self.scale, self.cap = given["sm_scale"], given["logits_soft_cap"] if self.capped else 0.0
        words = given["bitmap"].reshape(-1)
        node = torch.arange(length) - (length - queries)
        index = node.clamp(min=0)
        place = row * given["bitmap_row"] + torch.arange(queries)[:, None] * given["bitmap_words"] + index // 32
        return (node < 0) | ((words[place] >> (index % 32)) & 1 == 1)


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor, mask: Tensor | None = None) -> None:
    assert mask is None and v.shape == v_other.shape and s.shape == s_other.shape == v.shape[:2]
    if not all(tensor.is_contiguous() for tensor in (v, s, v_other, s_other)):
        raise RuntimeError("must be contiguous")
    if s.dtype != torch.float32 or s_other.dtype != torch.float32:
        raise RuntimeError("the log-sum-exp must be float32")
    if v.shape[1] * v.shape[2] // 8 > 1024:
        raise RuntimeError("invalid configuration argument")
    top = torch.maximum(s, s_other)
    base = torch.where(top == -math.inf, 0.0, top)
    weight, other = torch.exp2(s - base), torch.exp2(s_other - base)
    total = weight + other
    share, rest = (torch.where(total > 0, w / total, 0.0)[..., None] for w in (weight, other))
    v.copy_((v.float() * share + v_other.float() * rest).to(v.dtype))
    s.copy_(torch.log2(total) + top)
