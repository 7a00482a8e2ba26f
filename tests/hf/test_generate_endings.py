"""Where a generation ends: end tokens, lengths, times, stop strings, criteria of one's own; and what streamers see."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from generate_tools import PAD, VOCAB, Models, Oracle, prompt, same, speculator
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextStreamer

from specplug import Speculator

LENGTH, NEW = 11, 20
SETUPS = ("none", "self", "model", "self-streaming", "hostile")


def answers(models: Models, padding: str = "left") -> Tensor:
    """What plain generation writes when nothing ends it: [3, NEW]."""
    key = ("answers", padding)
    if key not in models.expected:
        models.expected[key] = models.target.generate(**prompt(3, padding), max_new_tokens=NEW)[:, LENGTH:]
    return models.expected[key]


def oracle(models: Models, padding: str = "left") -> Speculator:
    """Blocks of five right tokens, so that everything happens inside a block."""
    return Speculator(drafter=Oracle(answers(models, padding), LENGTH), tree="chain:length=5", controller="fixed")


def check(
    models: Models, padding: str = "left", spec: Speculator | None = None, make: Any = dict, **call: Any
) -> Tensor:
    """Ours against plain with the same arguments; `make()` gives arguments that must be fresh for each call."""
    inputs = prompt(3, padding)
    plain = models.target.generate(**inputs, **({"max_new_tokens": NEW} | call), **make())
    spec = spec or oracle(models, padding)
    same(models.target.generate(**inputs, **({"max_new_tokens": NEW} | call), **make(), assistant=spec), plain)
    return plain


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("steps", [(0, 4, 9), (3, 3, 17), (1, 7, 19), (0, 0, 0)])
def test_rows_that_hit_end_tokens_at_different_times(fp64: Models, padding: str, steps: tuple[int, ...]):
    ends = [int(answers(fp64, padding)[row, step]) for row, step in enumerate(steps)]
    plain = check(fp64, padding, eos_token_id=ends)
    assert plain.shape[1] <= LENGTH + max(steps) + 1


@pytest.mark.parametrize("setup", SETUPS)
def test_an_end_token_whoever_drafts(fp64: Models, setup: str):
    ends = [int(answers(fp64)[0, 2]), int(answers(fp64)[2, 11])]
    check(fp64, spec=speculator(setup, fp64), eos_token_id=ends)


def test_the_end_token_as_padding(fp64: Models):
    end = int(answers(fp64)[1, 5])
    check(fp64, eos_token_id=end, pad_token_id=end)


def test_no_end_token_overrides_the_models(fp64: Models):
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=None, pad_token_id=PAD)
    check(fp64, generation_config=config, max_new_tokens=NEW)


@pytest.mark.parametrize("call", [
    {"min_new_tokens": 8}, {"min_length": LENGTH + 12}, {"min_new_tokens": 8, "max_new_tokens": 9},
    {"forced_eos_token_id": 5}, {"exponential_decay_length_penalty": (3, 1.4)},
])  # fmt: skip
def test_what_bends_the_end(fp64: Models, call: dict[str, Any]):
    ends = [int(answers(fp64)[0, 2]), int(answers(fp64)[1, 6])]
    check(fp64, eos_token_id=ends, **call)


@pytest.mark.parametrize("new", [1, 2, 3, 7])
@pytest.mark.parametrize("setup", SETUPS)
def test_max_new_tokens_is_never_overrun(fp64: Models, setup: str, new: int):
    assert check(fp64, spec=speculator(setup, fp64), max_new_tokens=new).shape[1] == LENGTH + new


def test_max_length(fp64: Models):
    assert check(fp64, max_new_tokens=None, max_length=LENGTH + 6).shape[1] == LENGTH + 6


def test_default_length(fp64: Models):
    inputs = prompt(3, "left")
    same(fp64.target.generate(**inputs, assistant=oracle(fp64)), fp64.target.generate(**inputs))


def test_no_new_tokens_is_plains_error(fp64: Models):
    inputs = prompt(3, "left")
    with pytest.raises(ValueError) as plain:
        fp64.target.generate(**inputs, max_new_tokens=0)
    with pytest.raises(ValueError) as ours:
        fp64.target.generate(**inputs, max_new_tokens=0, assistant=oracle(fp64))
    assert str(ours.value) == str(plain.value)


def test_max_time_ends_at_once_when_it_is_over(fp64: Models):
    assert check(fp64, max_time=1e-9).shape[1] == LENGTH + 1


def test_max_time_that_is_not_reached(fp64: Models):
    assert check(fp64, max_time=1e6).shape[1] == LENGTH + NEW


def test_max_time_ends_a_long_call(fp64: Models):
    class Slow(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            time.sleep(0.01)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    out = fp64.target.generate(
        **prompt(3, "left"), max_new_tokens=300, max_time=0.3, stopping_criteria=[Slow()], assistant=oracle(fp64)
    )
    assert LENGTH + 1 < out.shape[1] < LENGTH + 60


# --- stop strings


@pytest.mark.parametrize("place", ["call", "generation_config"])
def test_stop_strings(fp64: Models, tokenizer: Any, place: str):
    strings = [tokenizer.decode(answers(fp64)[row, step : step + 2]) for row, step in enumerate((3, 8, 12))]
    inputs = prompt(3, "left")
    call: dict[str, Any] = {"max_new_tokens": NEW, "tokenizer": tokenizer}
    if place == "call":
        call["stop_strings"] = strings
    else:
        config = GenerationConfig(max_new_tokens=NEW, stop_strings=strings, pad_token_id=PAD)
        call["generation_config"] = config
    plain = fp64.target.generate(**inputs, **call)
    assert plain.shape[1] < LENGTH + NEW
    same(fp64.target.generate(**inputs, **call, assistant=oracle(fp64)), plain)
    if place == "generation_config":
        assert config.stop_strings == strings


def test_stop_strings_without_a_tokenizer_are_plains_error(fp64: Models):
    with pytest.raises(ValueError, match="tokenizer"):
        fp64.target.generate(**prompt(1), max_new_tokens=4, stop_strings=["x"], assistant=speculator("self", fp64))


# --- criteria of one's own


class LastToken(StoppingCriteria):
    """Ends a row (or, `whole`, all of them) when its last token is one of `tokens`; remembers every call."""

    def __init__(self, tokens: list[int], whole: bool = False) -> None:
        self.tokens, self.whole = torch.tensor(tokens), whole
        self.calls: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self.calls.append(input_ids.tolist())
        hit = torch.isin(input_ids[:, -1], self.tokens)
        return hit.any().expand(len(hit)) if self.whole else hit


@pytest.mark.parametrize("ending", [True, False])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("steps", [(1, 5, 9), (2, 2, 3), (0, 13, 13)])
def test_a_last_token_criterion_inside_a_block(fp64: Models, whole: bool, ending: bool, steps: tuple[int, ...]):
    tokens = [int(answers(fp64)[row, step]) for row, step in enumerate(steps)]
    seen: list[LastToken] = []

    def make() -> dict[str, Any]:
        seen.append(LastToken(tokens, whole))
        return {"stopping_criteria": StoppingCriteriaList([seen[-1]])}

    # with an end token rows that have stopped are padded; without, they go on until the last one stops
    check(fp64, make=make, **({"eos_token_id": VOCAB - 1} if ending else {}))
    plain, ours = seen
    assert ours.calls == plain.calls  # every step is shown once, in the order and shape of plain decoding


def test_criteria_are_given_the_scores_so_far(fp64: Models):
    class Scores(StoppingCriteria):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            self.seen.append(None if scores is None else [s.argmax(-1).tolist() for s in scores])
            return torch.zeros(len(input_ids), dtype=torch.bool)

    for asked in ({}, {"return_dict_in_generate": True, "output_scores": True}):
        plain, ours = Scores(), Scores()
        inputs = prompt(3, "left")
        fp64.target.generate(**inputs, max_new_tokens=7, stopping_criteria=[plain], **asked)
        fp64.target.generate(**inputs, max_new_tokens=7, stopping_criteria=[ours], **asked, assistant=oracle(fp64))
        assert ours.seen == plain.seen


# --- streamers


class Recorder:
    """What a streamer is given, as it comes."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.events.append((tuple(value.shape), value.dtype, str(value.device), value.tolist()))

    def end(self) -> None:
        self.events.append("end")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ends", [None, (4, 2, 9)])
