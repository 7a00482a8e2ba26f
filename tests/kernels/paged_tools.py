"""Paged caches full of poison, and attention over them one node and one head at a time in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from specplug_kernels import PagedAttention, PagedRows, PagedShape, ScoreRule, paged_rows, plan_paged_attention

NOT_A_PAGE = 10**8
"""Stands in the page table where nobody may look."""


@dataclass(frozen=True)
class Case:
    query: Tensor  # [B, q, Hq, D]: the last q nodes ask
    key_pages: Tensor
    value_pages: Tensor
    page_indptr: Tensor
    page_indices: Tensor
    lengths: Tensor
    ancestors: Tensor  # [B or 1, n, n] bool
    rule: ScoreRule

    def rows(self, **lengths: object) -> PagedRows:
        """`lengths`: what the host is told of them, as `paged_rows` takes it."""
        queries, nodes = self.query.shape[1], self.ancestors.shape[1]
        depths = None if queries == nodes else self.ancestors.sum(2) - 1
        asking = self.ancestors[:, nodes - queries :]
        return paged_rows(self.page_indptr, self.page_indices, self.lengths, asking, depths=depths, **lengths)

    def arguments(self, **lengths: object) -> tuple[Tensor, Tensor, Tensor, PagedRows, ScoreRule]:
        return self.query, self.key_pages, self.value_pages, self.rows(**lengths), self.rule

    def level(self, first: int, stop: int) -> Case:
        """Nodes [first, stop) ask while no later node stands in the cache: its slots are poison."""
        pools = self.key_pages.clone(), self.value_pages.clone()
        for row, length in enumerate(self.lengths.tolist()):
            later = length + torch.arange(stop, self.ancestors.shape[1])
            page = self.page_indices[int(self.page_indptr[row]) + later // pools[0].shape[1]].long()
            for pool in pools:
                pool[page, later % pool.shape[1]] = math.nan
        ancestors = self.ancestors[:, :stop, :stop]
        return replace(
            self, query=self.query[:, first:stop], key_pages=pools[0], value_pages=pools[1], ancestors=ancestors
        )


def shape_of(case: Case, device: str | None = None) -> PagedShape:
    """What the layers of a case have in common; `device`: what is said of it, `None`: where the tensors are."""
    return PagedShape(
        query_heads=case.query.shape[2],
        kv_heads=case.key_pages.shape[2],
        head_dim=max(case.query.shape[3], case.value_pages.shape[3]),
        page_size=case.key_pages.shape[1],
        dtype=case.query.dtype,
        device=case.query.device if device is None else torch.device(device),
    )


def planned(case: Case, kernel: str, device: str = "cpu") -> PagedAttention:
    """A plan for the layers of a case; `device` is what the plan is told, wherever the tensors are."""
    return plan_paged_attention(
        case.rows(),
        query_heads=case.query.shape[2],
        kv_heads=case.key_pages.shape[2],
        head_dim=max(case.query.shape[3], case.value_pages.shape[3]),
        page_size=case.key_pages.shape[1],
        dtype=case.query.dtype,
        device=torch.device(device),
        kernel=kernel,
    )


def random_ancestors(nodes: int) -> Tensor:
    """A random tree: [n, n] bool, [i, j] = j is i or an ancestor of i."""
    ancestors = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        ancestors[node] |= ancestors[int(torch.randint(0, node, ()))]
    return ancestors


def levelled_ancestors(widths: tuple[int, ...]) -> Tensor:
    """A tree whose levels follow one another, `widths` nodes each, under random parents: [n, n] bool."""
    ancestors = torch.eye(sum(widths), dtype=torch.bool)
    first = 0
    for above, width in pairwise(widths):
        for node in range(first + above, first + above + width):
            ancestors[node] |= ancestors[first + int(torch.randint(0, above, ()))]
        first += above
    return ancestors


def seen_by(ancestors: Tensor, node: int, length: int, window: int | None) -> list[int]:
    """Entries of a row that one node sees, by the definition."""
    depths = ancestors.sum(1) - 1
    entries = [*range(length), *(length + other for other in range(len(ancestors)) if ancestors[node, other])]
    positions = [entry if entry < length else length + int(depths[entry - length]) for entry in entries]
    own = length + int(depths[node])
    return [entry for entry, p in zip(entries, positions, strict=True) if window is None or p > own - window]


def make_case(
    lengths: list[int],
    nodes: int = 5,
    *,
    queries: int | None = None,
    kv_heads: int = 2,
    groups: int = 3,
    dim: int = 64,
    value_dim: int | None = None,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
    strided: bool = False,
    ancestors: Tensor | None = None,
    **rule: object,
) -> Case:
    """Random numbers where somebody looks; NaN, inf and pages that do not exist everywhere else."""
    value_dim = dim if value_dim is None else value_dim
    queries = nodes if queries is None else queries
    if ancestors is None:
        ancestors = torch.stack([random_ancestors(nodes) for _ in (lengths[:1] if shared else lengths)])
    scores = ScoreRule(scale=0.7 * dim**-0.5, **rule)  # not the default of any library
    listed = [-(-(length + nodes) // page) + row % 3 for row, length in enumerate(lengths)]  # some rows list too many
    count = sum(listed) + 2
    order = torch.randperm(count)
    pools = [_pool(count, page, kv_heads, width, dtype, strided) for width in (dim, value_dim)]
    table, start = torch.full((sum(listed) + 3,), NOT_A_PAGE), 0
    for row, length in enumerate(lengths):
        tree = ancestors[row if len(ancestors) > 1 else 0]
        for entry in sorted(
            {e for node in range(nodes - queries, nodes) for e in seen_by(tree, node, length, scores.window)}
        ):
            place = start + entry // page
            table[place] = order[place]
            for pool in pools:
                pool[order[place], entry % page] = torch.randn(kv_heads, pool.shape[3]).to(dtype)
        start += listed[row]
    indptr = torch.tensor([0, *listed]).cumsum(0)
    query = torch.randn(len(lengths), queries, kv_heads * groups, dim).to(dtype)
    if strided:
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    return Case(query, *pools, indptr.int(), table.int(), torch.tensor(lengths, dtype=torch.int32), ancestors, scores)


def _pool(pages: int, page: int, heads: int, width: int, dtype: torch.dtype, strided: bool) -> Tensor:
    """[pages, page, heads, width] of NaN and inf; strided: a view into a pool that holds more."""
    pool = torch.full((pages, page, heads + 2 * strided, width + 16 * strided), math.nan, dtype=dtype)
    pool[torch.rand(pool.shape) < 0.3] = math.inf
    return pool[:, :, 1 : heads + 1, 16:] if strided else pool


def oracle(case: Case) -> tuple[Tensor, Tensor]:
    """One query, one head at a time, over the entries it sees, in fp64: output and log of the denominator."""
    batch, queries, heads, _ = case.query.shape
    page, kv_heads = case.key_pages.shape[1:3]
    out = torch.zeros(batch, queries, heads, case.value_pages.shape[3], dtype=torch.float64)
    lse = torch.full((batch, queries, heads), -math.inf, dtype=torch.float64)
    for b in range(batch):
        tree, first = case.ancestors[b if len(case.ancestors) > 1 else 0], int(case.page_indptr[b])
        for i in range(queries):
            node = len(tree) - queries + i
            entries = torch.tensor(seen_by(tree, node, int(case.lengths[b]), case.rule.window), dtype=torch.int64)
            pages, slots = case.page_indices[first + entries // page].long(), entries % page
            for h in range(heads):
                key, value = (
                    p[pages, slots, h // (heads // kv_heads)].double() for p in (case.key_pages, case.value_pages)
                )
                scores = key @ case.query[b, i, h].double() * case.rule.scale
                if case.rule.logit_cap is not None:
                    scores = case.rule.logit_cap * (scores / case.rule.logit_cap).tanh()
                denominator = scores.exp().sum()
                if case.rule.sinks is not None:
                    denominator = denominator + case.rule.sinks[h].double().exp()
                if denominator > 0:
                    lse[b, i, h] = denominator.log()
                    out[b, i, h] = (scores.exp() / denominator) @ value
    return out, lse


def check(case: Case, result: tuple[Tensor, Tensor]) -> None:
    """Within what rounding explains.

    Half precision rounds the weights and the output once each, half a unit in the last place of at most the largest
    value; 2e-5 covers float32 sums and scores.
    """
    out, lse = result
    expected, expected_lse = oracle(case)
    assert out.shape == expected.shape and out.dtype == case.query.dtype and out.is_contiguous()
    largest = float(case.value_pages.double().nan_to_num(0, 0, 0).abs().max())
    exact = case.query.dtype == torch.float64
    bound = 1e-12 if exact else 2e-5 + (case.query.dtype.itemsize < 4) * torch.finfo(case.query.dtype).eps * largest
    torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-12 if exact else 2e-5, rtol=0)


@st.composite
def cases(
    draw: st.DrawFn, dims: tuple[int, ...], longest: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> Case:
    """Ragged rows with every option at random; all nodes ask, or the last of them."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=3))
    kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 8))
    sinks = torch.randn(kv_heads * groups) if draw(st.booleans()) else None
    nodes = draw(st.integers(1, 12))
    return make_case(
        lengths,
        nodes,
        queries=draw(st.none() | st.integers(1, nodes)),
        kv_heads=kv_heads,
        groups=groups,
        dim=draw(st.sampled_from(dims)),
        value_dim=draw(st.sampled_from(dims)),
        page=draw(st.sampled_from((1, 16, 64))),
        dtype=draw(st.sampled_from(dtypes)),
        shared=draw(st.booleans()),
        strided=draw(st.booleans()),
        logit_cap=draw(st.sampled_from((None, None, 1.5, 30.0))),
        window=draw(st.sampled_from((None, None, 1, 4, 50, 1000))),
        sinks=sinks,
    )
