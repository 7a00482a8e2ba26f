"""Every family of causal language models in the installed transformers: served token for token, or refused by name.

The whole sweep is slow; `python tests/hf/families.py` runs it alone and prints what is served, what is refused and why.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import (
    NAMED,
    REFUSED_VARIANTS,
    SETUPS,
    SMALL,
    VARIANTS,
    VOCABULARY,
    Outcome,
    expected_served,
    family_names,
    run,
    tiny_model,
)
from vision_tools import CONFIGS, vision_inputs, vision_model

from specplug import Speculator
from specplug_hf.probe import VERIFIED

Record = Callable[[str, object], None]


def check(outcome: Outcome, record_property: Record) -> None:
    record_property("family", [outcome.family, outcome.status, outcome.detail])  # for the summary, see conftest.py
    assert outcome.status not in ("wrong", "crashed"), outcome.detail
    if not expected_served(outcome.family):
        assert outcome.status in ("refused", "unbuilt"), f"{outcome.family} is served, but not in probe.VERIFIED"
        return
    assert outcome.status == "served", outcome.detail
    assert outcome.accepted > 1, "no path of a tree was ever accepted"
    assert outcome.error < 1e-4
    assert min(outcome.faults) > 10 * outcome.error, "this model would not show a forgotten mask or position"


@pytest.mark.parametrize("family", [name for name in NAMED if VARIANTS.get(name, (name,))[0] in family_names()])
def test_named_families_generate_what_plain_generation_does(family: str, record_property: Record) -> None:
    assert expected_served(family)
    check(run(family), record_property)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "llama4_text"])
def test_in_double_precision(family: str) -> None:
    outcome = run(family, torch.float64)
    assert outcome.status == "served", outcome.detail


@pytest.mark.parametrize("family", ["bloom", "falcon:alibi", "gpt_neo", "mamba", "moshi", "phi3:longrope", "xlm"])
def test_what_cannot_be_served_is_refused(family: str, record_property: Record) -> None:
    outcome = run(family)
    check(outcome, record_property)
    assert outcome.status == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in (*family_names(), *VARIANTS) if name not in NAMED])
def test_every_family_is_served_or_refused(family: str, record_property: Record) -> None:
    check(run(family), record_property)


def test_the_lists_name_what_exists() -> None:
    assert set(VARIANTS) >= REFUSED_VARIANTS
    assert {VARIANTS.get(name, (name,))[0] for name in NAMED} <= VERIFIED


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_vision_language_models(family: str, image: bool) -> None:
    model, inputs = vision_model(family), vision_inputs(family, image)
    plain = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert len(plain[:, inputs["input_ids"].shape[1] :].unique()) > 5
    for setup in SETUPS.values():
        ours = model.generate(
            **inputs, max_new_tokens=20, do_sample=False, assistant=Speculator(**setup, controller="fixed")
        )
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "gptj"])
def test_up_to_the_last_position(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of a row that is ahead may stand beyond the model's table of positions."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        monkeypatch.setitem(SMALL, name, 40)
    model = tiny_model(family)
    ids = torch.randint(3, VOCABULARY, (2, 13))
    call = dict(input_ids=ids, attention_mask=torch.ones_like(ids), max_length=40, do_sample=False)
    plain = model.generate(**call)
    for setup in SETUPS.values():
        assert torch.equal(model.generate(**call, assistant=Speculator(**setup, controller="fixed")), plain)
