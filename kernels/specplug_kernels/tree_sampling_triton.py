# ruff: noqa: N803  (Triton writes constants in capitals)
"""Recursive rejection over token trees by Triton: one program a row, no host round trip.

The rule is that of SpecInfer (arXiv 2305.09781, algorithm 2) and Sequoia (arXiv 2402.12374, algorithm 1); the chain case is
Leviathan et al. (arXiv 2211.17192, appendix A). A child x of the current node, in order:

    drawn from q:        accepted with probability min(1, p[x] / q[x]); else p <- norm(relu(p - q)), q <- q without x,
                         renormalised
    deterministic:       its q is one-hot: accepted with p[x]; else p <- p without x, renormalised
    none accepted:       the bonus token is drawn from what is left of p, by inversion

Two corners: x with q[x] = 0 was not drawn from q, so it counts as deterministic; where nothing is left of p - q (p = q up to
rounding), p is kept without x, or as it is if x was all it had.

Laws are float32 and comparisons of uniforms float64. Against the rule in plain torch the only difference is the order of
sums: masses of residuals are float32 sums of 1024 interleaved columns, the bonus is found in a float64 running sum by blocks. A
threshold moves by a few units in the last place (relative 1e-6 after several rejections), so a token differs only if its
uniform lies that close to a threshold.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specplug_kernels.tree_verdict import TreeVerdict, check_dtypes, row_stride

BLOCK = 1024
"""Columns of the vocabulary at a time."""


@triton.jit
def _masses(p, q, token, vocab, DRAWN: tl.constexpr, WITH_Q: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the vocabulary of what is left of ``p`` after ``token`` was rejected, and of ``q`` without ``token``."""
    left = tl.zeros([BLOCK], tl.float32)
    others = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        x = start + tl.arange(0, BLOCK)
        p_x = tl.load(p + x, mask=x < vocab, other=0.0)
        q_x = p_x
        if WITH_Q:
            q_x = tl.load(q + x, mask=x < vocab, other=0.0)
            others += tl.where(x == token, 0.0, q_x)
        left += tl.maximum(p_x - q_x, 0.0) if DRAWN else tl.where(x == token, 0.0, p_x)
    return tl.sum(left, axis=0), tl.sum(others, axis=0)


@triton.jit
def _reject(p, q, p_left, q_left, token, drawn, vocab, WITH_Q: tl.constexpr, BLOCK: tl.constexpr):
    """Write what is left of ``p`` to ``p_left`` and ``q`` without ``token`` to ``q_left``, renormalised; in place is right.

    All threads finish reading before any writes (they meet in the sums), and meet again after writing.
    """
    tiny = 1.1754943508222875e-38  # the least normal float32
    residual = drawn
    if WITH_Q & drawn:
        mass, q_mass = _masses(p, q, token, vocab, True, WITH_Q, BLOCK)
        residual = mass > 0
    else:
        mass, q_mass = _masses(p, q, token, vocab, False, WITH_Q, BLOCK)
    if drawn & (mass <= 0):
        mass, _ = _masses(p, q, token, vocab, False, False, BLOCK)
    share = tl.where(mass > 0, tl.maximum(mass, tiny), 1.0)
    q_share = tl.where(q_mass > 0, tl.maximum(q_mass, tiny), 1.0)
    tl.debug_barrier()
    for start in range(0, vocab, BLOCK):
        x = start + tl.arange(0, BLOCK)
        inside = x < vocab
        p_x = tl.load(p + x, mask=inside, other=0.0)
        rest = tl.where(x == token, 0.0, p_x)
        if WITH_Q:
            q_x = tl.load(q + x, mask=inside, other=0.0)
            rest = tl.where(residual, tl.maximum(p_x - q_x, 0.0), rest)
            q_rest = tl.div_rn(tl.where(x == token, 0.0, q_x), q_share)
            tl.store(q_left + x, tl.where(q_mass > 0, q_rest, q_x), mask=inside)
        rest = tl.where(mass > 0, tl.div_rn(rest, share), p_x)
        tl.store(p_left + x, rest, mask=inside)
    tl.debug_barrier()


