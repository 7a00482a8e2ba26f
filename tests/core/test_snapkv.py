import pytest
import torch

from specplug.errors import OptionError
from specplug.kv_policies import attention
from specplug.kv_policies.base import ChoosingPolicy
from specplug.kv_policies.snapkv import SnapKV
from specplug.needs import Need

from .layers import Layer, check_best, check_choice, chosen_sets, dot, softmax


def plain_scores(layer, row, head, length, window, pool, queries):
    """SnapKV in plain words: what each choosable position of one row and KV head is worth."""
    group = layer.queries.shape[1] // layer.keys.shape[1]
    choices = max(0, length - window)
    received = [0.0] * choices
    for own in range(length - queries, length):
        for member in range(head * group, head * group + group):
            query = layer.queries[row, member, own]
            weights = softmax(
                [dot(query, layer.keys[row, head, position]) * layer.scale for position in range(own + 1)]
            )
            for position in range(min(choices, own + 1)):
                received[position] += weights[position]
    half = pool // 2
    return [sum(received[max(0, at - half) : at + half + 1]) / pool for at in range(choices)]


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [None, 1])
def test_it_chooses_what_the_last_queries_look_at(group, block, monkeypatch):
    if block:
        monkeypatch.setattr(attention, "BLOCK", block)
    layer = Layer.random(group=group, width=40)
    policy, lengths = SnapKV(budget=10, window=4, pool=3), [40, 23, 9]
    context = layer.at(lengths, policy.window, queries=6)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    for row, heads in enumerate(chosen_sets(chosen)):
        for head, found in enumerate(heads):
            check_best(found, plain_scores(layer, row, head, lengths[row], 4, 3, queries=4), policy.anchors)


def test_queries_that_are_not_there_do_not_count():
    layer = Layer.random(width=40)
    policy, lengths = SnapKV(budget=10, window=4, pool=1), [40, 23, 9]
    context = layer.at(lengths, policy.window, queries=6, real=2)
    for row, heads in enumerate(chosen_sets(policy.open().choose(context))):
        for head, found in enumerate(heads):
            check_best(found, plain_scores(layer, row, head, lengths[row], 4, 1, queries=2), policy.anchors)


def test_blocks_change_nothing(monkeypatch):
    context = Layer.random(rows=2, heads=4, group=3, width=50).at([50, 31], window=8, queries=8)
    whole = attention.received(context, 8)
    for block in (1, 700, 2500, 10_000):
        monkeypatch.setattr(attention, "BLOCK", block)
        torch.testing.assert_close(attention.received(context, 8), whole)


def test_blocks_keep_to_their_size(monkeypatch):
    """The largest tensor that softmax sees has at most BLOCK scores."""
    seen, softmax_of = [], torch.Tensor.softmax
    monkeypatch.setattr(attention, "BLOCK", 3000)
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: seen.append(self.numel()) or softmax_of(self, dim))
    attention.received(Layer.random(rows=2, heads=4, group=3, width=50).at([50, 31], window=8, queries=8), 8)
    assert max(seen) <= 3000
    assert sum(seen) == 2 * 12 * 8 * 53


def test_all_attention_is_given_out():
    context = Layer.random(group=3, width=40).at([40, 2, 17], window=4, queries=4)
    total = attention.received(context, 4).sum(2)
    torch.testing.assert_close(total, context.query_counts[:, None].expand(-1, 2) * 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_needle_is_found(dtype):
    layer = Layer.random(rows=2, heads=2, group=4, width=600, dim=32, dtype=dtype, spread=1.0)
    where = [[117, 400], [33, 208]]
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            asking = layer.queries[row, 4 * head : 4 * head + 4, -32:]
            layer.keys[row, head, position] = 3 * asking.float().mean((0, 1)).sign().to(dtype)
            asking += layer.keys[row, head, position]
    policy = SnapKV(budget=48)
    context = layer.at([600, 600], policy.window, queries=32)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            near = set(range(position - 2, position + 3))  # it comes with its neighbours
            assert near <= set(chosen[row, head].tolist())


def test_what_is_chosen_does_not_hang_on_the_other_rows():
    layer = Layer.random(rows=3, width=40)
    chooser = SnapKV(budget=10, window=4).open()
    together = chooser.choose(layer.at([40, 23, 9], window=4))
    chooser.keep_rows([1])
    alone = chooser.choose(layer.at([23], window=4, rows=[1]))
    assert torch.equal(alone, together[1:2])


def test_where_nothing_may_be_chosen_there_is_nothing():
    policy = SnapKV(budget=10, window=4)
    context = Layer.random(rows=2, width=40).at([3, 6], window=4)
    chosen = policy.open().choose(context)
    assert chosen_sets(chosen) == [[set(), set()], [{0, 1}, {0, 1}]]


def test_its_options():
    policy = SnapKV()
    assert isinstance(policy, ChoosingPolicy) and policy.needs == {Need.QUERIES}
    assert (policy.budget, policy.window, policy.anchors, policy.queries) == (512, 32, 480, 32)
    assert policy.key == "snapkv 512, chosen every 8"
    assert policy.select(torch.tensor([7])).anchors.shape == (1, 1, 1, 480)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"budget": 32}, "budget=32 must exceed window=32"),
        ({"refresh": -1}, "refresh=-1"),
        ({"pool": 4}, "pool=4 must be odd"),
        ({"pool": -1}, "pool=-1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        SnapKV(**options)
