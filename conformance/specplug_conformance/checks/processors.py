"""Logits processors see, at every node, the prefix that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.request import Request, Rule
from specplug_conformance.scene import run_and_compare
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import Feature


def prefix_rule(vocab: int) -> Rule:
    """Scores that depend on the last two tokens and on the length: wrong for any other prefix."""

    def no_sums(tokens: Sequence[int]) -> Tensor:
        scores = torch.zeros(vocab, dtype=torch.float64)
        scores[(tokens[-1] + tokens[-2] if len(tokens) > 1 else tokens[-1]) % vocab] -= 4.0
        scores[(tokens[-1] + len(tokens)) % vocab] += 1.5
        return scores

    return no_sums


@check("processors", "processors that read the prefix act at every tree node as in plain generation", EVERY)
def processors(trial: Trial) -> None:
    trial.needs(Feature.RULES)
    world = trial.world()
    rule = prefix_rule(world.vocab)
    fields = {"rule": st.sampled_from([None, rule]), "repetition_penalty": st.sampled_from([1.0, 1.8])}

    def test(scene: Scene) -> None:
        run_and_compare(trial, world, scene)

    both = Scene(Request(((1, 2, 1, 2),), rule=rule, repetition_penalty=1.8), "kary:branch=2,depth=2")
    search(trial, scenes(world.vocab, rows=3, **fields), test, (both,))
