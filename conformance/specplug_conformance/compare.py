"""Comparing what was generated with what plain generation says, and telling a tie in floating point from a fault."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specplug_conformance.check import Failure, Trial
from specplug_conformance.request import Request
from specplug_conformance.subject import World

# Two scores this close, relative to the larger, may swap when sums are taken in another order.
TIES = {"float64": 1e-10, "float32": 2e-5}


def same_tokens(
    trial: Trial, world: World, request: Request, ours: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]
) -> None:
    """Raise `Failure` at the first row that differs, unless the target was undecided there."""
    if len(ours) != len(plain):
        raise Failure(f"{len(ours)} rows came back, {len(plain)} were asked for", **_asked(world, request))
    for row, (got, wanted) in enumerate(zip(ours, plain, strict=True)):
        if list(got) != list(wanted):
            _differs(trial, world, request, row, list(got), list(wanted))


def _differs(trial: Trial, world: World, request: Request, row: int, got: list[int], wanted: list[int]) -> None:
    shared = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    prompt = list(request.prompts[row])
    scores = world.scores([*prompt, *wanted[:shared]], request, len(prompt)).double()
    top = torch.topk(scores, min(2, len(scores)))
    margin = float(top.values[0] - top.values[-1])
    scale = max(1.0, float(top.values[0].abs()))
    token = got[shared] if shared < len(got) else None
    undecided = margin <= TIES[world.dtype] * scale
    if undecided and token in top.indices.tolist() and len(got) == len(wanted):
        trial.notes.append(f"row {row}, token {shared}: a tie, margin {margin:.1e}")
        return
    raise Failure(
        f"row {row} differs from plain generation at new token {shared}",
        **_asked(world, request),
        row=row,
        position=shared,
        ours=got,
        plain=wanted,
        top_tokens=top.indices.tolist(),
        top_scores=[round(v, 6) for v in top.values.tolist()],
        margin=margin,
    )


def _asked(world: World, request: Request) -> dict[str, object]:
    return {
        "model_seed": world.seed,
        "vocab": world.vocab,
        "dtype": world.dtype,
        "prompts": [list(prompt) for prompt in request.prompts],
        "new_tokens": request.new_tokens,
        **request.options,
    }


def faulty(world: World, request: Request, message: str, **more: object) -> Failure:
    """A `Failure` that names the call."""
    return Failure(message, **_asked(world, request), **more)
