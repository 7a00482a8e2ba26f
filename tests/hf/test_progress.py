"""Rows at different speeds: criteria, streamers and the result see what plain decoding shows them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    generation,
)
from transformers.generation import stopping_criteria as criteria_module
from transformers.generation.streamers import BaseStreamer

from specplug import OptionError
from specplug_hf.progress import Progress

VOCAB, PROMPT, PAD = 8, 3, 7
SIZES = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
MODEL = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=PAD, eos_token_id=None, **SIZES)).eval()
LETTERS = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefgh")}, []))
LETTERS.decoder = decoders.Fuse()
WORDS = PreTrainedTokenizerFast(tokenizer_object=LETTERS)


class Forced(LogitsProcessor):
    """Row r's token at step s is `table[r, s]`, whatever the model says."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self.table[:, input_ids.shape[1] - PROMPT]
        return torch.full_like(scores, -1e9).scatter(1, tokens[:, None], 0.0)


class Recorder(StoppingCriteria, BaseStreamer):
    """Criterion and streamer: writes down what it is shown, in order; `decide` says what to stop."""

    def __init__(self, decide: Callable[[Tensor], Any] = lambda ids: False) -> None:
        self.seen: list[Any] = []
        self.decide = decide

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        assert input_ids.is_contiguous()
        self.seen.append(("ids", input_ids.tolist(), None if scores is None else len(scores)))
        return self.decide(input_ids)

    def put(self, value: Tensor) -> None:
        self.seen.append(("put", value.tolist(), value.shape, value.is_contiguous()))

    def end(self) -> None:
        self.seen.append(("end",))


class Clock:
    """A clock that moves on each time that somebody looks: as often in plain decoding as here."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        self.now += 1.0
        return self.now


def rows_stop_at(steps: list[int]) -> Callable[[Tensor], Tensor]:
    """Row r is told to stop at step `steps[r]`, and only then."""
    return lambda ids: torch.tensor([ids.shape[1] - PROMPT == steps[r % len(steps)] for r in range(len(ids))])


CRITERIA: dict[str, Callable[[list[int]], list[Any]]] = {
    "none": lambda steps: [],
    "eos": lambda steps: [EosTokenCriteria([1])],
    "eos list": lambda steps: [EosTokenCriteria([1, 2])],
    "two eos": lambda steps: [EosTokenCriteria([1]), EosTokenCriteria(4)],
    "max length": lambda steps: [MaxLengthCriteria(PROMPT + steps[0])],
    "max time": lambda steps: [MaxTimeCriteria(float(steps[0]), initial_timestamp=0.0)],
    "stop strings": lambda steps: [StopStringCriteria(WORDS, ["bc", "de"])],
    "stop strings and eos": lambda steps: [StopStringCriteria(WORDS, ["bc", "d"]), EosTokenCriteria([1])],
    "rows": lambda steps: [Recorder(rows_stop_at(steps))],
    "rows and eos": lambda steps: [Recorder(rows_stop_at(steps)), EosTokenCriteria([1])],
    "batch": lambda steps: [Recorder(lambda ids: ids.shape[1] - PROMPT >= steps[0]), EosTokenCriteria([1])],
    "last token": lambda steps: [Recorder(lambda ids: ids[:, -1] == 5), EosTokenCriteria([1])],
    "any row": lambda steps: [Recorder(lambda ids: bool((ids[:, -1] == 5).any()))],
    "own eos": lambda steps: [type("Mine", (Recorder,), {"eos_token_id": 5})(rows_stop_at(steps))],
}


def plain(table: Tensor, criteria: list[Any], watched: Recorder | None, scores: bool = False) -> Tensor:
    """transformers itself."""
    prompt = torch.arange(PROMPT).repeat(len(table), 1) % VOCAB
    longer = torch.nn.functional.pad(table, (0, 40), value=1)  # a criterion may ask for more than the configuration
    out = MODEL.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=table.shape[1], streamer=watched,
        logits_processor=LogitsProcessorList([Forced(longer)]), stopping_criteria=StoppingCriteriaList(criteria),
        return_dict_in_generate=scores, output_scores=scores,
    )  # fmt: skip
    return out.sequences if scores else out


def ahead(
    table: Tensor, criteria: list[Any], watched: Recorder | None, pick: random.Random, scores: bool = False
) -> Progress:
    """The same tokens, in blocks of random sizes, some rows at a time."""
    prompt = torch.arange(PROMPT).repeat(len(table), 1) % VOCAB
    if not any(type(criterion) is MaxLengthCriteria for criterion in criteria):
        criteria = [MaxLengthCriteria(PROMPT + table.shape[1]), *criteria]
    progress = Progress(prompt, StoppingCriteriaList(criteria), watched, PAD, PROMPT + table.shape[1])
    table = torch.nn.functional.pad(table, (0, 40), value=1)  # what lies beyond would be an end token
    if watched is not None:
        watched.put(prompt)
    while not progress.done:
        active = progress.active
        assert active, "nobody is left, and it is not done"
        rows = pick.sample(active, pick.randint(1, len(active)))
        width = pick.randint(1, 6)
        counts = [pick.randint(0, width) for _ in rows]
        starts = [progress.ends[row] for row in rows]
        block = torch.stack([table[r, s - PROMPT : s - PROMPT + width] for r, s in zip(rows, starts, strict=True)])
        kept = progress.append(rows, block, counts)
        assert all(k <= c for k, c in zip(kept, counts, strict=True))
        assert [progress.ends[row] for row in rows] == [s + k for s, k in zip(starts, kept, strict=True)]
        progress.advance((lambda step: (None,) * step) if scores else None)
        check_consistent(progress, table)
    progress.close()
    assert max(progress.ends) == PROMPT + progress.steps
    assert progress.active == [] and not any(progress.room(row) for row in range(len(table)))
    return progress


def check_consistent(progress: Progress, table: Tensor) -> None:
    """A row's own tokens up to its end, padding behind it."""
    for row, end in enumerate(progress.ends):
        assert progress.ids[row, PROMPT:end].tolist() == table[row, : end - PROMPT].tolist()
        assert (progress.ids[row, end:] == progress._pad).all()
        assert progress.final_end(row) == min(end, PROMPT + progress.steps)


