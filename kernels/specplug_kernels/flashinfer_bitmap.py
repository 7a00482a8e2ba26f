"""The mask hook that reads an ancestor bitmap, and what FlashInfer builds a kernel of it with.

FA2 runs the hook of a causal kernel only on tiles of keys that reach the first query's diagonal: entry ``kv_len - qo_len``
is node 0 if all nodes ask, so committed tokens before that tile are read without looking at a mask, and every node is
looked up. Two conditions make it exact: one tile holds all queries of a row (a second tile's diagonal would begin
further on, past nodes that it must not see), and a parent stands before its children (what is behind the diagonal is
never seen).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specplug_kernels.paging import PagedRows, ancestor_bitmap

VARIANT = "SpecplugTreeBitmap"

SOURCE = """
#include <flashinfer/attention/variants.cuh>

namespace flashinfer {

template <bool use_logits_soft_cap>
struct SpecplugTreeBitmap : AttentionVariantBase {
  static constexpr bool use_softmax = true;

  uint32_t qo_len, kv_len, window_left;
  float sm_scale_log2, soft_cap_pre_tanh_scale;

  template <typename Params>
  __device__ __host__ SpecplugTreeBitmap(const Params& params, uint32_t batch_idx, uint8_t* smem_ptr) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    window_left = kv_len;
    if constexpr (use_logits_soft_cap) {
      soft_cap_pre_tanh_scale = float(params.sm_scale) / float(params.logits_soft_cap);
      sm_scale_log2 = math::log2e * float(params.logits_soft_cap);
    } else {
      sm_scale_log2 = math::log2e * float(params.sm_scale);
    }
  }

  REGISTER_LOGITS_TRANSFORM(params, logits, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    if constexpr (use_logits_soft_cap) {
      logits = float(math::tanh(logits * soft_cap_pre_tanh_scale));
    }
    return logits;
  })

  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    if (qo_idx >= qo_len || kv_idx >= kv_len) {
      return false;
    }
    if (kv_idx + qo_len < kv_len) {
      return true;
    }
    const uint32_t node = kv_idx + qo_len - kv_len;
    const int64_t word = batch_idx * params.bitmap_row + qo_idx * params.bitmap_words + node / 32;
    return bool((params.bitmap[word] >> (node % 32)) & 1u);
  })
};

}  // namespace flashinfer
"""


def jit_arguments(dtype: torch.dtype, head_dim: int, *, capped: bool) -> list[Any]:
    """What the wrapper takes as ``jit_args``: its ``run`` then takes what :func:`run_arguments` gives, in this order."""
    name = f"specplug_tree_bitmap_{str(dtype).removeprefix('torch.')}_{head_dim}{'_cap' * capped}"
    scalars = ["sm_scale", "logits_soft_cap", "bitmap_row", "bitmap_words"]
    scalar_types = ["double", "double", "int64_t", "int64_t"]
    return [
        name, dtype, dtype, dtype, torch.int32, head_dim, head_dim, ["bitmap"], ["uint32_t"], scalars, scalar_types,
        f"{VARIANT}<{str(capped).lower()}>", SOURCE,
    ]  # fmt: skip


def run_arguments(bitmap: Tensor, scale: float, cap: float | None) -> tuple[Any, ...]:
    """``bitmap`` [B or 1, n, W] int32, contiguous; a shared one has rows that do not advance."""
    return bitmap, scale, cap or 0.0, bitmap.stride(0) if len(bitmap) > 1 else 0, bitmap.stride(1)


def assert_order(rows: PagedRows) -> None:
    """Refuse a tree in which a node sees one that stands behind it: the kernel would pass over it.

    On a GPU nothing waits for the answer: a violation ends in a device-side assertion.

    Raises:
        ValueError: on a CPU.
    """
    nodes = rows.num_nodes
    behind = ancestor_bitmap(torch.ones(nodes, nodes, dtype=torch.bool, device=rows.bitmap.device).triu(1))
    ordered = ~(rows.bitmap & behind).any()
    message = "a parent must stand before its children for the bitmap kernel"
    if ordered.device.type == "cpu":
        if not ordered:
            raise ValueError(message)
    else:
        torch._assert_async(ordered, message)