@triton.jit
def _draw(weights, uniform, vocab, BLOCK: tl.constexpr):
    """The first index whose running float64 sum passes ``uniform`` times the whole; never one of weight zero."""
    whole = tl.full([], 0.0, tl.float64)
    last = tl.full([], 0, tl.int64)  # with weight: where the search ends if rounding takes it past everything
    for start in range(0, vocab, BLOCK):
        x = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + x, mask=x < vocab, other=0.0)
        whole += tl.sum(weight.to(tl.float64), axis=0)
        last = tl.maximum(last, tl.max(tl.where(weight > 0, x, 0), axis=0).to(tl.int64))
    # u * whole may round up to the whole; the float64 below it has the next smaller bit pattern
    below = (whole.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    threshold = tl.minimum(uniform * whole, below)
    found = last
    passed = tl.full([], 0.0, tl.float64)
    searching = True
    start = 0
    while searching & (start < vocab):
        x = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + x, mask=x < vocab, other=0.0).to(tl.float64)
        behind = (passed + tl.cumsum(weight, axis=0) > threshold) & (weight > 0)
        first = tl.min(tl.where(behind, x, vocab), axis=0)
        if first < vocab:
            found = first.to(tl.int64)
            searching = False
        passed += tl.sum(weight, axis=0)
        start += BLOCK
    return found


