"""Sampled decoding under SPECPLUG follows the target's law: chi-square of sequences against the law that transformers' logits give."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import references
import setups
import torch
from scipy.stats import chi2
from serving import served

DRAWS, LENGTH = 1000, 3
FALSE_ALARM = 1e-4  # of each test
LAWS = {
    "top-k": {"temperature": 1.3, "top_k": 4},
    "top-p": {"temperature": 0.8, "top_p": 0.7},
    "min-p": {"temperature": 1.0, "min_p": 0.15},
    "penalties": {
        "temperature": 1.0,
        "top_k": 4,
        "repetition_penalty": 1.6,
        "frequency_penalty": 0.8,
        "presence_penalty": 0.5,
    },
    "bias": {"temperature": 1.0, "top_k": 3, "logit_bias": {"300": 9.0, "17": 8.5}},
}
CASES = [
    pytest.param(("auto", False), id="auto-overlap"),
    pytest.param(("self-tree", True), id="self-tree-sync"),
    *(
        pytest.param((name, False), id=f"{name}-overlap", marks=pytest.mark.slow)
        for name in ("model-tree", "model-chain", "lookup", "none")
    ),
]


@torch.no_grad()
def next_law(prompt: list[int], written: list[int], params: dict[str, Any]) -> torch.Tensor:
    """The law of the next token, in plain words."""
    logits = references.target()(torch.tensor([prompt + written])).logits[0, -1].double()
    for token in set(written):
        logits[token] -= params.get("frequency_penalty", 0) * written.count(token) + params.get("presence_penalty", 0)
        rate = params.get("repetition_penalty", 1.0)
        logits[token] *= rate if logits[token] < 0 else 1 / rate
    for token, bias in params.get("logit_bias", {}).items():
        logits[int(token)] += bias
    law = (logits / params["temperature"]).softmax(-1)
    ordered, order = law.sort(descending=True)
    kept = torch.arange(len(law)) < params.get("top_k", len(law))
    kept &= ordered.cumsum(0) - ordered <= params.get("top_p", 1.0)
    kept &= ordered >= params.get("min_p", 0.0) * ordered[0]
    law = torch.zeros_like(law).scatter(0, order, ordered * kept)
    return law / law.sum()


def law_of_texts(prompt: list[int], params: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """Probability of every text of LENGTH tokens that is not negligible."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for text, mass in texts.items():
            law = next_law(prompt, list(text), params)
            for token in (law * mass > 1e-4).nonzero().flatten().tolist():
                longer[(*text, token)] = mass * float(law[token])
        texts = longer
    return texts


def p_value(seen: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Cells that expect fewer than five draws are pooled, with all texts that are not listed."""
    total = sum(seen.values())
    large = {text: total * p for text, p in law.items() if total * p >= 5}
    cells = [(seen[text], expected) for text, expected in large.items()]
    rest = total - sum(expected for _, expected in cells)
    if rest >= 5:
        cells.append((total - sum(count for count, _ in cells), rest))
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


def test_the_test_sees_another_law() -> None:
    law = {(a, b): pa * pb for (a, pa), (b, pb) in itertools.product([(0, 0.5), (1, 0.3), (2, 0.2)], repeat=2)}
    true = Counter({text: round(DRAWS * p) for text, p in law.items()})
    skewed = Counter({text: round(DRAWS * p * (1.25 if text[1] == 0 else 0.75)) for text, p in law.items()})
    assert p_value(true, law) > 0.5 and p_value(skewed, law) < FALSE_ALARM


@pytest.mark.parametrize("engine", CASES, indirect=True)
@pytest.mark.parametrize(
    "name", [name if name in ("top-k", "penalties") else pytest.param(name, marks=pytest.mark.slow) for name in LAWS]
)
def test_texts_follow_the_targets_law(engine: tuple[str, Any], name: str) -> None:
    _, running = engine
    params = LAWS[name]
    prompt = references.prompts(5)[2]
    sampling = params | {"max_new_tokens": LENGTH, "ignore_eos": True}
    answers = running.generate(input_ids=[prompt] * DRAWS, sampling_params=sampling)
    follows([answer["output_ids"] for answer in answers], prompt, params)


def follows(texts: list[list[int]], prompt: list[int], params: dict[str, Any]) -> None:
    """Assert that `texts` were drawn from the target's law."""
    seen = Counter(map(tuple, texts))
    assert len(seen) > 10
    assert p_value(seen, law_of_texts(prompt, params)) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_a_servers_texts_follow_the_targets_law(served_tree: Callable[..., list[list[int]]], name: str) -> None:
    prompt = references.prompts(5)[2]
    follows(served_tree([prompt] * DRAWS, LENGTH, LAWS[name]), prompt, LAWS[name])


@pytest.fixture(scope="module")
def served_tree(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[list[int]]]]:
    """Over HTTP: a draft model and a tree under the overlap scheduler."""
    with served(pair, setups.options(pair, "model-tree"), tmp_path_factory.mktemp("server") / "log") as ask:
        yield ask


@pytest.mark.parametrize("engine", CASES[1:2], indirect=True)
def test_a_seed_repeats_its_request_whatever_is_beside_it(engine: tuple[str, Any]) -> None:
    """With a fixed controller: `auto` goes by the clock, and another draft draws other texts of the same law."""
    _, running = engine
    prompts = references.prompts(6)
    params = [{"temperature": 1.0, "max_new_tokens": 24, "ignore_eos": True, "sampling_seed": 5 + i} for i in range(6)]
    together = [a["output_ids"] for a in running.generate(input_ids=prompts, sampling_params=params)]
    again = [a["output_ids"] for a in running.generate(input_ids=prompts, sampling_params=params)]
    (alone,) = running.generate(input_ids=prompts[3:4], sampling_params=params[3:4])
    assert together == again and alone["output_ids"] == together[3]
    (other,) = running.generate(input_ids=prompts[3:4], sampling_params=[params[3] | {"sampling_seed": 99}])
    assert other["output_ids"] != together[3]


@pytest.mark.parametrize("engine", CASES[:2], indirect=True)
def test_greedy_requests_stay_greedy_beside_sampled_ones(engine: tuple[str, Any]) -> None:
    _, running = engine
    prompts = references.prompts(8)
    params = [{"temperature": float(i % 2), "max_new_tokens": 20, "ignore_eos": True} for i in range(8)]
    answers = running.generate(input_ids=prompts, sampling_params=params)
    for prompt, answer in list(zip(prompts, answers, strict=True))[::2]:
        assert answer["output_ids"] == references.greedy(prompt, 20)
