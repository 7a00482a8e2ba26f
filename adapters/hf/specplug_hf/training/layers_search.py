"""Which sublayers a model can spare: a seeded search (SWIFT, arXiv 2410.06916, section 3.2).

SWIFT asks Bayesian optimisation and random search in turn for the next choice. With some dozens of sublayers, neighbours of the best so
far serve as well: one sublayer more, one less, or one for another; now and then something else altogether.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from specplug.host import SkippedLayers
from specplug_hf.training.layers_trial import Score

STRANGE = 0.2  # share of the choices that are drawn afresh
DRAWS = 50  # in vain, after which all neighbours have been seen

Sublayer = tuple[str, int]  # "attention" or "mlp", and its layer
Judge = Callable[[SkippedLayers], Score]


def search(
    judge: Judge, start: SkippedLayers, num_layers: int, seed: int, goes_on: Callable[[Score], bool]
) -> tuple[SkippedLayers, Score]:
    """The best choice found and its score, from `start` on; never of the first or the last layer, never nothing.

    `goes_on` is asked before each look, with the best score so far.
    """
    dice = random.Random(seed)
    pool = [(kind, layer) for layer in range(1, num_layers - 1) for kind in ("attention", "mlp")]
    best, score = start, judge(start)
    seen = {start}
    while goes_on(score):
        choice = next((new for _ in range(DRAWS) if (new := _drawn(best, pool, dice)) not in seen), None)
        if choice is None:
            break
        seen.add(choice)
        found = judge(choice)
        if found.speedup > score.speedup:
            best, score = choice, found
    return best, score


def _drawn(best: SkippedLayers, pool: list[Sublayer], dice: random.Random) -> SkippedLayers:
    """A neighbour of `best`, or as many sublayers drawn afresh."""
    left_out = [sublayer for sublayer in pool if sublayer[1] in getattr(best, sublayer[0])]
    kept = [sublayer for sublayer in pool if sublayer not in left_out]
    if dice.random() < STRANGE:
        return _choice(dice.sample(pool, len(left_out)))
    move = dice.choice(("more", "less", "other"))
    if move != "more" and (len(left_out) > 1 or (move == "other" and kept)):
        left_out.remove(dice.choice(left_out))
    if move != "less" and kept:
        left_out.append(dice.choice(kept))
    return _choice(left_out)


def _choice(sublayers: list[Sublayer]) -> SkippedLayers:
    parts = {kind: frozenset(layer for own, layer in sublayers if own == kind) for kind in ("attention", "mlp")}
    return SkippedLayers(**parts)
