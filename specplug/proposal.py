"""Checks on what a drafter proposes, before it reaches the target."""

from __future__ import annotations

import torch

from specplug.controllers.base import Plan
from specplug.errors import ProposalError
from specplug.host import Batch
from specplug.tree import TreeBatch

_DTYPES = (torch.int64,)


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
    if plan.arm.drafter.checked:
        _check_contents(trees, batch, name, vocab_size)


def _check_contents(trees: TreeBatch, batch: Batch, name: str, vocab_size: int) -> None:
    if trees.tokens.dtype not in _DTYPES:
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
    if bool((off | laws.isnan().any(-1) | (laws < 0).any(-1)).any()):
        raise ProposalError(f"Drafter {name!r} gave a law that is not a probability distribution (NaN, negative or sum not 1).")
