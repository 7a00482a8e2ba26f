"""`return_dict_in_generate`: every field as plain generation returns it, and the returned cache good to go on with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generate_tools import Models, disturbed, prompt, same, same_cache, same_fields, speculator, tiny

LENGTH, NEW = 11, 12
ASKED = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
    "output_attentions": True,
}  # fmt: skip
TOLERANCE = 2e-4  # float32: logits of about 10, in another order of summation


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def models(request: pytest.FixtureRequest) -> Models:
    # float32: transformers' eager softmax is float32 and makes NaN of a float64 mask where padding comes first
    model = tiny(attention=request.param, dtype="float32")
    return Models(model, disturbed(model, 0.05), model)


def asked(models: Models) -> dict[str, Any]:
    """sdpa returns no attention weights: plain refuses to be asked for them."""
    eager = models.target.config._attn_implementation == "eager"
    return ASKED if eager else {**ASKED, "output_attentions": False}


def ends(models: Models, padding: str) -> list[int]:
    """End tokens that stop the three rows at steps 4, 1 and 8."""
    free = models.target.generate(**prompt(3, padding), max_new_tokens=NEW)[:, LENGTH:]
    return [int(free[row, step]) for row, step in enumerate((4, 1, 8))]


def compare(models: Models, drafter: str, tree: str, rows: int, padding: str, **call: Any) -> Any:
    inputs = prompt(rows, padding)
    call = asked(models) | {"max_new_tokens": NEW} | call
    plain = models.target.generate(**inputs, **call)
    ours = models.target.generate(**inputs, **call, assistant=speculator(drafter, models, tree))
    same_but_masked(ours, plain, inputs["attention_mask"])
    return plain


def same_but_masked(ours: Any, plain: Any, mask: Any) -> None:
    """All fields; of the cache, the columns that anything may read."""
    cache, expected = ours.past_key_values, plain.past_key_values
    same_cache(cache, expected, mask, TOLERANCE)
    ours.past_key_values = plain.past_key_values = None
    same_fields(ours, plain, TOLERANCE)
    ours.past_key_values, plain.past_key_values = cache, expected


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("drafter", "tree"), [("none", "chain"), ("model", "sequoia"), ("self", "chain"), ("self-streaming", "kary")]
)
def test_all_fields(models: Models, drafter: str, tree: str, rows: int, padding: str):
    compare(models, drafter, tree, rows, padding)


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("drafter", ["model", "self"])
def test_all_fields_past_the_end_of_a_row(models: Models, drafter: str, padding: str):
    plain = compare(models, drafter, "sequoia", 3, padding, eos_token_id=ends(models, padding))
    assert len(plain.scores) > 5 and int((plain.sequences[:, -1] == 0).sum()) >= 1


@pytest.mark.parametrize("options", [
    {"repetition_penalty": 1.5, "min_new_tokens": 3}, {"no_repeat_ngram_size": 2}, {"do_sample": True, "top_k": 1, "temperature": 0.7},
])  # fmt: skip
def test_scores_after_processors_past_the_end_of_a_row(models: Models, options: dict[str, Any]):
    compare(models, "model", "sequoia", 3, "left", eos_token_id=ends(models, "left"), **options)


def test_criteria_end_rows_that_end_tokens_do_not(models: Models):
    free = models.target.generate(**prompt(3, "left"), max_new_tokens=NEW)[:, LENGTH:]

    def stop(input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids[:, -1] == free[:, 3].where(torch.arange(3) < 2, 96)

    compare(models, "model", "sequoia", 3, "left", stopping_criteria=[stop], eos_token_id=95)


@pytest.mark.parametrize("new", [1, 2])
def test_one_and_two_steps(models: Models, new: int):
    compare(models, "model", "sequoia", 3, "left", max_new_tokens=new)


@pytest.mark.parametrize("field", ["output_scores", "output_logits", "output_hidden_states", None])
def test_one_field_at_a_time(models: Models, field: str | None):
    inputs = prompt(3, "left")
    call = {"max_new_tokens": 5, "return_dict_in_generate": True} | ({field: True} if field else {})
    plain = models.target.generate(**inputs, **call)
    ours = models.target.generate(**inputs, **call, assistant=speculator("model", models))
    same_but_masked(ours, plain, inputs["attention_mask"])


def test_fields_without_return_dict_are_not_returned(models: Models):
    call = {"max_new_tokens": 5, "output_scores": True, "return_dict_in_generate": False}
    same(
        models.target.generate(**prompt(2), **call, assistant=speculator("model", models)),
        models.target.generate(**prompt(2), **call),
    )


def test_attentions_of_sdpa_are_plains_answer():
    model = tiny(dtype="float32")
    call = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_attentions": True}
    outcomes = []
    for assistant in ({}, {"assistant": "self"}):
        try:
            outcomes.append(model.generate(**prompt(1), **call, **assistant).attentions)
        except ValueError as error:
            outcomes.append(str(error))
    same_nested_or_text(*reversed(outcomes))


def same_nested_or_text(ours: Any, plain: Any) -> None:
    from generate_tools import same_nested

    if isinstance(plain, str):
        assert ours == plain
    else:
        same_nested(ours, plain, "attentions", TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3])
def test_prefill_in_chunks(models: Models, rows: int):
    compare(models, "model", "sequoia", rows, "left", prefill_chunk_size=4, output_attentions=False)


# --- going on with what was returned


@pytest.mark.parametrize("first", ["plain", "ours"])
@pytest.mark.parametrize("second", ["plain", "ours"])
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_returned_cache_goes_on(fp64: Models, first: str, second: str, padding: str, stopped: bool):
    model, inputs = fp64.target, prompt(3, padding)
    call = {"max_new_tokens": 7, "return_dict_in_generate": True}
    if stopped:
        call["eos_token_id"] = ends(fp64, padding)

    def run(who: str, **more: Any) -> Any:
        spec = {"assistant": speculator("model", fp64)} if who == "ours" else {}
        return model.generate(**(call | more), **spec)

    results = {}
    for way in (("plain", "plain"), (first, second)):
        start = run(way[0], **inputs)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, start.sequences.shape[1] - LENGTH), value=1)
        results[way] = run(
            way[1], input_ids=start.sequences, attention_mask=mask, past_key_values=start.past_key_values,
            eos_token_id=None,
        )  # fmt: skip
    same(results[first, second].sequences, results["plain", "plain"].sequences)
    same_cache(
        results[first, second].past_key_values, results["plain", "plain"].past_key_values, inputs["attention_mask"]
    )
