"""Seeds by request, and what a request has generated when its last round is still on the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specplug_sglang.requests import Requests, tokens_of, written
from specplug_sglang.text import TextStore


def request(rid, seed=None, prompt=(1, 2, 3), output=()):
    params = SimpleNamespace(sampling_seed=seed)
    return SimpleNamespace(rid=rid, sampling_params=params, origin_input_ids=list(prompt), output_ids=list(output))


def test_a_seed_of_ones_own_decides_alone():
    here, there = Requests(1).seeds([request("a", 7)]), Requests(2).seeds([request("b", 0), request("c", 7)])
    assert here[0] == there[1] != there[0]


def test_without_one_the_server_and_the_id_decide():
    one, other = Requests(1), Requests(2)
    assert one.seeds([request("a")]) == Requests(1).seeds([request("a")])
    assert len({*one.seeds([request("a"), request("b")]), *other.seeds([request("a"), request("b")])}) == 4


def test_who_is_absent_has_departed_once():
    known = Requests(0)
    a, b = request("a"), request("b")
    seeds = known.seeds([a, b])
    assert known.departed([a, b]) == [] and known.departed([b]) == ["a"] and known.departed([b]) == []
    assert known.seeds([a, b]) == seeds  # and may come back: retracted, and run again


def test_what_was_generated_when_all_is_known():
    assert written(request("a", output=[5, 6]), length=4, newest=[6]) == [5, 6]


def test_what_was_generated_when_the_last_round_is_on_the_way():
    assert written(request("a", output=[5]), length=6, newest=[6, 7, 8]) == [5, 6, 7, 8]
    assert written(request("a"), length=3, newest=[5]) == [5]


def test_a_count_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="Request a: 1 tokens are known and 1 in flight"):
        written(request("a", output=[5]), length=6, newest=[6])


def test_texts_by_request_slot():
    store = TextStore(torch.zeros(4, 10, dtype=torch.int32), vocab_size=50)
    store.begin(2, tokens_of(request("a", prompt=[1, 2, 999], output=[4])))
    store.append(torch.tensor([2, 3]), torch.tensor([4, 0]), torch.tensor([[7, 8], [9, 9]]))
    assert store.rows(torch.tensor([3, 2]), 6).tolist() == [[9, 9, 0, 0, 0, 0], [1, 2, 49, 4, 7, 8]]


def test_a_text_may_end_at_the_last_position():
    store = TextStore(torch.zeros(2, 4, dtype=torch.int32), vocab_size=50)
    store.append(torch.tensor([1]), torch.tensor([3]), torch.tensor([[7, 7, 7]]))
    assert store.rows(torch.tensor([1]), 4).tolist() == [[0, 0, 0, 7]]
