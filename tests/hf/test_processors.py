"""Logits processors at the nodes of a tree: what plain decoding computes for every node's own prefix."""

from __future__ import annotations

import copy
import inspect
import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, generation
from transformers.generation import logits_process as lp

from specplug import TreeBatch, TreeShape, UnsupportedError, fill_shape, roots_only
from specplug_hf import processor_steps, processors
from specplug_hf.processors import NodeProcessors

VOCAB, NUM_ROWS, PROMPT = 12, 4, 5
ROWS, ENDS = [2, 0, 3], [9, 6, 7]  # slots of the batch: rows of the call, and where their roots end
SHAPE = TreeShape((-1, 0, 0, 1, 1, 2, 3, 5))
IDS = torch.randint(0, VOCAB, (NUM_ROWS, 10), generator=torch.Generator().manual_seed(1))
ENCODER = torch.randint(0, VOCAB, (NUM_ROWS, 6), generator=torch.Generator().manual_seed(2))
WHISPER = SimpleNamespace(no_timestamps_token_id=7, eos_token_id=6, bos_token_id=6, max_initial_timestamp_index=2)
EOS = torch.tensor([3, 4])


def allowed(row: int, prefix: Tensor) -> list[int]:
    """A constraint that depends on the row and on the prefix."""
    return [(int(prefix[-1]) + row + k) % VOCAB for k in range(5)]


def synth_id(**options: Any) -> LogitsProcessor:
    return lp.SynthIDTextWatermarkLogitsProcessor(3, [5, 9, 77], 64, 0, 4, torch.device("cpu"), **options)


SERVED: dict[str, Callable[[], Any]] = {
    "TemperatureLogitsWarper": lambda: lp.TemperatureLogitsWarper(0.7),
    "TopPLogitsWarper": lambda: lp.TopPLogitsWarper(0.6),
    "TopKLogitsWarper": lambda: lp.TopKLogitsWarper(3),
    "TopHLogitsWarper": lambda: lp.TopHLogitsWarper(0.4),
    "MinPLogitsWarper": lambda: lp.MinPLogitsWarper(0.3),
    "TypicalLogitsWarper": lambda: lp.TypicalLogitsWarper(0.5),
    "EpsilonLogitsWarper": lambda: lp.EpsilonLogitsWarper(0.08),
    "EtaLogitsWarper": lambda: lp.EtaLogitsWarper(0.2),
    "InfNanRemoveLogitsProcessor": lp.InfNanRemoveLogitsProcessor,
    "LogitNormalization": lp.LogitNormalization,
    "SuppressTokensLogitsProcessor": lambda: lp.SuppressTokensLogitsProcessor([1, 5]),
    "BarkEosPrioritizerLogitsProcessor": lambda: lp.BarkEosPrioritizerLogitsProcessor([3, 4], 0.1),
    "MinLengthLogitsProcessor": lambda: lp.MinLengthLogitsProcessor(8, EOS),
    "MinNewTokensLengthLogitsProcessor": lambda: lp.MinNewTokensLengthLogitsProcessor(PROMPT, 3, EOS),
    "ForcedBOSTokenLogitsProcessor": lambda: lp.ForcedBOSTokenLogitsProcessor(2),
    "ForcedEOSTokenLogitsProcessor": lambda: lp.ForcedEOSTokenLogitsProcessor(9, EOS),
    "ExponentialDecayLengthPenalty": lambda: lp.ExponentialDecayLengthPenalty((2, 1.3), EOS, PROMPT),
    "SuppressTokensAtBeginLogitsProcessor": lambda: lp.SuppressTokensAtBeginLogitsProcessor([1, 5], 8),
    "AlternatingCodebooksLogitsProcessor": lambda: lp.AlternatingCodebooksLogitsProcessor(PROMPT, 4, 4),
    "NoRepeatNGramLogitsProcessor": lambda: lp.NoRepeatNGramLogitsProcessor(2),
    "SequenceBiasLogitsProcessor": lambda: lp.SequenceBiasLogitsProcessor(
        {(1,): 2.0, **{(a, (a * 5) % VOCAB): 3.0 for a in range(VOCAB)}}
    ),
    "NoBadWordsLogitsProcessor": lambda: lp.NoBadWordsLogitsProcessor(
        [[2], *([a, (a * 7) % VOCAB] for a in range(VOCAB))], EOS
    ),
    "WatermarkLogitsProcessor": lambda: lp.WatermarkLogitsProcessor(VOCAB, "cpu", context_width=2),
    "WhisperTimeStampLogitsProcessor": lambda: lp.WhisperTimeStampLogitsProcessor(WHISPER, PROMPT + 1),
    "RepetitionPenaltyLogitsProcessor": lambda: lp.RepetitionPenaltyLogitsProcessor(
        1.5, torch.tensor([0, 2, 4, 4], dtype=torch.int32)
    ),
    "EncoderRepetitionPenaltyLogitsProcessor": lambda: lp.EncoderRepetitionPenaltyLogitsProcessor(1.5, ENCODER),
    "EncoderNoRepeatNGramLogitsProcessor": lambda: lp.EncoderNoRepeatNGramLogitsProcessor(1, ENCODER),
    "PrefixConstrainedLogitsProcessor": lambda: lp.PrefixConstrainedLogitsProcessor(allowed, 1),
    "SynthIDTextWatermarkLogitsProcessor": synth_id,
}


