"""Verification of trees: greedy, and sampled in the two extremes between which every round lies."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.shapes import Shape
from specplug_kernels.bench.timing import Call
from specplug_kernels.bench.trees import CHILDREN, Tree, binary_tree
from specplug_kernels.bench.verdict_torch import verify_greedy_torch, verify_sampled_torch
from specplug_kernels.bench.work import greedy_work, sampled_work
from specplug_kernels.paging import ancestor_bitmap


def greedy_case(shape: Shape, device: torch.device) -> Case:
    """Greedy verification of given choices of the target; finding them (an argmax over the vocabulary) is not in it."""
    tree = binary_tree(shape.nodes, device)
    tokens, targets = (torch.randint(0, 2, (shape.batch, shape.nodes), device=device) for _ in range(2))
    calls: dict[str, Call] = {"torch": lambda: verify_greedy_torch(tokens, tree, targets)}
    absent = triton_absent(device)
    if not absent:
        from specplug_kernels.tree_greedy_triton import verify_greedy_triton  # noqa: PLC0415  (optional)

        trees = tree.parents[None], tree.depths[None], ancestor_bitmap(tree.ancestors)[None]
        calls["triton"] = lambda: verify_greedy_triton(tokens, *trees, targets, max_depth=tree.width - 1)
    label = f"B{shape.batch} n{shape.nodes}"
    return Case("verify-greedy", label, greedy_work(shape.batch, shape.nodes, tree.width), calls, absent)


def accepting_case(shape: Shape, device: torch.device) -> Case:
    """Every first child is accepted, down to a leaf."""
    return _sampled_case(shape, device, accepting=True)


def refusing_case(shape: Shape, device: torch.device) -> Case:
    """Every child of the root is refused: each changes two laws."""
    return _sampled_case(shape, device, accepting=False)


def _sampled_case(shape: Shape, device: torch.device, *, accepting: bool) -> Case:
    tree, vocab = binary_tree(shape.nodes, device), shape.model.vocab
    inner = max(1, int((tree.children[:, 0] >= 0).sum()))
    probs, laws = _laws(shape.batch, shape.nodes, vocab, device), _laws(shape.batch, inner, vocab, device)
    law_index = tree.parents.clamp(min=0)
    tokens = torch.zeros(shape.batch, shape.nodes, dtype=torch.int64, device=device)
    for parent in range(inner if shape.nodes > 1 else 0):  # tokens that the draft likes more than the target does
        own = tree.children[parent][tree.children[parent] >= 0]
        tokens[:, own] = (laws[:, parent] - probs[:, parent]).topk(CHILDREN).indices[:, : len(own)]
    accept = torch.full((shape.batch, shape.nodes), 0.0 if accepting else 1.0, dtype=torch.float64, device=device)
    bonus = torch.rand(shape.batch, dtype=torch.float64, device=device)
    calls: dict[str, Call] = {
        "torch": lambda: verify_sampled_torch(tokens, tree, probs, accept, bonus, laws, law_index)
    }
    absent = triton_absent(device)
    if not absent:
        calls["triton"] = _sampled_triton(tokens, tree, probs, accept, bonus, laws, law_index)
    return Case(
        f"verify-sampled-{'accepted' if accepting else 'refused'}",
        f"B{shape.batch} n{shape.nodes} V{vocab}",
        sampled_work(shape.batch, vocab, 0 if accepting else min(CHILDREN, shape.nodes - 1)),
        calls,
        absent,
    )


def _sampled_triton(
    tokens: Tensor, tree: Tree, probs: Tensor, accept: Tensor, bonus: Tensor, laws: Tensor, law_index: Tensor
) -> Call:
    from specplug_kernels.tree_sampling_triton import verify_sampled_triton  # noqa: PLC0415  (optional)

    given = tokens, tree.children[None], probs, accept, bonus
    index = torch.where(tree.parents >= 0, law_index, -1)[None]
    return lambda: verify_sampled_triton(*given, max_depth=tree.width - 1, laws=laws, law_index=index)


def triton_absent(device: torch.device) -> Mapping[str, str]:
    """Why Triton's kernels cannot be timed here, as a case lists it; empty if they can."""
    if device.type != "cuda":
        return {"triton": "Triton compiles for GPUs, and its interpreter is not worth timing"}
    if importlib.util.find_spec("triton") is None:
        return {"triton": "the triton package is not installed (pip install 'specplug[triton]' brings it)"}
    return {}


def _laws(rows: int, count: int, vocab: int, device: torch.device) -> Tensor:
    """Random laws [rows, count, vocab] float32 without zeros."""
    weights = torch.rand(rows, count, vocab, device=device).add_(1e-3)
    return weights.div_(weights.sum(-1, keepdim=True))
