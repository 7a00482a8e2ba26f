"""Penalties at every node, against what plain decoding would have at that node: one row, one prefix at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specplug.tree import TreeShape, fill_shape
from specplug_sglang import penalties
from specplug_sglang.penalties import apply, needed, node_counts

VOCAB = 7
SHAPE = TreeShape((-1, 0, 0, 1, 3))


def request(**params):
    defaults = dict(
        frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, min_new_tokens=0, stop_token_ids=None
    )
    return SimpleNamespace(
        sampling_params=SimpleNamespace(**defaults | params),
        eos_token_ids={6},
        tokenizer=SimpleNamespace(eos_token_id=5),
    )


def trees():
    return fill_shape(SHAPE, torch.tensor([[1, 2, 3, 2, 4], [0, 0, 5, 6, 1]]))


WRITTEN = [[4, 4, 1], [0]]  # the root is the last


def prefixes(row: int) -> list[list[int]]:
    """What has been generated before the token that each node's law is for."""
    tokens = trees().tokens[row].tolist()
    paths = [[], [1], [2], [1, 3], [1, 3, 4]]
    return [WRITTEN[row] + [tokens[node] for node in path] for path in paths]


def test_counts_are_of_the_nodes_own_prefix():
    counts = node_counts(WRITTEN, trees(), VOCAB)
    for row in range(2):
        for node, prefix in enumerate(prefixes(row)):
            assert counts[row, node].tolist() == [prefix.count(token) for token in range(VOCAB)]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.7},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.2, "presence_penalty": -0.4, "repetition_penalty": 0.8, "min_new_tokens": 4},
        {"min_new_tokens": 3, "stop_token_ids": [2]},
    ],
)
def test_a_node_has_the_logits_that_plain_decoding_would_have(params):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, SHAPE.num_nodes, VOCAB, generator=generator)
    reqs = [request(**params), request()]
    got = apply(logits, reqs, WRITTEN, trees())
    for node, prefix in enumerate(prefixes(0)):
        expected = logits[0, node].clone()
        p = reqs[0].sampling_params
        for token in range(VOCAB):
            if token in {5, 6, *(p.stop_token_ids or ())} and len(prefix) < p.min_new_tokens:
                expected[token] = -torch.inf
                continue
            expected[token] -= p.frequency_penalty * prefix.count(token) + p.presence_penalty * (token in prefix)
            if token in prefix:
                expected[token] *= p.repetition_penalty if expected[token] < 0 else 1 / p.repetition_penalty
        assert torch.allclose(got[0, node], expected)
    assert torch.equal(got[1], logits[1])  # the neighbour asked for nothing


def test_only_who_asks_pays():
    assert not needed([request()], [0])
    assert needed([request(), request(presence_penalty=0.1)], [3, 3])
    assert needed([request(min_new_tokens=4)], [3]) and not needed([request(min_new_tokens=4)], [4])


def test_a_tokenizer_is_not_needed():
    req = request(min_new_tokens=2)
    req.tokenizer = None
    assert penalties.stop_tokens(req) == {6}
