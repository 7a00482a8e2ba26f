"""Sampling: the law of plain generation, exactly; seeds; and rows that draw the same alone as in a batch.

The chi-square tests compare N short generations with the law of the tiny model, enumerated over all continuations with
transformers' own processors. N and the seeds are fixed, so a test passes always or never; a correct program fails one
with probability ALARM when a seed is chosen anew.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from generate_tools import Models, disturbed, prompt, same, speculator, tiny
from scipy.stats import chi2
from torch import Tensor

from specplug import OptionError, verify
from specplug.drafters import expand
from specplug_hf.host import HFHost

VOCAB, LENGTH, NEW, N, ALARM = 7, 6, 4, 4000, 1e-5
WARPERS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "temperature": {"top_k": 0, "temperature": 0.7},
    "top_k": {"top_k": 3, "temperature": 1.3},
    "top_p": {"top_k": 0, "top_p": 0.8, "temperature": 1.5},
    "min_p": {"top_k": 0, "min_p": 0.2, "temperature": 1.4},
    "repetition": {"top_k": 0, "repetition_penalty": 1.6},
}


@pytest.fixture(scope="module")
def small() -> Models:
    """A vocabulary of seven tokens, so that whole continuations can be enumerated."""
    sizes = dict(vocab=VOCAB, dtype="float32", hidden_size=16, intermediate_size=16, num_attention_heads=2,
                 num_key_value_heads=1, pad_token_id=None, bos_token_id=None)  # fmt: skip
    target = tiny(scale=0.35, **sizes)
    return Models(target, disturbed(target, 0.25), tiny(seed=8, scale=0.3, **sizes))


def ids() -> dict[str, Tensor]:
    tokens = torch.tensor([[3, 5, 2, 3, 5, 1]])
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def exact_law(models: Models, options: dict[str, Any]) -> Tensor:
    """P of every continuation of NEW tokens, [VOCAB] * NEW, by transformers' own scores at every prefix."""
    key = ("law", tuple(options.items()))
    if key not in models.expected:
        law = torch.ones((), dtype=torch.float64)
        for depth in range(NEW):
            tails = torch.tensor(list(itertools.product(range(VOCAB), repeat=depth)), dtype=torch.int64)
            prefixes = torch.cat([ids()["input_ids"].expand(VOCAB**depth, -1), tails.view(VOCAB**depth, depth)], dim=1)
            scores = models.target.generate(
                prefixes, attention_mask=torch.ones_like(prefixes), max_new_tokens=1, do_sample=True,
                return_dict_in_generate=True, output_scores=True, **options,
            ).scores[0]  # fmt: skip
            law = law[..., None] * scores.double().softmax(-1).view([VOCAB] * (depth + 1))
        models.expected[key] = law
    return models.expected[key]


def p_value(samples: Tensor, law: Tensor) -> float:
    """Of the chi-square test of `samples` [N, NEW] against `law`; cells that expect fewer than five are put together."""
    cell = torch.zeros(len(samples), dtype=torch.int64)
    for column in range(NEW):
        cell = cell * VOCAB + samples[:, column]
    seen = torch.bincount(cell, minlength=law.numel()).double()
    expected = law.flatten() * len(samples)
    if bool((seen[expected == 0] > 0).any()):
        return 0.0
    big = expected >= 5
    seen = torch.cat([seen[big], seen[~big].sum()[None]])
    expected = torch.cat([expected[big], expected[~big].sum()[None]])
    if float(expected[-1]) < 5:
        seen[-2] += seen[-1]
        expected[-2] += expected[-1]
        seen, expected = seen[:-1], expected[:-1]
    return float(chi2.sf(float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1))


def sampled(models: Models, spec: Any, options: dict[str, Any], n: int = N) -> Tensor:
    out = models.target.generate(
        **ids(), max_new_tokens=NEW, do_sample=True, num_return_sequences=n, **options, assistant=spec
    )
    return out[:, LENGTH:]


@pytest.mark.parametrize("warper", [
    name if name in ("plain", "top_p") else pytest.param(name, marks=pytest.mark.slow) for name in WARPERS
])  # fmt: skip
@pytest.mark.parametrize(("drafter", "tree"), [
    ("model", "chain:length=3"), ("model", "kary:branch=3,depth=2"), ("self-streaming", "chain:length=3"),
    ("self-streaming", "sequoia:size=7,depth=3"), ("prompt_lookup", "chain:length=3"), ("stranger", "sequoia:size=7,depth=3"),
    ("none", "chain:length=3"),
])  # fmt: skip
def test_the_law_is_plains(small: Models, drafter: str, tree: str, warper: str):
    # the draft reads three of the six tokens and more, or it would be the target itself
    policy = {"kv_policy": "streaming:sink=1,window=2"} if "streaming" in drafter else {}
    spec = speculator(drafter, small, tree, seed=11, **policy)
    assert p_value(sampled(small, spec, WARPERS[warper]), exact_law(small, WARPERS[warper])) > ALARM
    if drafter in ("model", "self-streaming", "prompt_lookup"):
        assert spec.stats.accepted_length > 1.05  # something was accepted, or nothing was tested
        assert spec.stats.acceptance_rate < 0.999