@triton.jit
def _verify_sampled(
    tokens, children, valid, probs, laws, law_index, accept, bonus, p_space, q_space, path, num_accepted, bonus_out,
    tokens_row, children_row, children_node, valid_row, probs_row, probs_node, laws_row, laws_law, index_row, accept_row,
    width, max_depth, vocab,
    HAS_VALID: tl.constexpr, HAS_LAWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One row: try the children of the current node in order; an accepted one becomes the current node."""
    row = tl.program_id(0).to(tl.int64)
    children += row * children_row
    probs += row * probs_row
    path += row * (max_depth + 1)
    p_left = p_space + row * vocab
    q_left = q_space + row * vocab
    p = probs
    q = q_left
    node = tl.full([], 0, tl.int64)
    law_before = tl.full([], -1, tl.int64)
    count = 0
    rank = 0
    while (rank < width) & (count < max_depth):
        child = tl.load(children + node * children_node + rank)
        trying = child >= 0
        if HAS_VALID:
            trying = trying & (tl.load(valid + row * valid_row + tl.maximum(child, 0)) != 0)
        rank += 1
        if trying:
            token = tl.load(tokens + row * tokens_row + child)
            p_token = tl.load(p + token)
            q_token = tl.full([], 1.0, tl.float32)
            drawn = False
            if HAS_LAWS:
                law = tl.load(law_index + row * index_row + child)
                if law != law_before:
                    q = laws + row * laws_row + tl.maximum(law, 0) * laws_law
                law_before = law
                q_of_token = tl.load(q + token)
                drawn = (law >= 0) & (q_of_token > 0)
                q_token = tl.where(drawn, q_of_token, 1.0)
            if tl.load(accept + row * accept_row + child) * q_token.to(tl.float64) < p_token.to(tl.float64):
                count += 1
                node = child
                tl.store(path + count, child)
                p = probs + child * probs_node
                law_before = tl.full([], -1, tl.int64)
                rank = 0
            else:
                _reject(p, q, p_left, q_left, token, drawn, vocab, HAS_LAWS, BLOCK)
                p = p_left
                q = q_left
    column = tl.arange(0, BLOCK_P)
    tl.store(path, 0)
    tl.store(path + column, node + tl.zeros([BLOCK_P], tl.int64), mask=(column > count) & (column <= max_depth))
    tl.store(num_accepted + row, count)
    tl.store(bonus_out + row, _draw(p, tl.load(bonus + row), vocab, BLOCK))


def verify_sampled_triton(
    tokens: Tensor,
    children: Tensor,
    probs: Tensor,
    accept: Tensor,
    bonus: Tensor,
    *,
    max_depth: int,
    valid: Tensor | None = None,
    laws: Tensor | None = None,
    law_index: Tensor | None = None,
) -> TreeVerdict:
    """Walk down each row's tree by recursive rejection; draw the bonus token from what is left.

    Args:
        tokens: ``[B, N]`` int64, column 0 the root.
        children: ``[B or 1, N, C]`` int64, in the order in which they are verified, -1 = none; those of one law together.
        probs: ``[B, N, V]`` float32, the target's law at every node, after every processor.
        accept: ``[B, N]`` float64, uniforms of each node's own acceptance.
        bonus: ``[B]`` float64, uniforms of the bonus draw.
        max_depth: most draft tokens on a path of any row.
        valid: ``[B, N]`` bool, False = padding, never accepted; ``None``: every node is real.
        laws: ``[B, M, V]`` float32, the laws that children were drawn from without replacement; ``None``: no child was.
        law_index: ``[B or 1, N]`` int64 into ``laws``, -1 = a deterministic child. Given with ``laws``.

    Returns:
        A :class:`TreeVerdict`. Nothing is read back from the device; no argument is modified.

    Raises:
        ValueError: dtypes or shapes that do not fit.
    """
    rows, nodes, vocab = probs.shape
    check_dtypes(
        tokens=tokens, children=children, probs=probs, accept=accept, bonus=bonus, laws=laws, law_index=law_index
    )
    if (laws is None) != (law_index is None):
        raise ValueError("laws and law_index are given together or not at all")
    probs, laws = _with_contiguous_laws(probs), _with_contiguous_laws(laws)
    tokens, accept, bonus = tokens.contiguous(), accept.contiguous(), bonus.contiguous()
    children = children.contiguous()
    path = torch.empty(rows, max_depth + 1, dtype=torch.int64, device=probs.device)
    num_accepted, drawn = (torch.empty(rows, dtype=torch.int64, device=probs.device) for _ in range(2))
    p_left = torch.empty(rows, vocab, dtype=torch.float32, device=probs.device)
    q_left = p_left if laws is None else torch.empty_like(p_left)
    valid = valid if valid is None else valid.contiguous().view(torch.uint8)
    index = tokens if law_index is None else law_index.contiguous()
    if rows:
        _verify_sampled[(rows,)](
            tokens, children, tokens if valid is None else valid, probs, p_left if laws is None else laws, index, accept,
            bonus, p_left, q_left, path, num_accepted, drawn,
            nodes, row_stride(children), children.shape[2], nodes, *probs.stride()[:2],
            *((0, 0) if laws is None else laws.stride()[:2]), row_stride(index), nodes, children.shape[2], max_depth, vocab,
            **sampled_launch_options(max_depth, has_valid=valid is not None, has_laws=laws is not None),
        )  # fmt: skip
    return TreeVerdict(path, num_accepted, drawn)


def sampled_launch_options(max_depth: int, *, has_valid: bool, has_laws: bool) -> dict[str, int | bool]:
    """What the sampling kernel is compiled with."""
    return {
        "HAS_VALID": has_valid,
        "HAS_LAWS": has_laws,
        "BLOCK": BLOCK,
        "BLOCK_P": triton.next_power_of_2(max_depth + 1),
        "num_warps": 8,
        "enable_fp_fusion": False,  # a threshold rounds as it does in torch
    }


def _with_contiguous_laws(laws: Tensor | None) -> Tensor | None:
    """``[B, M, V]``, copied only if the vocabulary's own dimension is strided."""
    return laws if laws is None or laws.stride(2) == 1 or laws.shape[2] <= 1 else laws.contiguous()
