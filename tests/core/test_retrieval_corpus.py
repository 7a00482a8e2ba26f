"""A corpus to look up in: contexts sorted, files read or refused by name, trees against loops over the texts."""

import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from specplug import Need, Speculator
from specplug.corpus import loading
from specplug.corpus.contexts import Contexts, by_context
from specplug.corpus.files import read_tokens, write_tokens
from specplug.corpus.occurrences import NEAR
from specplug.corpus.text import in_pieces
from specplug.drafters.base import DraftRequest
from specplug.drafters.continuations import Rule, continuation_trees
from specplug.drafters.retrieval_corpus import PLACES, RetrievalCorpus
from specplug.errors import OptionError, UnsupportedError
from specplug.tree import TreeShape
from specplug.trees import Chain, Sequoia

from .test_round import ALARM, PROMPTS, generate, host_of, p_value
from .test_suffix import agreeing, batch_of, check_tree, longest_of, shares_in_words
from .tools import TableHost, joint_law, near, plain_greedy, table


class WordHost:
    """A stand-in for a framework that has a tokenizer: a token a letter."""

    vocab_size = 26
    identity = ("words", "cpu", "float32")
    asked = 0

    def tokenize(self, text):
        self.asked += 1
        return torch.tensor([ord(letter) - ord("a") for letter in text], dtype=torch.int64)


def spelt(word):
    return [ord(letter) - ord("a") for letter in word]


def corpus_of(tmp_path, **files):
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


documents = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), min_size=1, max_size=4)


def backwards(text, place):
    """What stands at `place` and before it, the nearest first."""
    return text[: place + 1][::-1]


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(1, 30))
def test_places_are_sorted_by_what_stands_before_them(pieces, most):
    text = in_pieces([torch.tensor(piece) for piece in pieces])
    places = by_context(text, most).tolist()
    assert sorted(places) == list(range(len(text)))
    whole = text.tolist()
    contexts = [backwards(whole, place)[:most] for place in places]
    assert contexts == sorted(contexts)


@settings(max_examples=200, deadline=None)
@given(documents, st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 6))
def test_the_nearest_contexts_are_the_longest_matches(pieces, row, most):
    wide = [0, 254, 256, 70_000]  # numbers of one, two and three bytes
    pieces, row = [[wide[token] for token in piece] for piece in pieces], [wide[token] for token in row]
    text = in_pieces([torch.tensor(piece) for piece in pieces])
    got = [matched for matched, _ in Contexts.of(text, most).occurrences(row, 3, 1)]
    whole = text.tolist()
    wanted = sorted((agreeing(whole[: place + 1], row, most) for place in range(len(whole))), reverse=True)
    near = [matched for matched in wanted if matched > max(0, wanted[0] - NEAR)]
    assert got[:1] == near[:1] and got == sorted(got, reverse=True)
    assert got == near[: len(got)] and len(got) >= min(3, len(near))


@settings(max_examples=200, deadline=None)
@given(
    documents, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=3), st.data(),
    st.integers(1, 12), st.integers(1, 5), st.sampled_from([0.05, 0.3]), st.sampled_from([1.0, 16.0]),
)  # fmt: skip
def test_trees_against_loops_over_the_documents(tmp_path_factory, pieces, rows, data, size, depth, least, per_match):
    """Few enough places that all of them vote."""
    file = str(tmp_path_factory.mktemp("corpus") / "tokens.safetensors")
    pieces[0] = [*pieces[0], 0]  # a corpus has two tokens
    write_tokens(file, [torch.tensor(piece) for piece in pieces])
    drafter = RetrievalCorpus(file, max_match=5, min_probability=least, per_match=per_match).open(WordHost())
    shape = data.draw(st.sampled_from([Sequoia(size, depth), Chain(size)])).build()
    starts = [data.draw(st.integers(0, 3)) for _ in rows]
    trees = drafter.draft(DraftRequest(batch_of(rows, starts), shape))
    for row, text in enumerate(rows):
        found = [
            (matched, tuple(piece[stop : stop + shape.depth]))
            for piece in pieces
            for stop in range(1, len(piece) + 1)
            if (matched := agreeing(piece[:stop], text, 5))
        ]
        found = sorted(found, key=lambda pair: -pair[0])
        most = min(shape.size, int(drafter.per_match * longest_of(found)))
        if len(found) <= PLACES:
            check_tree(trees, row, shares_in_words(found), shape, most, drafter.min_probability)