@pytest.mark.parametrize("warper", ["plain", "top_k"])
def test_plain_sampling_passes_the_same_test(small: Models, warper: str):
    assert p_value(sampled(small, None, WARPERS[warper]), exact_law(small, WARPERS[warper])) > ALARM


# --- faults that the test must see


def residual_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_residual", lambda p, q, token: p)


def drawn_from_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    original = expand.__globals__["_draw_children"]

    def draw(batch: Any, law: Tensor, *rest: Any) -> Tensor:
        return original(batch, (law.log() * 0.3).softmax(-1), *rest)

    monkeypatch.setitem(expand.__globals__, "_draw_children", draw)


def the_targets_temperature_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HFHost.distributions

    def distributions(self: HFHost, batch: Any, logits: Tensor, trees: Any) -> Any:
        return original(self, batch, logits * (1.3 if trees.num_nodes > 1 else 1.0), trees)

    monkeypatch.setattr(HFHost, "distributions", distributions)


def accepted_by_the_same_number_as_the_bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    original = verify.verify_sampled
    from specplug import round as rounds

    def verify_sampled(trees: Any, probs: Tensor, accept: Tensor, bonus: Tensor) -> Any:
        return original(trees, probs, bonus[:, None].expand_as(accept), bonus)

    monkeypatch.setattr(rounds, "verify_sampled", verify_sampled)


@pytest.mark.parametrize("fault", [
    residual_skipped, drawn_from_another_law, the_targets_temperature_forgotten, accepted_by_the_same_number_as_the_bonus,
], ids=lambda f: f.__name__)  # fmt: skip
def test_a_fault_is_seen(small: Models, fault: Any, monkeypatch: pytest.MonkeyPatch):
    law = exact_law(small, WARPERS["plain"])
    fault(monkeypatch)
    assert (
        p_value(sampled(small, speculator("model", small, "kary:branch=3,depth=2", seed=11), WARPERS["plain"]), law)
        < ALARM
    )


# --- seeds


CALL = {"max_new_tokens": 16, "do_sample": True, "top_k": 0}


def run(models: Models, spec: Any, rows: int = 3, **more: Any) -> Tensor:
    return models.target.generate(**prompt(rows, "left"), **(CALL | more), assistant=spec)


@pytest.mark.parametrize("drafter", ["none", "model", "self-streaming", "prompt_lookup"])
def test_manual_seed_reproduces(fp64: Models, drafter: str):
    spec, outs = speculator(drafter, fp64), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs.append(run(fp64, spec))
    same(outs[0], outs[1])
    assert outs[0].tolist() != outs[2].tolist()


def test_without_a_seed_every_call_is_new(fp64: Models):
    spec = speculator("model", fp64)
    assert run(fp64, spec).tolist() != run(fp64, spec).tolist()


def test_a_seed_of_the_speculator_reproduces_and_leaves_the_global_generator_alone(fp64: Models):
    state = torch.get_rng_state()
    spec = speculator("model", fp64, seed=3)
    same(run(fp64, spec), run(fp64, spec))
    assert torch.equal(torch.get_rng_state(), state)
    assert run(fp64, spec).tolist() != run(fp64, speculator("model", fp64, seed=4)).tolist()


def test_a_generator_as_seed(fp64: Models):
    generator = torch.Generator().manual_seed(3)
    spec = speculator("model", fp64, seed=generator)
    first, second = run(fp64, spec), run(fp64, spec)
    assert first.tolist() != second.tolist()
    generator.manual_seed(3)
    same(run(fp64, spec), first)


def test_greedy_does_not_touch_the_generator(fp64: Models):
    state = torch.get_rng_state()
    fp64.target.generate(**prompt(2), max_new_tokens=5, assistant=speculator("model", fp64))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tree", ["chain", "sequoia"])
@pytest.mark.parametrize("drafter", ["none", "model", "self-streaming", "prompt_lookup"])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_alone_draws_what_it_draws_in_a_batch(fp64: Models, drafter: str, tree: str, row: int):
    together = run(fp64, speculator(drafter, fp64, tree, seed=[7, 8, 2**70]))[row]
    spec = speculator(drafter, fp64, tree, seed=[7, 8, 2**70][row])
    inputs = {name: value[row : row + 1, row + 1 :] for name, value in prompt(3, "left").items()}  # no padding either
    alone = fp64.target.generate(**inputs, **CALL, assistant=spec)[0]
    assert together[11:].tolist() == alone[11 - row - 1 :].tolist()


def test_a_seed_for_each_row_needs_as_many(fp64: Models):
    with pytest.raises(OptionError, match="2 seeds for 3 rows"):
        run(fp64, speculator("model", fp64, seed=[1, 2]))


def test_sequences_of_one_prompt_differ(fp64: Models):
    out = fp64.target.generate(**prompt(1), **CALL, num_return_sequences=6, assistant=speculator("model", fp64, seed=2))
    assert len({tuple(row) for row in out.tolist()}) == 6