class LastToken(LogitsProcessor):
    """A user's processor: it bans the token after the last one."""

    shapes: ClassVar[list[tuple[int, ...]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.shapes.append(tuple(input_ids.shape))
        scores[torch.arange(len(scores)), (input_ids[:, -1] + 1) % VOCAB] = -torch.inf  # in place, as users do
        return scores


OTHERS: dict[str, Callable[[], Any]] = {
    "repetition, no padding": lambda: lp.RepetitionPenaltyLogitsProcessor(1.5),
    "repetition, int": lambda: lp.RepetitionPenaltyLogitsProcessor(1.5, 3),
    "watermark, selfhash": lambda: lp.WatermarkLogitsProcessor(48, "cpu", seeding_scheme="selfhash"),
    "encoder penalty, two sequences a prompt": lambda: lp.EncoderRepetitionPenaltyLogitsProcessor(1.5, ENCODER[:2]),
    "encoder n-grams, two sequences a prompt": lambda: lp.EncoderNoRepeatNGramLogitsProcessor(1, ENCODER[:2]),
    "SynthID, late start": lambda: synth_id(skip_first_ngram_calls=True),
    "user's": LastToken,
    "subclass, prefix-free": type("Mine", (lp.TopKLogitsWarper,), {"__init__": lambda s: lp.TopKLogitsWarper.__init__(s, 3)}),
    "subclass, per row": type(
        "Mine", (lp.PrefixConstrainedLogitsProcessor,),
        {"__init__": lambda s: lp.PrefixConstrainedLogitsProcessor.__init__(s, allowed, 1)},
    ),
}  # fmt: skip


def plain(processors: list[Any], row: int, prefix: list[int], logits: Tensor, vocab: int) -> Tensor:
    """`logits` [V] of `row` as plain decoding processes them: the whole batch, one call for every step until now."""
    fresh = LogitsProcessorList(copy.deepcopy(processors))
    for end in range(min(PROMPT, len(prefix)), len(prefix) + 1):
        ids = (torch.arange(end) * 5 + torch.arange(NUM_ROWS)[:, None]) % vocab  # the other rows have other tokens
        ids[row] = torch.tensor(prefix[:end])
        scores = logits.flip(0).repeat(NUM_ROWS, 1)
        scores[row] = logits
        result = fresh(ids, scores)[row]
    return result


def tree(
    vocab: int = VOCAB, seed: int = 3, rows: list[int] = ROWS, ends: list[int] = ENDS, ids: Tensor = IDS
) -> TreeBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (len(rows), SHAPE.num_nodes), generator=generator)
    tokens[:, 0] = ids[rows].gather(1, torch.tensor(ends)[:, None] - 1)[:, 0]
    return fill_shape(SHAPE, tokens)


def prefix_of(
    trees: TreeBatch, slot: int, node: int, ids: Tensor = IDS, rows: Any = ROWS, ends: Any = ENDS
) -> list[int]:
    path: list[int] = []
    while node:
        path.insert(0, int(trees.tokens[slot, node]))
        node = SHAPE.parents[node]
    return ids[rows[slot], : ends[slot]].tolist() + path


def reachable(scores: Tensor, trees: TreeBatch, slot: int, node: int) -> bool:
    """No token on the way to `node` is ruled out by its parent's scores [B, N, V]."""
    while node:
        parent = SHAPE.parents[node]
        if scores[slot, parent, trees.tokens[slot, node]] == -torch.inf:
            return False
        node = parent
    return True


def check(processors: list[Any], vocab: int = VOCAB, careful: bool = False) -> int:
    """Compare every node with plain decoding; returns how many nodes the processors changed."""
    logits = torch.randn(len(ROWS), SHAPE.num_nodes, vocab, generator=torch.Generator().manual_seed(4)) * 2
    before, trees = logits.clone(), tree(vocab)
    served = NodeProcessors(LogitsProcessorList(copy.deepcopy(processors)), NUM_ROWS)
    enter_earlier(served, vocab)
    scores = served.scores(logits, IDS, ENDS, ROWS, trees)
    assert torch.equal(logits, before)
    assert scores.shape == logits.shape and scores.dtype == torch.float32
    changed = 0
    for slot, row in enumerate(ROWS):
        for node in range(SHAPE.num_nodes):
            if careful and not reachable(scores, trees, slot, node):
                continue
            want = plain(processors, row, prefix_of(trees, slot, node), logits[slot, node], vocab)
            torch.testing.assert_close(scores[slot, node], want, rtol=0, atol=1e-6, msg=f"slot {slot}, node {node}")
            changed += not torch.equal(want, logits[slot, node])
    return changed


def enter_earlier(served: NodeProcessors, vocab: int) -> None:
    """The steps that led to the roots, as plain decoding: a processor with state has to have seen them."""
    for row, last in zip(ROWS, ENDS, strict=True):
        for end in range(PROMPT, last):
            served.scores(torch.zeros(1, 1, vocab), IDS, [end], [row], roots_only(IDS[row, end - 1 : end]))


CAREFUL = {"PrefixConstrainedLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor", *OTHERS}
SILENT = {"InfNanRemoveLogitsProcessor", "ForcedBOSTokenLogitsProcessor"}  # have tests of their own


@pytest.mark.parametrize("name", [*SERVED, *OTHERS])
def test_every_node_is_processed_as_plain_decoding_processes_its_prefix(name: str) -> None:
    vocab = 48 if "selfhash" in name else VOCAB
    changed = check([(SERVED | OTHERS)[name]()], vocab, careful=name in CAREFUL)
    assert changed or name in SILENT


@pytest.mark.parametrize("seed", range(12))
def test_processors_compose_in_their_order(seed: int) -> None:
    pick = random.Random(seed)
    names = pick.sample([n for n in [*SERVED, "user's"] if n != "AlternatingCodebooksLogitsProcessor"], 5)
    check([(SERVED | OTHERS)[name]() for name in names], careful=bool(CAREFUL & set(names)))


def test_infinite_scores_are_removed() -> None:
    logits = torch.tensor([[[torch.inf, 0.0, -torch.inf, torch.nan]]])
    served = NodeProcessors(LogitsProcessorList([lp.InfNanRemoveLogitsProcessor()]), 1)
    out = served.scores(logits, IDS, [3], [0], roots_only(IDS[0, 2:3]))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("content", [False, True])
def test_a_prompt_of_one_token(content: bool) -> None:
    processors = [lp.ForcedBOSTokenLogitsProcessor(2)] + [lp.NoRepeatNGramLogitsProcessor(2)] * content
    served = NodeProcessors(LogitsProcessorList(processors), 1)
    trees = fill_shape(TreeShape((-1, 0)), torch.tensor([[4, 2]]))
    out = served.scores(torch.randn(1, 2, VOCAB), torch.tensor([[4, 0]]), [1], [0], trees)
    assert out[0, 0].isfinite().nonzero().flatten().tolist() == [2] and out[0, 1].isfinite().all()


def test_a_prompt_without_tokens_and_no_room_left() -> None:
    """Embeddings as the prompt: the first prefix is empty. At the end, a draft reaches beyond the columns of `ids`."""
    served = NodeProcessors(LogitsProcessorList([lp.NoRepeatNGramLogitsProcessor(2)]), 1)
    logits = torch.randn(1, 2, VOCAB)
    empty = torch.zeros(1, 4, dtype=torch.int64)
    assert torch.equal(served.scores(logits[:, :1], empty, [0], [0], roots_only(torch.tensor([0]))), logits[:, :1])
    trees = fill_shape(TreeShape((-1, 0)), torch.tensor([[5, 1]]))
    out = served.scores(logits, torch.tensor([[1, 2, 5]]), [3], [0], trees)
    assert out[0, 1].isneginf().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("name", [*SERVED, *OTHERS])
def test_padding_nodes_may_hold_anything(name: str) -> None:
    """Tokens out of range, logits that are not numbers: real nodes come out as if padding were not there."""
    vocab = 48 if "selfhash" in name else VOCAB
    trees, logits = tree(vocab), torch.randn(len(ROWS), SHAPE.num_nodes, vocab)
    valid = torch.ones(len(ROWS), SHAPE.num_nodes, dtype=torch.bool)
    valid[0, 3:] = valid[2, 1:] = False
    tokens = torch.where(valid, trees.tokens, -(10**9))
    broken = fill_shape(SHAPE, tokens, valid=valid)
    both = []
    for t, x in ((trees, logits), (broken, logits.masked_fill(~valid[..., None], torch.nan))):
        served = NodeProcessors(LogitsProcessorList([(SERVED | OTHERS)[name]()]), NUM_ROWS)
        enter_earlier(served, vocab)
        both.append(served.scores(x, IDS, ENDS, ROWS, t)[valid])
    assert torch.equal(*both)


def test_trees_of_different_shapes() -> None:
    """Rows with trees of their own, the same nodes as two batches of one."""
    shapes = [TreeShape((-1, 0, 0, 1)), TreeShape((-1, 0, 1, 2))]
    tokens = torch.tensor([[int(IDS[0, 5]), 3, 4, 5], [int(IDS[1, 6]), 3, 4, 5]])
    logits = torch.randn(2, 4, VOCAB)
    mixed = TreeBatch(
        tokens=tokens,
        parents=torch.tensor([s.parents for s in shapes]),
        depths=torch.zeros(2, 4),
        ancestors=torch.zeros(2, 4, 4),
        children=torch.zeros(2, 4, 1),
    )
    served = NodeProcessors(LogitsProcessorList([lp.NoRepeatNGramLogitsProcessor(1), lp.TopKLogitsWarper(5)]), NUM_ROWS)
    together = served.scores(logits, IDS, [6, 7], [0, 1], mixed)
    for b, end in enumerate((6, 7)):
        alone = served.scores(logits[b : b + 1], IDS, [end], [b], fill_shape(shapes[b], tokens[b : b + 1]))
        assert torch.equal(together[b], alone[0])


def test_prefixes_are_built_for_those_who_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    real = processors._prefixes
    monkeypatch.setattr(processors, "_prefixes", lambda ids, nodes: built.append(len(nodes)) or real(ids, nodes))
    free = [name for name in SERVED if name in processor_steps.PREFIX_FREE]
    by_length = list(processor_steps.BY_LENGTH)
    check([SERVED[name]() for name in free if "Suppress" not in name and "TopH" not in name])
    check([SERVED[name]() for name in by_length])
    assert not built
    check([SERVED["NoRepeatNGramLogitsProcessor"](), SERVED["SequenceBiasLogitsProcessor"]()])
    nodes = SHAPE.num_nodes * len(ROWS)
    lengths = {len(prefix_of(tree(), slot, node)) for slot in range(len(ROWS)) for node in range(SHAPE.num_nodes)}
    earlier = sum(end - PROMPT for end in ENDS)
    assert sum(built) == nodes + earlier and len(built) == len(lengths) + earlier  # shared by the two


def test_one_call_for_all_nodes_treated_alike() -> None:
    calls: list[int] = []
    trees, logits = tree(), torch.randn(len(ROWS), SHAPE.num_nodes, VOCAB)
    for name in (*processor_steps.PREFIX_FREE, "MinNewTokensLengthLogitsProcessor"):
        served = NodeProcessors(LogitsProcessorList([SERVED[name]()]), NUM_ROWS)
        step = served._steps[0]
        counted = processor_steps.ProcessorStep(
            lambda n, p, s, c=step.call: calls.append(len(s)) or c(n, p, s), step.group
        )
        served._steps[0] = counted
        served.scores(logits, IDS, ENDS, ROWS, trees)
        assert len(calls) == 1, name
        calls.clear()


def test_a_user_gets_one_sequence_at_a_time() -> None:
    LastToken.shapes.clear()
    logits, trees = torch.full((len(ROWS), SHAPE.num_nodes, VOCAB), 0.5), tree()
    NodeProcessors(LogitsProcessorList([LastToken()]), NUM_ROWS).scores(logits, IDS, ENDS, ROWS, trees)
    assert (logits == 0.5).all()
    assert LastToken.shapes[:3] == [(1, end) for end in ENDS]  # the roots first
    assert {rows for rows, _ in LastToken.shapes} == {1}


def test_prefix_free_and_warp() -> None:
    free = NodeProcessors(LogitsProcessorList([SERVED["TemperatureLogitsWarper"](), SERVED["TopKLogitsWarper"]()]), 1)
    mixed = NodeProcessors(
        LogitsProcessorList([SERVED["TemperatureLogitsWarper"](), LastToken(), SERVED["TopKLogitsWarper"]()]), 1
    )
    assert NodeProcessors(LogitsProcessorList(), 1).prefix_free and free.prefix_free and not mixed.prefix_free
    for name, make in SERVED.items():
        alone = NodeProcessors(LogitsProcessorList([make()]), NUM_ROWS)
        assert alone.prefix_free == (name in processor_steps.PREFIX_FREE)
    scores = torch.randn(6, VOCAB)
    want = SERVED["TopKLogitsWarper"]()(None, SERVED["TemperatureLogitsWarper"]()(None, scores))
    assert torch.equal(free.warp(scores), want) and torch.equal(mixed.warp(scores), want)
    trees = tree()
    logits = torch.randn(len(ROWS), SHAPE.num_nodes, VOCAB)
    assert torch.equal(free.scores(logits, IDS, ENDS, ROWS, trees).flatten(0, 1), free.warp(logits.flatten(0, 1)))


def test_a_constraint_never_sees_what_it_ruled_out() -> None:
    """Grammars and tries raise on text that they do not know: plain decoding never shows it to them."""
    follow = {token: [(token + 1) % VOCAB, (token + 2) % VOCAB] for token in range(VOCAB)}

    def strict(row: int, prefix: Tensor) -> list[int]:
        text = prefix[PROMPT - 1 :].tolist()
        assert all(b in follow[a] for a, b in itertools.pairwise(text)), text
        return follow[text[-1]]

    served = NodeProcessors(LogitsProcessorList([lp.PrefixConstrainedLogitsProcessor(strict, 1)]), NUM_ROWS)
    root = int(IDS[1, PROMPT - 1])
    good, better, bad = (root + 1) % VOCAB, (root + 3) % VOCAB, (root + 5) % VOCAB
    shape = TreeShape((-1, 0, 0, 1, 2))
    trees = fill_shape(shape, torch.tensor([[root, good, bad, better, (bad + 1) % VOCAB]]))
    logits = torch.randn(1, 5, VOCAB)
    out = served.scores(logits, IDS, [PROMPT], [1], trees)
    for node, token in ((0, root), (1, good), (3, better)):
        assert out[0, node].isfinite().nonzero().flatten().tolist() == sorted(follow[token])


def test_where_everything_is_ruled_out_nothing_is() -> None:
    """Greedy decoding takes token 0 from scores that are all -inf, and goes on."""
    seen: list[int] = []

    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append(input_ids.shape[1])
            return torch.full_like(scores, -torch.inf)

    served = NodeProcessors(LogitsProcessorList([Nothing()]), NUM_ROWS)
    trees = fill_shape(TreeShape((-1, 0)), torch.tensor([[int(IDS[0, 4]), 0]]))
    served.scores(torch.randn(1, 2, VOCAB), IDS, [5], [0], trees)
    assert seen == [5, 6]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_state_follows_the_accepted_path(seed: int, late: bool) -> None:
    """SynthID over several rounds: rows accept different numbers of tokens; every node as a plain run up to there."""
    pick = random.Random(seed)
    vocab, ids, ends = (
        3,
        IDS.clone() % 3,
        [PROMPT] * NUM_ROWS,
    )  # three tokens: contexts repeat, and the mask of that is used
    ids = torch.nn.functional.pad(ids, (0, 30))
    served = NodeProcessors(LogitsProcessorList([synth_id(skip_first_ngram_calls=late)]), NUM_ROWS)
    for turn in range(5):
        rows = pick.sample(range(NUM_ROWS), pick.randint(1, NUM_ROWS))
        at = [ends[row] for row in rows]
        trees = tree(vocab, seed * 10 + turn, rows, at, ids)
        logits = torch.randn(len(rows), SHAPE.num_nodes, vocab)
        for _ in range(2):  # the same root twice: a round that was given up
            scores = served.scores(logits, ids, at, rows, trees)
        for slot, row in enumerate(rows):
            for node in range(SHAPE.num_nodes):
                want = plain([synth_id(skip_first_ngram_calls=late)], row, prefix_of(trees, slot, node, ids, rows, at),
                             logits[slot, node], vocab)  # fmt: skip
                torch.testing.assert_close(scores[slot, node], want, rtol=0, atol=1e-6)
            new = prefix_of(trees, slot, pick.randrange(SHAPE.num_nodes), ids, rows, at)[ends[row] :]
            new.append(pick.randrange(vocab))
            ids[row, ends[row] : ends[row] + len(new)] = torch.tensor(new)
            ends[row] += len(new)


def test_refusals_name_the_class_and_the_remedy() -> None:
    model = object()
    refused = {
        "ClassifierFreeGuidanceLogitsProcessor": lambda: lp.ClassifierFreeGuidanceLogitsProcessor(2.0),
        "UnbatchedClassifierFreeGuidanceLogitsProcessor": lambda: lp.UnbatchedClassifierFreeGuidanceLogitsProcessor(
            2.0, model
        ),
        "DiaClassifierFreeGuidanceLogitsProcessor": lambda: lp.DiaClassifierFreeGuidanceLogitsProcessor(2.0),
        "DiaEOSChannelFilterLogitsProcessor": lambda: lp.DiaEOSChannelFilterLogitsProcessor(2, 3),
        "DiaEOSDelayPatternLogitsProcessor": lambda: lp.DiaEOSDelayPatternLogitsProcessor([0, 1], 3, 20),
        "WhisperNoSpeechDetection": lambda: lp.WhisperNoSpeechDetection(3, 2),
    }
    assert processor_steps.REFUSED.keys() - refused.keys() == {
        "HammingDiversityLogitsProcessor"
    }  # gone since transformers 5
    for name, make in refused.items():
        with pytest.raises(UnsupportedError, match=f"{name} .*call generate without `assistant=`"):
            NodeProcessors(LogitsProcessorList([make()]), 1)
    mine = type("MyGuidance", (lp.ClassifierFreeGuidanceLogitsProcessor,), {})(2.0)
    with pytest.raises(UnsupportedError, match="MyGuidance"):
        NodeProcessors(LogitsProcessorList([mine]), 1)
    with pytest.raises(UnsupportedError, match="num_beams=1"):
        NodeProcessors(LogitsProcessorList([lp.PrefixConstrainedLogitsProcessor(allowed, 2)]), 4)


def test_a_processor_that_plain_decoding_could_not_call() -> None:
    class Third(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, more: int) -> Tensor:
            return scores

    served = NodeProcessors(LogitsProcessorList([Third()]), 1)
    with pytest.raises(ValueError, match="required parameters"):
        served.scores(torch.zeros(1, 1, VOCAB), IDS, [3], [0], roots_only(IDS[0, 2:3]))


def test_padding_lengths_of_another_batch() -> None:
    with pytest.raises(ValueError, match="batch size"):
        NodeProcessors(LogitsProcessorList([SERVED["RepetitionPenaltyLogitsProcessor"]()]), 3)


def test_every_class_of_transformers_is_decided_on() -> None:
    """A class that a new transformers brings is served as a user's would be until somebody has read it: fails here."""
    classes = {
        name
        for name, value in inspect.getmembers(lp, inspect.isclass)
        if issubclass(value, LogitsProcessor) and value is not LogitsProcessor
    }
    served = processor_steps.PREFIX_FREE | processor_steps.BY_LENGTH.keys() | processor_steps.BY_CONTENT
    served = served | processor_steps.PER_ROW.keys() | processor_steps.BY_STATE
    assert classes - served - processor_steps.REFUSED.keys() == set()
    assert served == SERVED.keys() == served & classes


def test_what_generate_makes() -> None:
    """Every option of generate that ends in a processor, through generate itself."""
    found: list[Any] = []

    def record(model: Any, input_ids: Tensor, logits_processor: Any = None, **_: Any) -> Tensor:
        found.extend(logits_processor)
        return input_ids

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    ))  # fmt: skip
    model.generate(
        IDS[:2, :PROMPT], attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]), custom_generate=record,
        do_sample=True, eos_token_id=[3, 4], num_return_sequences=2, max_new_tokens=6, min_new_tokens=2, min_length=3,
        sequence_bias={(1,): 2.0}, encoder_repetition_penalty=1.2, repetition_penalty=1.3, no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=2, bad_words_ids=[[1, 2]], prefix_allowed_tokens_fn=allowed, forced_bos_token_id=1,
        forced_eos_token_id=3, remove_invalid_values=True, exponential_decay_length_penalty=(2, 1.1),
        suppress_tokens=[7], begin_suppress_tokens=[2], temperature=0.7, top_h=0.5, top_k=9, top_p=0.9, min_p=0.01,
        typical_p=0.9, epsilon_cutoff=0.01, eta_cutoff=0.01, renormalize_logits=True,
        watermarking_config=generation.WatermarkingConfig(),
    )  # fmt: skip
    names = [type(processor).__name__ for processor in found]
    by_hand = {"BarkEosPrioritizerLogitsProcessor", "AlternatingCodebooksLogitsProcessor",
               "WhisperTimeStampLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor"}  # fmt: skip
    assert set(names) == SERVED.keys() - by_hand
    served = NodeProcessors(LogitsProcessorList(found), 4)
    trees = fill_shape(TreeShape((-1, 0)), torch.tensor([[1, 2]] * 4))
    out = served.scores(torch.randn(4, 2, VOCAB), IDS, [PROMPT] * 4, range(4), trees)
    assert not out.isnan().any()
