"""What a server does besides plain decoding, under SPECPLUG: endings, streams, log-probabilities, grammars, load, aborts."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import pytest
import references
import torch

CASES = [pytest.param(("auto", False), id="auto-overlap"), pytest.param(("self-tree", True), id="self-tree-sync")]
pytestmark = pytest.mark.parametrize("engine", CASES, indirect=True)
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def one(running: Any, prompt: list[int], sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
    (answer,) = running.generate(input_ids=[prompt], sampling_params=[GREEDY | sampling], **more)
    return answer


def test_a_stop_token_ends_where_plain_decoding_ends(engine: Any) -> None:
    prompt = references.prompts(4)[1]
    text = references.greedy(prompt, 30)
    for stop in {text[4], text[11], text[17]}:
        answer = one(engine[1], prompt, {"max_new_tokens": 30, "stop_token_ids": [stop], "ignore_eos": False})
        assert answer["output_ids"] == text[: text.index(stop) + 1]
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_a_stop_string_ends_the_text(engine: Any) -> None:
    prompt = references.prompts(4)[2]
    text = references.tokenizer().decode(references.greedy(prompt, 40))
    word = text[len(text) // 2 :][:3]
    answer = one(engine[1], prompt, {"max_new_tokens": 40, "stop": word})
    assert answer["text"] == text[: text.index(word)]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": word}


def test_min_new_tokens_keeps_stop_tokens_away(engine: Any) -> None:
    prompt = references.prompts(4)[3]
    stop = references.greedy(prompt, 3)[2]
    answer = one(
        engine[1], prompt, {"max_new_tokens": 24, "min_new_tokens": 9, "stop_token_ids": [stop], "ignore_eos": False}
    )
    ids = answer["output_ids"]
    assert len(ids) >= 9 and stop not in ids[:9]


def test_a_stream_adds_up(engine: Any) -> None:
    prompt = references.prompts(4)[0]
    pieces = list(engine[1].generate(input_ids=prompt, sampling_params=GREEDY | {"max_new_tokens": 30}, stream=True))
    assert len(pieces) > 2
    so_far: list[int] = []
    for piece in pieces:  # SGLang streams either what is new or all that there is
        ids = piece["output_ids"]
        so_far = ids if ids[: len(so_far)] == so_far else so_far + ids
    assert so_far == references.greedy(prompt, 30)


def test_log_probabilities_are_the_targets(engine: Any) -> None:
    prompt = references.prompts(6)[4]
    answer = one(engine[1], prompt, {"max_new_tokens": 25}, return_logprob=True, top_logprobs_num=2)
    ids = answer["output_ids"]
    with torch.no_grad():
        law = references.target()(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    got = answer["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in got] == ids
    assert torch.allclose(
        torch.tensor([entry[0] for entry in got]), law.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=1e-3
    )
    for place, entries in enumerate(answer["meta_info"]["output_top_logprobs"]):
        assert torch.allclose(torch.tensor([e[0] for e in entries]), law[place].topk(2).values, atol=1e-3)


def test_penalties_are_those_of_plain_decoding(engine: Any) -> None:
    prompt = references.prompts(6)[5]
    answer = one(engine[1], prompt, {"max_new_tokens": 30, "repetition_penalty": 1.4, "frequency_penalty": 0.6})
    written: list[int] = []
    for _ in range(30):
        with torch.no_grad():
            logits = references.target()(torch.tensor([prompt + written])).logits[0, -1]
        for token in set(written):
            logits[token] -= 0.6 * written.count(token)
            logits[token] *= 1.4 if logits[token] < 0 else 1 / 1.4
        written.append(int(logits.argmax()))
    assert answer["output_ids"] == written


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer"}},
    "required": ["name", "size"],
}


def test_a_json_schema_is_kept(engine: Any) -> None:
    prompts = references.prompts(4)
    params = [GREEDY | {"max_new_tokens": 90, "json_schema": json.dumps(SCHEMA), "ignore_eos": False} for _ in prompts]
    done = 0
    for answer in engine[1].generate(input_ids=prompts, sampling_params=params):
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            found = json.loads(answer["text"])
            assert set(found) == {"name", "size"} and isinstance(found["size"], int)
            done += 1
    assert done


def test_a_regular_expression_is_kept_beside_free_requests(engine: Any) -> None:
    prompts = references.prompts(4)
    pattern = r"(ab|cd){3,9} [0-9]{2,4}!"
    params = [GREEDY | {"max_new_tokens": 40}] * 4
    params[1] = GREEDY | {"max_new_tokens": 60, "regex": pattern, "ignore_eos": False}
    answers = engine[1].generate(input_ids=prompts, sampling_params=params)
    assert re.fullmatch(pattern, answers[1]["text"])
    for i in (0, 2, 3):
        assert answers[i]["output_ids"] == references.greedy(prompts[i], 40)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_mixed_up_under_load_with_cancellations(engine: Any, count: int) -> None:
    """Requests arrive in random order; some are cancelled in mid-stream; all others say what they say alone."""
    running, dice = engine[1], random.Random(3)
    prompts = references.prompts(12)
    lengths = [dice.randint(1, 40) for _ in range(count)]
    wanted = [references.greedy(prompt, 40) for prompt in prompts]

    async def ask(i: int) -> tuple[int, list[int] | None]:
        await asyncio.sleep(dice.random() * count / 30)
        which, cancelled = i % 12, i % 5 == 0
        stream = await running.async_generate(
            input_ids=prompts[which],
            sampling_params=GREEDY | {"max_new_tokens": lengths[i]},
            stream=True,
            rid=f"r{i}-{count}-{id(engine)}",
        )
        ids: list[int] = []
        async for piece in stream:
            new = piece["output_ids"]
            ids = new if len(new) >= len(ids) and new[: len(ids)] == ids else ids + new
            if cancelled and len(ids) > 3:
                running.tokenizer_manager.abort_request(rid=f"r{i}-{count}-{id(engine)}")
                return which, None
        return which, ids

    async def all_of_them() -> list[tuple[int, list[int] | None]]:
        return await asyncio.gather(*(ask(i) for i in range(count)))

    results = running.loop.run_until_complete(all_of_them())
    assert len(results) == count
    for i, (which, ids) in enumerate(results):
        if ids is not None:
            assert ids == wanted[which][: lengths[i]]
    assert one(running, prompts[0], {"max_new_tokens": 40})["output_ids"] == wanted[0]