def test_nothing_is_proposed_where_the_places_go_many_ways():
    """A round that proposes anything costs more than one that does not."""
    pieces = torch.tensor([number for last in range(1, 6) for number in (0, last)])
    contexts, rule = Contexts.of(in_pieces([pieces]), 4), Rule("retrieval_corpus", 0.3, 2.0)
    found, wide = [contexts.occurrences([9, 0], PLACES, 4)], TreeShape((-1, *[0] * 8))
    assert len(found[0]) == 5 and continuation_trees(torch.tensor([0]), found, wide, rule).num_nodes == 1
    assert continuation_trees(torch.tensor([0]), found, wide, Rule("retrieval_corpus", 0.1, 2.0)).num_nodes == 3


def test_files_are_read_in_order_as_the_targets_tokens(tmp_path):
    path = corpus_of(tmp_path, b="onetwo", a="three")
    (tmp_path / "corpus" / ".hidden.txt").write_text("four")
    drafter = RetrievalCorpus(path)
    assert drafter.required == {Need.HISTORY, Need.TOKENIZER}
    drafter = drafter.open(WordHost())
    assert drafter._corpus.text.tolist() == [-1, *spelt("three"), -1, *spelt("onetwo"), -1]
    trees = drafter.draft(DraftRequest(batch_of([spelt("zzzon")]), Chain(6).build()))
    assert trees.tokens[0, 1:].tolist() == spelt("etwo")
    assert drafter.draft(DraftRequest(batch_of([spelt("zzz")]), Chain(6).build())).num_nodes == 1


def test_a_corpus_is_made_ready_once(tmp_path, monkeypatch):
    path, host = corpus_of(tmp_path, a="abcabd"), WordHost()
    first = RetrievalCorpus(path).open(host)._corpus
    assert RetrievalCorpus(path).open(host)._corpus is first and host.asked == 1
    file = tmp_path / "corpus" / "a.txt"
    file.write_text("abcabe")
    os.utime(file, ns=(1, 1))  # another time, if the clock is too coarse to show it
    assert RetrievalCorpus(path).open(host)._corpus.text.tolist()[-2] == spelt("e")[0]
    other = WordHost()
    other.identity = ("other words", "cpu", "float32")
    assert RetrievalCorpus(path).open(other)._corpus is not first and other.asked == 1
    for number in range(loading.KEPT + 3):
        RetrievalCorpus(path, max_tokens=100 + number).open(host)
    assert len(loading._ready) == loading.KEPT


def test_no_more_is_read_than_was_allowed(tmp_path, caplog):
    drafter = RetrievalCorpus(corpus_of(tmp_path, a="abcd", b="efgh", c="ijkl"), max_tokens=6).open(WordHost())
    assert drafter._corpus.text.tolist() == [-1, *spelt("abcd"), -1, *spelt("ef"), -1]
    assert "more than max_tokens=6" in caplog.text


def test_documents_of_a_token_file(tmp_path):
    file = str(tmp_path / "corpus.safetensors")
    write_tokens(file, [torch.tensor([1, 2, 3]), torch.tensor([4])])
    tokens, ends = read_tokens(tmp_path / "corpus.safetensors")
    assert tokens.tolist() == [1, 2, 3, 4] and tokens.dtype == torch.int32 and ends.tolist() == [3, 4]
    drafter = RetrievalCorpus(file)
    assert drafter.required == {Need.HISTORY}
    host = SimpleNamespace(vocab_size=5, identity=("model", "cpu", "float32"))  # no tokenizer
    assert drafter.open(host)._corpus.text.tolist() == [-1, 1, 2, 3, -1, 4, -1]
    host.vocab_size = 4
    with pytest.raises(OptionError, match=r"corpus.safetensors' holds token 4; the target's vocabulary has 4 tokens"):
        drafter.open(host)


