from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.drafters import DraftRequest, PromptLookup, prompt_lookup
from specplug.errors import OptionError
from specplug.host import Batch
from specplug.trees import Chain


def slow(text, ngram, shortest, length):
    """Tokens after the most recent earlier occurrence of the longest suffix of at most `ngram` tokens.

    Over and over again if that occurrence ends no earlier than its own length before the end.
    """
    for n in range(ngram, shortest - 1, -1):
        for stop in range(len(text) - 1, n - 1, -1):  # the match is text[stop - n : stop], before the root
            if text[stop - n : stop] == text[len(text) - n :]:
                found = text[stop:]
                return (found * (length if n >= len(found) else 1))[:length]
    return []


def batch_of(rows, starts, width):
    history = torch.full((len(rows), width), 1)  # pads that are tokens of the text as well
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        history[i, start : start + len(row)] = torch.tensor(row)
    ends = torch.tensor([start + len(row) for row, start in zip(rows, starts, strict=True)])
    return Batch(
        rows=tuple(range(len(rows))),
        roots=torch.tensor([row[-1] for row in rows]),
        lengths=torch.tensor([len(row) - 1 for row in rows]),
        seeds=torch.zeros(len(rows), dtype=torch.int64),
        sampling=False,
        context=max(map(len, rows)) - 1,
        room=100,
        history=history,
        history_ends=ends,
        history_starts=torch.tensor(starts),
    )


def proposed(trees, row):
    tokens = trees.tokens[row, 1:]
    return tokens.tolist() if trees.valid is None else tokens[trees.valid[row, 1:]].tolist()


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=4)


@pytest.mark.parametrize("look_up", [prompt_lookup._in_strings, prompt_lookup._in_tensors])  # on a CPU, on devices
@settings(max_examples=300, deadline=None)
@given(data=st.data(), rows=texts, ngram=st.integers(1, 4), shortest=st.integers(1, 4), length=st.integers(0, 5))
def test_against_a_slow_reference(look_up, rows, data, ngram, shortest, length):
    """Ragged starts and ends, pads that look like text, matches that run into the root, rows too short to match."""
    shortest = min(shortest, ngram)
    starts = [data.draw(st.integers(0, 4)) for _ in rows]
    tail = data.draw(st.integers(0, 3))
    width = max(start + len(row) for start, row in zip(starts, rows, strict=True)) + tail
    batch = batch_of(rows, starts, width)
    with mock.patch.object(prompt_lookup, "_in_strings", look_up):
        trees = PromptLookup(ngram, shortest).draft(DraftRequest(batch, Chain(length).build()))
    for row, text in enumerate(rows):
        assert int(trees.tokens[row, 0]) == text[-1]
        assert proposed(trees, row) == slow(text, ngram, shortest, length)
    assert trees.num_nodes - 1 == max(len(slow(text, ngram, shortest, length)) for text in rows)
    assert trees.laws is None


@pytest.mark.parametrize(
    ("text", "continuation"),
    [
        ([5, 6, 7, 8, 5, 6, 7], [8, 5, 6, 7]),
        ([1, 2, 3], []),
        ([4, 4, 4, 4], [4] * 10),  # the most recent match ends one token before the root: a loop
        ([9, 5, 6, 7, 5, 6, 7], [5, 6, 7] * 3 + [5]),  # as long a loop as the n-gram shows
        ([9, 5, 6, 7, 8, 5, 6, 7, 8], [5, 6, 7, 8]),  # a longer one may be none
        ([9, 6, 7, 6], [7, 6]),  # one token that matches shows no loop of two
        ([1, 2, 9, 1, 2, 3, 1, 2], [3, 1, 2]),  # the most recent of two equals
        ([7, 1, 2, 9, 8, 2, 3, 1, 2], [9, 8, 2, 3, 1, 2]),  # a longer match beats a more recent one
        ([3], []),
    ],
)
def test_examples(text, continuation):
    trees = PromptLookup().draft(DraftRequest(batch_of([text], [0], len(text)), Chain(10).build()))
    assert proposed(trees, 0) == continuation


@pytest.mark.parametrize("token", [0, 0xD800, 0xDFFF, 0xFFFE, 0xFEFF, 0x10FFFF, 0x110000, 2**31 - 1])
def test_any_token_can_be_looked_up(token, monkeypatch):
    """Also those that are no characters, or marks among them; in strings as long as there are so many characters."""
    if token < 0x110000:
        monkeypatch.setattr(prompt_lookup, "_in_tensors", None)
    batch = batch_of([[1, token, 3, 0xD801, token, 1, token]], [2], 12)
    trees = PromptLookup().draft(DraftRequest(batch, Chain(4).build()))
    assert proposed(trees, 0) == [3, 0xD801, token, 1]


def test_a_tree_gives_its_depth_as_length():
    from specplug.trees import KAry

    trees = PromptLookup().draft(DraftRequest(batch_of([[1, 2, 3, 4, 1]], [0], 5), KAry(2, 2).build()))
    assert proposed(trees, 0) == [2, 3]


@pytest.mark.parametrize("options", [{"ngram": 0}, {"ngram": 2, "shortest": 3}, {"shortest": 0}])
def test_impossible_options(options):
    with pytest.raises(OptionError, match="1 <= shortest <= ngram"):
        PromptLookup(**options)