@pytest.mark.parametrize("new", [1, NEW])
def test_a_streamer_sees_what_plain_shows_it(fp64: Models, rows: int, ends: Any, new: int):
    call: dict[str, Any] = {"max_new_tokens": new}
    if ends is not None:
        call["eos_token_id"] = [int(answers(fp64)[row, step]) for row, step in enumerate(ends)]
    plain, ours = Recorder(), Recorder()
    inputs = {k: v[:rows] for k, v in prompt(3, "left").items()}
    fp64.target.generate(**inputs, **call, streamer=plain)
    fp64.target.generate(**inputs, **call, streamer=ours, assistant=oracle(fp64))
    assert ours.events == plain.events


def test_text_streamer(fp64: Models, tokenizer: Any, capsys: pytest.CaptureFixture[str]):
    inputs = prompt(1)
    fp64.target.generate(**inputs, max_new_tokens=NEW, streamer=TextStreamer(tokenizer, skip_prompt=True))
    plain = capsys.readouterr().out
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    fp64.target.generate(**inputs, max_new_tokens=NEW, streamer=streamer, assistant=speculator("model", fp64))
    assert capsys.readouterr().out == plain != ""


def test_text_streamer_refuses_batches_as_with_plain(fp64: Models, tokenizer: Any):
    for assistant in ({}, {"assistant": speculator("model", fp64)}):
        with pytest.raises(ValueError, match="batch size 1"):
            fp64.target.generate(**prompt(3), max_new_tokens=4, streamer=TextStreamer(tokenizer), **assistant)


