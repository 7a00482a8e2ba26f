"""Attention over a token tree, the KV-cache moves that go with it, and verification on the device.

Public operations on a cache with a place for every row:

- :func:`tree_attention`: attention of a few queries over a long KV cache whose last columns are masked by a bias.
- :func:`write_kv`: put new keys or values into a preallocated buffer; :func:`lines_of`: where, once for all layers.
- :func:`commit_kv`: move accepted columns to their final place, every layer at once.
- :func:`available_kernels`, :func:`explain`: what ``kernel=`` accepts, and what ``"auto"`` chooses.
- :func:`tree_attention_reference`: the definition in plain words, the oracle of the tests.

For everything else in a forward of a few nodes on a CPU:

- :func:`skinny_linear`: a linear layer of a few rows; :func:`explain_linear` says what ``"auto"`` chooses, and :func:`try_linear`
  is for those who ask in every layer.
- :func:`rms_norm`: a root-mean-square norm of a few rows, :func:`try_rms_norm` likewise; :func:`rms_norm_reference` is its definition.

On a paged cache:

- :func:`paged_rows`, :class:`PagedShape`, :class:`ScoreRule`: where the rows stand, what the layers have in common, and
  what one does with its scores.
- :func:`plan_paged_attention`: attention of tree nodes over pages, a :class:`PagedAttention` planned once a forward and
  called by every layer; :func:`explain_paged` says which backend serves it, :func:`paged_tree_attention` is one call.
- :func:`commit_paged_kv`: move accepted slots to their final place.

Of Triton, imported when first asked for: ``pool_table`` and ``commit_paged_kv_triton``, ``verify_sampled_triton`` and
``verify_greedy_triton``. ``python -m specplug_kernels.compile_check`` compiles them for a GPU, without one.
"""

import importlib
import importlib.util
from typing import Any

from specplug_kernels.dispatch import available_kernels, explain, tree_attention
from specplug_kernels.kv_move_torch import commit_kv, commit_paged_kv, lines_of, write_kv
from specplug_kernels.linear_dispatch import explain_linear, serves_weight, skinny_linear, skinny_rows, try_linear
from specplug_kernels.norm_dispatch import norm_numbers, rms_norm, serves_norms, try_rms_norm
from specplug_kernels.paged_choice import PAGED_KERNELS
from specplug_kernels.paged_dispatch import explain_paged, paged_tree_attention, plan_paged_attention
from specplug_kernels.paging import PagedAttention, PagedRows, PagedShape, ScoreRule, ancestor_bitmap, paged_rows
from specplug_kernels.reference import rms_norm_reference, tree_attention_reference

__all__ = [
    "PAGED_KERNELS",
    "PagedAttention",
    "PagedRows",
    "PagedShape",
    "ScoreRule",
    "ancestor_bitmap",
    "available_kernels",
    "commit_kv",
    "commit_paged_kv",
    "explain",
    "explain_linear",
    "explain_paged",
    "lines_of",
    "norm_numbers",
    "paged_rows",
    "paged_tree_attention",
    "plan_paged_attention",
    "rms_norm",
    "rms_norm_reference",
    "serves_norms",
    "serves_weight",
    "skinny_linear",
    "skinny_rows",
    "tree_attention",
    "tree_attention_reference",
    "try_linear",
    "try_rms_norm",
    "write_kv",
]

_TRITON = {
    "commit_paged_kv_triton": "commit_kv_triton",
    "pool_table": "commit_kv_triton",
    "verify_greedy_triton": "tree_greedy_triton",
    "verify_sampled_triton": "tree_sampling_triton",
}


def __getattr__(name: str) -> Any:
    """Functions that need the optional triton package."""
    if name not in _TRITON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("triton") is None:
        raise ImportError(f"{name} needs the triton package: pip install 'specplug[triton]'")
    return getattr(importlib.import_module(f"{__name__}.{_TRITON[name]}"), name)
