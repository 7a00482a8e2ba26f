"""Tree attention over contiguous rows, beside a masked SDPA; and over pages."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.shapes import Shape
from specplug_kernels.bench.timing import Call
from specplug_kernels.bench.trees import Tree, binary_tree
from specplug_kernels.bench.work import attention_work, paged_attention_work
from specplug_kernels.dispatch import available_kernels, explain, tree_attention
from specplug_kernels.paged_dispatch import PAGED_KERNELS, plan_paged_attention
from specplug_kernels.paging import PagedRows, ScoreRule, paged_rows
from specplug_kernels.tree_attention_native import why_no_library, why_not_sizes

RAGGED = 8
"""Committed columns that the bias covers besides the tree: rows of a batch end at different places."""
SPARE = 64
"""Columns behind the last one: a cache has room to grow."""


def attention_case(shape: Shape, device: torch.device) -> Case:
    """``tree_attention``; K and V are views into larger buffers."""
    tree, model = binary_tree(shape.nodes), shape.model
    size = (shape.batch, model.kv_heads, shape.columns + SPARE, model.head_dim)
    key, value = (_random(size, shape.dtype, device)[:, :, : shape.columns] for _ in range(2))
    query = _random((shape.batch, shape.nodes, model.heads, model.head_dim), shape.dtype, device).transpose(1, 2)
    ragged = min(RAGGED, shape.context)
    bias = _bias(tree, ragged, shape, device)
    mask = F.pad(bias, (shape.context - ragged, 0))
    scale = model.head_dim**-0.5

    def ours(kernel: str) -> Call:
        prefix = shape.context - ragged
        return lambda: tree_attention(query, key, value, prefix=prefix, bias=bias, scale=scale, kernel=kernel)

    def masked_sdpa() -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).contiguous()

    obstacle = why_not_sizes(shape.dtype, device.type, model.head_dim) or why_no_library(shape.dtype)
    absent = {} if obstacle is None else {"native": obstacle}
    backends = [name for name in available_kernels() if name != "auto" and name not in absent]
    return Case(
        "attention",
        str(shape),
        attention_work(shape, tree.visible_pairs, bias.numel()),
        {"masked-sdpa": masked_sdpa} | {name: ours(name) for name in backends},
        absent,
        chosen=explain(query.shape, key.shape, dtype=shape.dtype, device=device).partition(":")[0],
        reading=_reading(key, value),
        by_name_only=frozenset({"torch"}),  # the definition repeats the heads in float32
    )


def paged_attention_case(shape: Shape, device: torch.device) -> Case:
    """Paged tree attention by plans, which are made outside the timing: once a forward, for all layers."""
    tree, model = binary_tree(shape.nodes), shape.model
    pages = -(-shape.columns // shape.page)
    size = (shape.batch * pages, shape.page, model.kv_heads, model.head_dim)
    key_pages, value_pages = (_random(size, shape.dtype, device) for _ in range(2))
    query = _random((shape.batch, shape.nodes, model.heads, model.head_dim), shape.dtype, device)
    rows = _rows(shape, tree, pages, device)
    rule = ScoreRule(scale=model.head_dim**-0.5)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    chosen = None
    for kernel in PAGED_KERNELS:
        reason = _hopeless(kernel, device)
        if reason is not None:
            absent[kernel] = reason
            continue
        try:
            plan = plan_paged_attention(
                rows,
                query_heads=model.heads,
                kv_heads=model.kv_heads,
                head_dim=model.head_dim,
                page_size=shape.page,
                dtype=shape.dtype,
                device=device,
                kernel=kernel,
            )
        except (ImportError, ValueError) as error:
            absent[kernel] = str(error)
            continue
        if kernel == "auto":
            chosen = plan.name
        elif plan.name not in calls:  # "flashinfer" is one of its paths
            calls[plan.name] = _planned(plan, query, key_pages, value_pages, rule)
    return Case(
        "paged-attention",
        f"{shape} page {shape.page}",
        paged_attention_work(shape, tree.visible_pairs),
        calls,
        absent,
        chosen,
        _reading(key_pages, value_pages),
    )


def _planned(plan: Callable[..., object], *arguments: object) -> Call:
    return lambda: plan(*arguments)


def _hopeless(kernel: str, device: torch.device) -> str | None:
    """A reason not to try: Triton's interpreter serves a CPU, but a time of it says nothing."""
    if device.type == "cpu" and kernel == "triton":
        return "Triton compiles for GPUs, and its interpreter is not worth timing"
    return None


def _rows(shape: Shape, tree: Tree, pages: int, device: torch.device) -> PagedRows:
    """Rows of equal length on pages in random order."""
    return paged_rows(
        torch.arange(shape.batch + 1, dtype=torch.int32, device=device) * pages,
        torch.randperm(shape.batch * pages, device=device).int(),
        torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device),
        tree.ancestors.to(device)[None],
        lengths_host=(shape.context,) * shape.batch,
    )


def _bias(tree: Tree, ragged: int, shape: Shape, device: torch.device) -> Tensor:
    """``[B, 1, n, ragged + n]``: all of the committed columns in it are visible, and of the tree what each node sees."""
    seen = F.pad(tree.ancestors, (ragged, 0), value=True).to(device)
    bias = torch.zeros(seen.shape, dtype=shape.dtype, device=device).masked_fill(~seen, float("-inf"))
    return bias.expand(shape.batch, 1, -1, -1).contiguous()


def _reading(*tensors: Tensor) -> Call:
    """Sums of all entries. Half precision is read two numbers at a time, as float32: widening would take the time."""
    wide = [t.view(torch.float32) if t.element_size() == 2 and t.shape[-1] % 2 == 0 else t for t in tensors]
    return lambda: [t.sum() for t in wide]


def _random(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers, never zeros: real caches are not empty. In ``dtype`` from the start: float32 may not fit beside it."""
    return torch.randn(size, dtype=dtype, device=device)
