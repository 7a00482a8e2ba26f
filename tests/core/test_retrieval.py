import pytest
import torch

from specplug.errors import OptionError
from specplug.kv_policies import retrieval
from specplug.kv_policies.retrieval import Retrieval

from .layers import Layer, check_choice, chosen_sets, dot, softmax


def plain_choice(layer, row, head, length, window, chunk, count):
    """TriForce's retrieval in plain words: the positions of the chunks that the newest query would look at."""
    group = layer.queries.shape[1] // layer.keys.shape[1]
    choices = max(0, length - window)
    starts = [start for start in range(0, choices, chunk) if start + chunk <= length]
    votes = [0.0] * len(starts)
    for member in range(head * group, head * group + group):
        query = layer.queries[row, member, length - 1]
        means = [layer.keys[row, head, start : start + chunk].mean(0) for start in starts]
        if means:
            for at, weight in enumerate(softmax([dot(query, mean) * layer.scale for mean in means])):
                votes[at] += weight
    ranked = sorted(range(len(starts)), key=lambda at: (at > 0, -votes[at]))  # the first always
    positions = [starts[at] + step for at in ranked[: -(-count // chunk)] for step in range(chunk)]
    return {position for position in positions[:count] if position < choices}


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize(("budget", "window", "chunk"), [(20, 8, 4), (18, 8, 4), (12, 2, 5), (9, 8, 1)])
def test_it_chooses_the_chunks_that_suit_the_newest_query(group, budget, window, chunk):
    policy, lengths = Retrieval(budget, window, chunk), [64, 37, 21, 11]
    layer = Layer.random(rows=4, group=group)
    context = layer.at(lengths, window, queries=3)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    expected = [
        [plain_choice(layer, row, head, length, window, chunk, policy.anchors) for head in range(2)]
        for row, length in enumerate(lengths)
    ]
    assert chosen_sets(chosen) == expected


def test_a_refresh_gives_what_a_fresh_chooser_gives():
    policy, layer = Retrieval(budget=20, window=8, chunk=4), Layer.random(rows=3, width=90)
    chooser = policy.open()
    for lengths in ([30, 9, 3], [31, 12, 5], [31, 40, 19], [77, 41, 20], [90, 90, 90]):
        context = layer.at(lengths, policy.window)
        chosen = chooser.choose(context)
        check_choice(chosen, context, policy.anchors)
        assert torch.equal(chosen, policy.open().choose(context))


def test_rows_that_leave_take_their_means_along():
    policy, layer = Retrieval(budget=20, window=8, chunk=4), Layer.random(rows=4, width=90)
    chooser = policy.open()
    chooser.choose(layer.at([30, 9, 3, 50], policy.window))
    chooser.keep_rows([1, 3])
    assert torch.equal(
        chooser.choose(layer.at([33, 52], policy.window, rows=[1, 3])),
        policy.open().choose(layer.at([33, 52], policy.window, rows=[1, 3])),
    )
    chooser.keep_rows([1])
    context = layer.at([70], policy.window, rows=[3])
    assert torch.equal(chooser.choose(context), policy.open().choose(context))


def test_each_layer_has_its_own_means():
    policy = Retrieval(budget=20, window=8, chunk=4)
    layers = [Layer.random(seed=seed) for seed in range(2)]
    layers[1].index = 1
    chooser = policy.open()
    for lengths in ([30, 20, 25], [64, 64, 64]):
        for layer in layers:
            context = layer.at(lengths, policy.window)
            assert torch.equal(chooser.choose(context), policy.open().choose(context))


def test_only_new_chunks_are_read(monkeypatch):
    """Of ragged rows as many chunks are read as the row with most new ones has, not what the shortest row lacks."""
    read, keys_at = [], retrieval.keys_at
    monkeypatch.setattr(retrieval, "keys_at", lambda keys, at: read.append(at.shape[1]) or keys_at(keys, at))
    policy, layer = Retrieval(budget=20, window=8, chunk=4), Layer.random(rows=2, width=90)
    chooser = policy.open()
    for lengths in ([80, 9], [83, 11], [85, 12], [85, 20]):
        chooser.choose(layer.at(lengths, policy.window))
    assert read == [80, 4, 8]  # the second time no chunk became whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_needle_is_found(dtype):
    layer = Layer.random(rows=2, heads=2, group=4, width=600, dim=32, dtype=dtype, spread=0.5)
    where = [[117, 400], [33, 208]]
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            direction = layer.keys[row, head, position].float().sign().to(dtype)
            layer.keys[row, head, position] = 8 * direction
            layer.queries[row, 4 * head : 4 * head + 4, -1] += 2 * direction
    policy = Retrieval(budget=80, window=64)  # the first chunk and one more
    context = layer.at([600, 600], policy.window)
    chosen = policy.open().choose(context)
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            start = position // 8 * 8
            assert set(chosen[row, head].tolist()) == {*range(8), *range(start, start + 8)}


def test_where_nothing_may_be_chosen_there_is_nothing():
    policy = Retrieval(budget=20, window=8, chunk=4)
    chosen = policy.open().choose(Layer.random(rows=2).at([2, 10], window=8))
    assert chosen_sets(chosen) == [[set(), set()], [{0, 1}, {0, 1}]]
    assert chosen_sets(policy.open().choose(Layer.random(rows=1).at([0], window=8))) == [[set(), set()]]


def test_a_chunk_is_not_chosen_before_it_is_whole():
    """The last one begins before the window and ends behind the text."""
    policy = Retrieval(budget=72, window=2, chunk=5)
    chosen = policy.open().choose(Layer.random(rows=1).at([64], policy.window))
    assert chosen_sets(chosen) == [[set(range(60))] * 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"budget": 64}, "budget=64 must exceed window=64"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"budget": 70, "chunk": 7}, "chunk=7 .* at most budget - window = 6"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        Retrieval(**options)
