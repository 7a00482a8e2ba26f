"""Greedy decoding under SPECPLUG is transformers' own, token for token, whoever drafts and whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import references

NEW_TOKENS = 32
REQUESTS = 24


def expected() -> tuple[list[list[int]], list[list[int]]]:
    prompts = references.prompts(REQUESTS)
    return prompts, [references.greedy(prompt, NEW_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module")
def wanted() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and transformers' answers."""
    return expected()


def answers(
    running: Any, prompts: list[list[int]], new_tokens: int = NEW_TOKENS, **sampling: Any
) -> list[dict[str, Any]]:
    params = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True} | sampling
    return running.generate(input_ids=prompts, sampling_params=params)


def test_concurrent_requests_of_unequal_lengths(engine: tuple[str, Any], wanted: Any) -> None:
    name, running = engine
    prompts, texts = wanted
    got = answers(running, prompts)
    assert [answer["output_ids"] for answer in got] == texts
    again = answers(running, prompts)  # and so with the prompts in the radix cache
    assert [answer["output_ids"] for answer in again] == texts
    if name not in ("none", "auto"):  # on a busy machine `auto` may well find that nothing pays
        assert sum(answer["meta_info"]["spec_accept_length"] for answer in again) / REQUESTS > 1.05


def test_a_request_alone_is_the_request_in_a_batch(engine: tuple[str, Any], wanted: Any) -> None:
    _, running = engine
    prompts, texts = wanted
    for i in (0, 11, 23):
        (alone,) = answers(running, prompts[i : i + 1])
        assert alone["output_ids"] == texts[i]


def test_lengths_end_where_they_should(engine: tuple[str, Any], wanted: Any) -> None:
    _, running = engine
    prompts, texts = wanted
    params = [{"temperature": 0.0, "max_new_tokens": n, "ignore_eos": True} for n in (1, 2, 3, 7, 12)]
    got = running.generate(input_ids=prompts[:5], sampling_params=params)
    for answer, text, asked in zip(got, texts, params, strict=False):
        assert answer["output_ids"] == text[: asked["max_new_tokens"]]
        assert answer["meta_info"]["finish_reason"]["type"] == "length"