def text_file(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def tensor_file(name, **given):
    def write(folder):
        save_file(given, str(folder / name))
        return str(folder / name)

    return write


def empty_folder(folder):
    (folder / "sub").mkdir()
    return str(folder / "sub")


FOUR = torch.arange(4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: str(folder / "nothing"), "there is no file or folder '.*nothing'"),
        (empty_folder, "no file in '.*sub' matches"),
        (text_file("empty.txt", b""), "empty.txt' is empty"),
        (text_file("old.txt", "\xe9".encode("latin-1")), r"old.txt' is not text in UTF-8 \(byte 0\)"),
        (text_file("image.bin", b"ab\0cd"), "image.bin' is not text: it holds a zero byte"),
        (text_file("one.txt", b"a"), "one.txt' has 1 tokens; two are the least"),
        (text_file("x.safetensors", b"rubbish"), "x.safetensors' is no safetensors file"),
        (tensor_file("y.safetensors", other=FOUR), "y.safetensors' must hold int32 'tokens'"),
        (tensor_file("z.safetensors", tokens=FOUR.float()), "z.safetensors' .* holds torch.float32 of shape"),
        (tensor_file("w.safetensors", tokens=FOUR, ends=torch.tensor([2, 3])), "w.safetensors' must .* end at its 4"),
        (tensor_file("v.safetensors", tokens=FOUR, ends=torch.tensor([2, 2, 4])), "v.safetensors' must be int64, rise"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_named(tmp_path, write, message):
    with pytest.raises(OptionError, match=message):
        RetrievalCorpus(write(tmp_path)).open(WordHost())


def test_in_a_folder_the_remedy_is_a_pattern(tmp_path):
    path = corpus_of(tmp_path, a="abcabd")
    (tmp_path / "corpus" / "image.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"image.bin' is not text .*; choose others with pattern="):
        RetrievalCorpus(path)
    assert RetrievalCorpus(path, pattern="*.txt").open(WordHost())._corpus.text.tolist()[1:7] == spelt("abcabd")


def test_bad_options(tmp_path):
    path = corpus_of(tmp_path, a="abcabd")
    for wrong, message in (
        ({"max_tokens": 1}, "max_tokens=1 must be at least 2"),
        ({"max_match": 0}, "max_match=0 must be at least 1"),
        ({"min_probability": -1}, "min_probability=-1 must be from 0"),
        ({"per_match": -1.0}, "retrieval_corpus: per_match=-1.0 must be above 0"),
    ):
        with pytest.raises(OptionError, match=message):
            RetrievalCorpus(path, **wrong)


def test_a_host_without_a_tokenizer_is_refused_by_name(tmp_path):
    spec = Speculator(drafter=RetrievalCorpus(corpus_of(tmp_path, a="abcabd")))
    with pytest.raises(UnsupportedError, match="needs tokenizer, which TableHost cannot give"):
        spec.open(host_of(table(6, 1), PROMPTS))


# --- whole generations


def tokens_file(tmp_path, target, prompts):
    """What the target itself would say, as a corpus."""
    file = str(tmp_path / "said.safetensors")
    write_tokens(file, [torch.tensor(plain_greedy(target, prompt, 12)) for prompt in prompts])
    return file


@pytest.mark.parametrize("tree", ["chain:length=4", "sequoia:size=9,depth=4", "chain:length=0"])
def test_greedy_equals_plain_decoding(tmp_path, tree):
    target, limits = table(6, 1), [40, 5, 1, 23]
    host = host_of(target, PROMPTS, new_tokens=limits, starts=[0, 2, 1, 3])
    drafter = RetrievalCorpus(tokens_file(tmp_path, target, PROMPTS))
    session = generate(host, Speculator(drafter=drafter, tree=tree, controller="fixed"))
    for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        assert host.result(row) == plain_greedy(target, prompt, limit)
    assert session.stats.accepted > 10 or tree == "chain:length=0"


def test_sampling_follows_the_exact_law_of_three_tokens(tmp_path):
    """n = 3000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    target, prompt = table(4, 2, 1.0), (0, 1, 2, 0, 1)
    file = str(tmp_path / "random.safetensors")
    write_tokens(file, [torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))])
    host = TableHost(target, near(target, 5), [prompt] * 3000, sampling=True, new_tokens=5)
    spec = Speculator(
        drafter=RetrievalCorpus(file, min_probability=0.05), tree="sequoia:size=6,depth=3", controller="fixed"
    )
    assert generate(host, spec).stats.accepted > 500
    tokens = host.text[:, len(prompt) : len(prompt) + 3]
    counts = torch.bincount(tokens[:, 0] * 16 + tokens[:, 1] * 4 + tokens[:, 2], minlength=64)
    assert p_value(counts, joint_law(target, prompt, 3)) > ALARM
