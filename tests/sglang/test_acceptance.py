"""The same set-up accepts as much in SGLang as in transformers: the same draft, tree, prompts and texts."""

from __future__ import annotations

from typing import Any

import pytest
import references
import setups
import torch

import specplug

NEW_TOKENS = 64
CASES = [
    pytest.param(("model-chain", False), marks=pytest.mark.slow),
    pytest.param(("model-tree", False), marks=pytest.mark.slow),
    pytest.param(("self-tree", True)),
    pytest.param(("heads", True)),
    pytest.param(("lookahead", True), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("engine", CASES, indirect=True, ids=lambda case: case[0])
def test_accepted_lengths_are_those_of_transformers(engine: tuple[str, Any], pair: Any) -> None:
    name, running = engine
    prompts = references.prompts(10, shortest=40, longest=140)
    params = {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    answers = running.generate(input_ids=prompts, sampling_params=params)
    rounds = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    draft = {"draft_model": str(pair.draft)} if name.startswith("model") else {}
    theirs = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        speculator = specplug.Speculator(**setups.SETUPS[name], **draft)
        ids = torch.tensor([prompt])
        options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        text = references.target().generate(ids, attention_mask=torch.ones_like(ids), assistant=speculator, **options)
        assert text[0, len(prompt) :].tolist() == answer["output_ids"]
        theirs += speculator.stats.rounds
    assert abs(rounds - theirs) <= 0.03 * theirs