@settings(max_examples=int(os.environ.get("SPECPLUG_EXAMPLES", "60")), deadline=None)
@given(
    kind=st.sampled_from(sorted(CRITERIA)),
    num_rows=st.integers(1, 4),
    length=st.integers(1, 14),
    steps=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    watch=st.sampled_from(["nobody", "streamer", "criterion", "both"]),
    scores=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_everybody_sees_what_plain_decoding_shows(
    kind: str, num_rows: int, length: int, steps: list[int], watch: str, scores: bool, seed: int
) -> None:
    pick = random.Random(seed)
    table = torch.tensor([[pick.randrange(VOCAB - 1) for _ in range(length)] for _ in range(num_rows)])
    results, logs = [], []
    for way in ("plain", "ahead"):
        recorder = Recorder()
        criteria = CRITERIA[kind](steps) + [recorder] * (watch in {"criterion", "both"})
        streamer = recorder if watch in {"streamer", "both"} else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(criteria_module, "time", Clock())
            if way == "plain":
                results.append(plain(table, criteria, streamer, scores))
            else:
                results.append(ahead(table, criteria, streamer, pick, scores).sequences())
        logs.append([recorder.seen, *(c.seen for c in criteria if isinstance(c, Recorder))])
    assert results[0].tolist() == results[1].tolist()
    assert logs[0] == logs[1]


@pytest.mark.parametrize("watched", [False, True])
def test_ends_of_rows_that_finish_early(watched: bool) -> None:
    table = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 4, 0], [1, 0, 0, 0, 0]])
    progress = ahead(
        table, [EosTokenCriteria([1]), EosTokenCriteria([4])], Recorder() if watched else None, random.Random(0)
    )
    assert [progress.final_end(row) - PROMPT for row in range(3)] == [2, 4, 1] and progress.steps == 4
    assert progress.ends == [PROMPT + 2, PROMPT + 4, PROMPT + 1]


def test_rows_may_run_ahead_and_are_cut_back() -> None:
    stop = Recorder(rows_stop_at([2, 99]))
    limit = MaxLengthCriteria(PROMPT + 9)
    progress = Progress(torch.zeros(2, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [limit, stop, EosTokenCriteria([1])]), None, PAD, PROMPT + 9)  # fmt: skip
    assert progress.append([0], torch.full((1, 6), 3), [6]) == [6]
    progress.advance()
    assert progress.steps == 0 and progress.active == [0, 1] and progress.room(0) == 3
    assert progress.append([1], torch.tensor([[4, 4, 4, 1]]), [4]) == [4]
    progress.advance()
    assert progress.steps == 4 and progress.done and progress.ends == [PROMPT + 2, PROMPT + 4]
    assert progress.sequences()[:, PROMPT:].tolist() == [[3, 3, PAD, PAD], [4, 4, 4, 1]]


def test_without_an_end_token_a_finished_row_goes_on_with_the_others() -> None:
    stop = Recorder(rows_stop_at([1, 3]))
    progress = Progress(torch.zeros(2, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [MaxLengthCriteria(PROMPT + 9), stop]), None, None, PROMPT + 9)  # fmt: skip
    progress.append([0, 1], torch.tensor([[2, 3, 4], [5, 6, 5]]), [2, 3])
    progress.advance()
    assert progress.steps == 2 and progress.active == [0, 1]  # row 0 is finished, but not padded: wait for it
    assert progress.ends == [PROMPT + 2, PROMPT + 3] and progress.final_end(1) == PROMPT + 2
    progress.append([0], torch.tensor([[4, 4]]), [2])
    progress.advance()
    assert progress.done and progress.sequences()[:, PROMPT:].tolist() == [[2, 3, 4], [5, 6, 5]]
    assert progress.ends == [PROMPT + 3] * 2 and progress.ids[0, PROMPT + 3] == 0


