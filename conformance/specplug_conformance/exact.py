"""The exact law of what one verification emits, and of which tokens are drawn: no sampling, no rounding to speak of."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specplug import random, verify
from specplug.tree import TreeBatch

Path = tuple[int, ...]
_LOW, _HIGH = 2.0**-53, 1 - 2.0**-53
_STEPS = 44  # of a bisection: thresholds to 2 ** -44
_NEVER, _ALWAYS = 2.0**-40, 1 - 2.0**-40


def emitted_law(trees: TreeBatch, probs: Tensor) -> list[dict[Path, float]]:
    """For each row, the exact law of what `verify_sampled` emits (accepted tokens and bonus) for these proposals.

    `probs` [B, N, V] float32: the target's laws. Integrates over the uniforms: a node is tried in one situation only
    (its ancestors accepted, their and its elder siblings rejected), so its acceptance probability is the threshold of
    its own uniform in that situation, found by bisection of the real `verify_sampled`. What a bonus is drawn from is
    read from the call of the real `draw`.
    """
    num_rows, num_nodes = trees.tokens.shape
    ancestors = trees.ancestors.expand(num_rows, -1, -1)
    thresholds = torch.zeros(num_rows, num_nodes, dtype=torch.float64)
    for node in range(1, num_nodes):
        forced = torch.where(ancestors[:, node], _LOW, _HIGH).double()
        thresholds[:, node] = _threshold(trees, probs, forced, node)
    result: list[dict[Path, float]] = [defaultdict(float) for _ in range(num_rows)]
    for node in range(num_nodes):
        left = _bonus_law(trees, probs, torch.where(ancestors[:, node], _LOW, _HIGH).double())
        for row in range(num_rows):
            if trees.valid is not None and not trees.valid[row, node]:
                continue
            mass = _reach(trees, thresholds, row, node)
            for child in _children(trees, row, node):
                mass *= 1 - float(thresholds[row, child])
            if mass > 0:
                path = tokens_to(trees, row, node)
                for token, share in enumerate(left[row].tolist()):
                    result[row][(*path, token)] += mass * share
    return result


def _threshold(trees: TreeBatch, probs: Tensor, forced: Tensor, node: int) -> Tensor:
    """Below which uniform `node` is accepted, everything else being forced: [B]."""
    num_rows = trees.num_rows
    low, high = torch.zeros(num_rows, dtype=torch.float64), torch.ones(num_rows, dtype=torch.float64)
    half = torch.full((num_rows,), 0.5, dtype=torch.float64)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        forced[:, node] = middle
        taken = (verify.verify_sampled(trees, probs, forced, half).path == node).any(1)
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return torch.where(low > _ALWAYS, 1.0, torch.where(high < _NEVER, 0.0, low))


def _bonus_law(trees: TreeBatch, probs: Tensor, forced: Tensor) -> Tensor:
    seen = []

    def spy(weights: Tensor, uniform: Tensor) -> Tensor:
        seen.append(weights.double() / weights.double().sum(-1, keepdim=True))
        return random.draw(weights, uniform)

    setattr(verify, "draw", spy)  # noqa: B010  (a name that verify imports)
    try:
        verify.verify_sampled(trees, probs, forced, torch.full((trees.num_rows,), 0.5, dtype=torch.float64))
    finally:
        setattr(verify, "draw", random.draw)  # noqa: B010
    return seen[-1]


def _reach(trees: TreeBatch, thresholds: Tensor, row: int, node: int) -> float:
    mass = 1.0
    while node:
        parent = int(trees.parents.expand(trees.num_rows, -1)[row, node])
        for child in _children(trees, row, parent):
            if child == node:
                mass *= float(thresholds[row, child])
                break
            mass *= 1 - float(thresholds[row, child])
        node = parent
    return mass


def _children(trees: TreeBatch, row: int, node: int) -> list[int]:
    return [child for child in trees.children.expand(trees.num_rows, -1, -1)[row, node].tolist() if child >= 0]


def tokens_to(trees: TreeBatch, row: int, node: int) -> Path:
    """Draft tokens from the root's child on down to `node`."""
    tokens: list[int] = []
    while node:
        tokens.insert(0, int(trees.tokens[row, node]))
        node = int(trees.parents.expand(trees.num_rows, -1)[row, node])
    return tuple(tokens)


def orders(law: Tensor, count: int) -> Iterator[tuple[Path, float]]:
    """Every ordered draw of `count` tokens without replacement from `law` [V], with its probability.

    Tokens of weight zero come last in index order, when nothing else is left (the real draw leaves their order open;
    any order is lossless).
    """
    weights = law.double().tolist()
    for tokens in itertools.permutations(range(len(weights)), count):
        mass, left, valid = 1.0, sum(weights), True
        zeros = [token for token in tokens if weights[token] == 0]
        for token in tokens:
            if weights[token] > 0:
                mass *= weights[token] / left
                left -= weights[token]
            elif left > 1e-9 or zeros != _first_zeros(weights, len(zeros)):
                valid = False
                break
        if valid:
            yield tokens, mass


def _first_zeros(weights: list[float], count: int) -> list[int]:
    return [token for token, weight in enumerate(weights) if weight == 0][:count]


def joint_law(next_law: Callable[[Path], Tensor], vocab: int, count: int) -> Tensor:
    """The law of the next `count` tokens, flattened [V ** count] float64, from `next_law(tokens so far)` [V]."""
    law = torch.ones(1, dtype=torch.float64)
    for depth in range(count):
        rows = [next_law(path).double() for path in itertools.product(range(vocab), repeat=depth)]
        law = (law[:, None] * torch.stack(rows)).flatten()
    return law