# --- how a call may be written


def test_a_generation_config_object(fp64: Models):
    config = GenerationConfig(max_new_tokens=9, eos_token_id=int(answers(fp64)[0, 3]), pad_token_id=PAD)
    before = config.to_dict()
    check(fp64, generation_config=config, max_new_tokens=None)
    assert config.to_dict() == before


def test_positional_arguments(fp64: Models):
    inputs = prompt(3)
    config = GenerationConfig(max_new_tokens=9, pad_token_id=PAD)
    plain = fp64.target.generate(inputs["input_ids"], config, attention_mask=inputs["attention_mask"])
    same(
        fp64.target.generate(
            inputs["input_ids"], config, attention_mask=inputs["attention_mask"], assistant=speculator("self", fp64)
        ),
        plain,
    )


def test_an_argument_given_twice_is_a_type_error(fp64: Models):
    with pytest.raises(TypeError, match="multiple values"):
        fp64.target.generate(prompt(1)["input_ids"], inputs=prompt(1)["input_ids"], assistant="self")


@pytest.mark.parametrize("rows", [1, 2])
def test_several_sequences_of_each_prompt(fp64: Models, rows: int):
    inputs = {k: v[:rows] for k, v in prompt(3, "left").items()}
    # greedy sequences of one prompt are equal: plain allows it only when sampling from one candidate
    call = {"max_new_tokens": 8, "num_return_sequences": 3, "do_sample": True, "top_k": 1}
    plain = fp64.target.generate(**inputs, **call)
    ours = fp64.target.generate(**inputs, **call, assistant=speculator("model", fp64))
    same(ours, plain)
    assert len(ours) == 3 * rows


def test_several_greedy_sequences_are_plains_error(fp64: Models):
    for assistant in ({}, {"assistant": speculator("self", fp64)}):
        with pytest.raises(ValueError, match="num_return_sequences"):
            fp64.target.generate(**prompt(1), max_new_tokens=4, num_return_sequences=2, **assistant)


@pytest.mark.parametrize("options", [
    {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5], [9, 3], [70]]},
    {"suppress_tokens": [3, 92, 50]}, {"begin_suppress_tokens": [50, 28, 57]}, {"sequence_bias": [[[54], 9.0], [[54, 54], -50.0]]},
    {"encoder_repetition_penalty": 1.5}, {"encoder_no_repeat_ngram_size": 2}, {"renormalize_logits": True},
    {"remove_invalid_values": True}, {"forced_bos_token_id": 4}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
])  # fmt: skip
@pytest.mark.parametrize("drafter", ["model", "oracle"])
def test_logits_processors(fp64: Models, options: dict[str, Any], drafter: str):
    spec = oracle(fp64) if drafter == "oracle" else speculator(drafter, fp64)
    check(fp64, spec=spec, **options)


def test_prefix_allowed_tokens(fp64: Models):
    def allowed(row: int, prefix: Tensor) -> list[int]:
        return [(int(prefix[-1]) * 7 + row + k) % VOCAB for k in range(9)]

    check(fp64, spec=speculator("model", fp64), prefix_allowed_tokens_fn=allowed)