def test_a_row_at_its_end_token_waits_for_the_others() -> None:
    progress = Progress(torch.zeros(2, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [MaxLengthCriteria(PROMPT + 9), EosTokenCriteria([1])]), None, PAD, PROMPT + 9)  # fmt: skip
    assert progress.append([0, 1], torch.tensor([[2, 1, 1, 2], [2, 2, 2, 2]]), [4, 1]) == [2, 1]
    progress.advance()
    assert progress.active == [1] and progress.steps == 1 and not progress.done
    assert progress.append([0, 1], torch.full((2, 9), 3), [9, 9]) == [0, 8]  # no more than the greatest length
    progress.advance()
    assert progress.done and progress.steps == 9


def test_at_least_one_token() -> None:
    """Plain decoding looks at the length after its first token only."""
    progress = Progress(torch.zeros(1, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [MaxLengthCriteria(PROMPT)]), None, None, PROMPT)  # fmt: skip
    assert progress.active == [0] and progress.append([0], torch.tensor([[5, 5]]), [2]) == [1]
    progress.advance()
    assert progress.done and progress.sequences().tolist() == [[0] * PROMPT + [5]]


def test_the_limit_of_a_criterion_counts_and_not_the_configured_one() -> None:
    """Passing a MaxLengthCriteria replaces the one that generate would make."""
    table = torch.zeros(1, 12, dtype=torch.int64)
    assert ahead(table, [MaxLengthCriteria(PROMPT + 10)], None, random.Random(0)).steps == 10
    longer = Progress(table[:, :PROMPT], StoppingCriteriaList([MaxLengthCriteria(30)]), None, None, 10)
    assert longer.room(0) == 27 and longer.ids.shape == (1, 30)
    for streamer in (None, Recorder()):
        without = Progress(table[:, :PROMPT], StoppingCriteriaList(), streamer, None, 10)
        without.append([0], table, [12])
        without.advance()
        assert without.done and without.steps == 7


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("who", ["criterion", "streamer"])
def test_an_exception_leaves_everything_consistent(error: type[BaseException], who: str) -> None:
    class Angry(Recorder):
        calls = 0

        def hit(self) -> bool:
            self.calls += 1
            if self.calls == 3:
                raise error("enough")
            return False

        def put(self, value: Tensor) -> None:
            if who == "streamer":
                self.hit()

    angry = Angry()
    angry.decide = (lambda ids: angry.hit()) if who == "criterion" else rows_stop_at([2, 99])
    table = torch.tensor([[2, 3, 4, 5, 6], [3, 4, 5, 6, 2]])
    progress = Progress(torch.zeros(2, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [MaxLengthCriteria(PROMPT + 8), angry, EosTokenCriteria([1])]), angry, PAD, PROMPT + 8)  # fmt: skip
    progress.append([0, 1], table, [5, 5])
    with pytest.raises(error, match="enough"):
        progress.advance()
    check_consistent(progress, table)
    assert progress.steps == (2 if who == "criterion" else 3) and not progress.done
    progress.advance()  # and it could go on
    assert progress.steps == 5


def test_what_a_streamer_keeps_does_not_change() -> None:
    kept: list[tuple[Tensor, list[int]]] = []

    class Keeper(BaseStreamer):
        def put(self, value: Tensor) -> None:
            kept.append((value, value.tolist()))

        def end(self) -> None: ...

    progress = Progress(torch.zeros(2, PROMPT, dtype=torch.int64), StoppingCriteriaList(
        [MaxLengthCriteria(PROMPT + 8)]), Keeper(), None, PROMPT + 8)  # fmt: skip
    progress.append([0, 1], torch.full((2, 4), 3), [4, 4])
    progress.advance()
    progress.ids.zero_()
    assert len(kept) == 4 and all(value.tolist() == then for value, then in kept)


def test_nobody_is_called_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """End tokens and the greatest length alone: no call per step."""
    monkeypatch.setattr(MaxLengthCriteria, "__call__", None)
    monkeypatch.setattr(EosTokenCriteria, "__call__", None)
    ahead(torch.randint(0, 6, (3, 9)), [EosTokenCriteria([1])], None, random.Random(0))


def test_an_end_token_needs_a_pad_token() -> None:
    with pytest.raises(OptionError, match="pad_token_id"):
        Progress(torch.zeros(1, 2, dtype=torch.int64), StoppingCriteriaList([EosTokenCriteria(1)]), None, None, 9)


def test_plain_decoding_asks_before_it_streams() -> None:
    """The order within a step that this follows; a transformers that turns it round fails here."""
    assert hasattr(generation.utils, "StopCheck")
    recorder = Recorder()
    plain(torch.zeros(1, 2, dtype=torch.int64), [recorder], recorder)
    assert [entry[0] for entry in recorder.seen] == ["put", "ids", "put", "ids", "put", "end"]
