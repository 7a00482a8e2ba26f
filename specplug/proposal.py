"""Checks on what a drafter proposes, before it reaches the target."""

from __future__ import annotations

import torch

from specplug.controllers.base import Plan
from specplug.errors import ProposalError
from specplug.host import Batch
from specplug.tree import TreeBatch


def check_proposal(trees: TreeBatch, batch: Batch, plan: Plan, vocab_size: int) -> None:
    """Raise `ProposalError` if `trees` cannot be verified as a proposal for `batch` within `plan`.

    Sizes are always checked; contents (range, NaN, mass) only for drafters with `checked` set, since looking at them
    waits for the device.
    """
    name = plan.arm.label
    if trees.num_rows != batch.num_rows:
        raise ProposalError(f"Drafter {name!r} proposed for {trees.num_rows} rows; the batch has {batch.num_rows}.")
    if trees.num_nodes - 1 > plan.shape.size:
        raise ProposalError(
            f"Drafter {name!r} proposed {trees.num_nodes - 1} tokens a row; the plan allows {plan.shape.size}."
        )
    if trees.confidence is not None and trees.confidence.shape != trees.tokens.shape:
        raise ProposalError(
            f"Drafter {name!r} gave confidence of {tuple(trees.confidence.shape)} for tokens of {tuple(trees.tokens.shape)}."
        )
    if trees.shape is not None and trees.shape.depth > plan.shape.depth:
        raise ProposalError(f"Drafter {name!r} proposed depth {trees.shape.depth}; the plan allows {plan.shape.depth}.")
    if plan.arm.drafter.checked:
        _check_structure(trees, plan, name)
        _check_contents(trees, batch, name, vocab_size)


def _check_structure(trees: TreeBatch, plan: Plan, name: str) -> None:
    """Parents, depths, ancestors and children of trees that were not made from one shape must tell the same story."""
    if trees.shape is not None:
        return
    parents, nodes = trees.parents, torch.arange(trees.num_nodes, device=trees.parents.device)
    if not bool(((parents[:, :1] == -1) & (parents < nodes) & (parents >= -1)).all() & (parents[:, 1:] >= 0).all()):
        raise ProposalError(f"Drafter {name!r}: parents must be -1 for the root and an earlier node for every other.")
    depths = 1 + trees.depths.gather(1, parents.clamp(min=0))
    depths[:, 0] = 0
    lineage = trees.ancestors.gather(1, parents.clamp(min=0)[..., None].expand(-1, -1, trees.num_nodes))
    lineage[:, 0] = False
    lineage = lineage | torch.eye(trees.num_nodes, dtype=torch.bool, device=parents.device)
    if not (torch.equal(depths, trees.depths) and torch.equal(lineage, trees.ancestors)):
        raise ProposalError(f"Drafter {name!r}: depths or ancestors do not follow from parents.")
    if int(depths.max()) > plan.shape.depth:
        raise ProposalError(f"Drafter {name!r} proposed depth {int(depths.max())}; the plan allows {plan.shape.depth}.")
    flat = trees.children.flatten(1)
    owner = nodes[:, None].expand(trees.children.shape[1:]).flatten()
    safe = flat.clamp(min=0, max=trees.num_nodes - 1)
    listed = (flat < 0) | ((flat == safe) & (parents.gather(1, safe) == owner))
    counts = torch.zeros_like(parents).scatter_add(1, safe, (flat >= 0).long())
    real = torch.ones_like(counts, dtype=torch.bool) if trees.valid is None else trees.valid
    if not bool(listed.all()) or bool((counts > 1).any()) or bool(((counts == 0) & real)[:, 1:].any()):
        raise ProposalError(f"Drafter {name!r}: children must list every node once, under its parent.")


def _check_contents(trees: TreeBatch, batch: Batch, name: str, vocab_size: int) -> None:
    if trees.tokens.dtype != torch.int64:
        raise ProposalError(f"Drafter {name!r} proposed tokens of {trees.tokens.dtype}; they must be int64.")
    if not bool((trees.tokens[:, 0] == batch.roots).all()):
        raise ProposalError(f"Drafter {name!r} changed the root; node 0 must be the newest committed token.")
    outside = (trees.tokens < 0) | (trees.tokens >= vocab_size)
    if trees.valid is not None:
        outside &= trees.valid
    if bool(outside.any()):
        token = int(trees.tokens[outside][0])
        raise ProposalError(f"Drafter {name!r} proposed token {token}, outside the vocabulary of {vocab_size}.")
    laws = trees.laws
    if laws is None:
        return
    if laws.shape[-1] != vocab_size or laws.dtype != torch.float32:
        raise ProposalError(
            f"Drafter {name!r} gave laws of {tuple(laws.shape)} {laws.dtype}; they must be float32 over {vocab_size} tokens."
        )
    off = (laws.sum(-1) - 1).abs() > 1e-3
    index = trees.law_index
    if index is None or bool(((index >= laws.shape[1]) | (index < -1)).any()):
        raise ProposalError(f"Drafter {name!r} gave laws without a law_index into them for every node.")
    if bool((off | laws.isnan().any(-1) | (laws < 0).any(-1)).any()):
        raise ProposalError(
            f"Drafter {name!r} gave a law that is not a probability distribution (NaN, negative or sum not 1)."
        )
