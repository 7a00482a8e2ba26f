import math

import pytest
import torch

from specplug.errors import OptionError
from specplug.kv_policies import clusters
from specplug.kv_policies.clusters import NONE, Clusters
from specplug.kv_policies.squeezed import Squeezed

from .layers import Layer, check_choice, chosen_sets, dot


class PlainClusters:
    """The keys of one row and KV head and their clusters, in plain words."""

    def __init__(self, keys, cluster):
        self.keys, self.cluster, self.made = keys, cluster, 0
        self.means, self.members = [], []

    def update(self, end):
        if end > 2 * self.made:
            self.made = end
            self.means = [self.keys[start] for start in range(0, end, self.cluster)]
            for _ in range(5):
                self.members = [[] for _ in self.means]
                for position in range(end):
                    self.members[self.nearest(position)].append(position)
                self.move()
        known = sum(map(len, self.members))
        for cluster, position in [(self.nearest(position), position) for position in range(known, end)]:
            self.members[cluster].append(position)
        self.move()

    def move(self):
        pairs = zip(self.means, self.members, strict=True)
        self.means = [self.keys[members].mean(0) if members else mean for mean, members in pairs]

    def nearest(self, position):
        key = self.keys[position]
        cosines = [dot(key, mean) / math.sqrt(dot(key, key) * dot(mean, mean)) for mean in self.means]
        return cosines.index(max(cosines))

    def choose(self, queries, scale, count):
        exponents = [[dot(query, mean) * scale for mean in self.means] for query in queries]
        totals = [
            sum(len(members) * math.exp(exponent) for members, exponent in zip(self.members, one, strict=True))
            for one in exponents
        ]
        scores = [
            sum(math.exp(one[at]) / total for one, total in zip(exponents, totals, strict=True))
            for at in range(len(self.means))
        ]
        found = []
        for at in sorted(range(len(scores)), key=lambda at: -scores[at]):
            worth = {
                position: sum(
                    math.exp(dot(query, self.keys[position]) * scale) / total
                    for query, total in zip(queries, totals, strict=True)
                )
                for position in self.members[at]
            }
            found += sorted(self.members[at], key=lambda position: -worth[position])
        return set(found[:count])


def plain(layer, cluster):
    return [[PlainClusters(keys, cluster) for keys in row] for row in layer.keys]


def plain_choice(known, layer, lengths, policy):
    """Let the rows grow to `lengths`; the positions chosen, by row and head."""
    group, answer = layer.queries.shape[1] // layer.keys.shape[1], []
    for row, length in enumerate(lengths):
        answer.append([])
        for head, one in enumerate(known[row]):
            one.update(max(0, length - policy.window))
            queries = layer.queries[row, head * group : head * group + group, length - 1]
            answer[-1].append(one.choose(queries, layer.scale, policy.anchors))
    return answer


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [None, 1])
def test_it_chooses_the_clusters_that_suit_the_newest_query(group, block, monkeypatch):
    if block:
        monkeypatch.setattr(clusters, "BLOCK", block)
    layer = Layer.random(rows=3, group=group, width=100, spread=1.0)
    policy = Squeezed(budget=24, window=8, cluster=6)
    chooser, known = policy.open(), plain(layer, policy.cluster)
    for lengths in ([50, 21, 6], [57, 21, 9], [58, 40, 11], [99, 47, 30], [100, 100, 31]):
        context = layer.at(lengths, policy.window, queries=2)
        chosen = chooser.choose(context)
        check_choice(chosen, context, policy.anchors)
        assert chosen_sets(chosen) == plain_choice(known, layer, lengths, policy)


def test_every_key_is_in_one_cluster():
    layer, ends = Layer.random(rows=3, width=100), torch.tensor([61, 100, 0])
    known = Clusters.none(layer.keys)
    known.update(layer.keys, ends, cluster=8)
    assert known.counts.tolist() == [8, 13, 0]
    assert torch.equal(known.sizes.sum(2), ends[:, None].expand(-1, 2))
    for row, end in enumerate(ends.tolist()):
        for head in range(2):
            labels = known.labels[row, head]
            assert (labels[:end] != NONE).all() and (labels[end:] == NONE).all()
            for cluster in labels[:end].unique().tolist():
                members = layer.keys[row, head][labels[:100] == cluster]
                torch.testing.assert_close(known.means[row, head, cluster], members.mean(0))


def test_keys_of_few_directions_fall_into_as_many_clusters():
    """Whatever their length: similarity is by cosine."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:3]
    kind = torch.arange(48) // 4 % 3  # runs of four, so that the first means are of every kind
    keys = directions[kind] * (0.1 + 3 * torch.rand(48, 1, generator=generator))
    known = Clusters.none(keys[None, None])
    known.update(keys[None, None], torch.tensor([48]), cluster=4)
    for cluster in known.labels[0, 0, :48].unique().tolist():
        assert len(kind[known.labels[0, 0, :48] == cluster].unique()) == 1


def test_what_joins_later_moves_nothing_else():
    layer = Layer.random(rows=1, heads=1, width=100)
    known = Clusters.none(layer.keys)
    known.update(layer.keys, torch.tensor([60]), cluster=8)
    before, sizes = known.labels[..., :60].clone(), known.sizes.clone()
    known.update(layer.keys, torch.tensor([75]), cluster=8)
    assert torch.equal(known.labels[..., :60], before)
    assert int((known.sizes - sizes).sum()) == 15
    assert known.made.tolist() == [60]
    known.update(layer.keys, torch.tensor([100]), cluster=8)
    assert known.made.tolist() == [60]
    assert known.counts.tolist() == [8]


def test_a_row_that_has_doubled_gets_new_clusters():
    layer = Layer.random(rows=2, width=100)
    known = Clusters.none(layer.keys)
    known.update(layer.keys, torch.tensor([20, 90]), cluster=8)
    fresh = Clusters.none(layer.keys)
    for ends in ([41, 95], [41, 100]):
        known.update(layer.keys, torch.tensor(ends), cluster=8)
    assert known.counts.tolist() == [6, 12]
    assert known.made.tolist() == [41, 90]
    fresh.update(layer.keys, torch.tensor([41, 90]), cluster=8)
    assert torch.equal(known.labels[0, :, :41], fresh.labels[0, :, :41])


def test_rows_know_nothing_of_each_other():
    """A row alone, one beside others, and one whose neighbours leave or double are chosen for alike."""
    policy, layer = Squeezed(budget=24, window=8, cluster=6), Layer.random(rows=3, width=100)
    together, alone = policy.open(), policy.open()
    together.choose(layer.at([50, 40, 12], policy.window))
    alone.choose(layer.at([40], policy.window, rows=[1]))
    context = layer.at([50, 41, 60], policy.window)
    assert torch.equal(together.choose(context)[1:2], alone.choose(layer.at([41], policy.window, rows=[1])))
    together.keep_rows([1, 2])
    chosen = together.choose(layer.at([47, 66], policy.window, rows=[1, 2]))
    assert torch.equal(chosen[:1], alone.choose(layer.at([47], policy.window, rows=[1])))
    check_choice(chosen, layer.at([47, 66], policy.window, rows=[1, 2]), policy.anchors)


def test_each_layer_has_its_own_clusters():
    policy = Squeezed(budget=24, window=8, cluster=6)
    layers = [Layer.random(seed=seed) for seed in range(2)]
    layers[1].index = 1
    both, apart = policy.open(), [policy.open(), policy.open()]
    for lengths in ([30, 20, 25], [40, 30, 64]):
        for layer, one in zip(layers, apart, strict=True):
            context = layer.at(lengths, policy.window)
            assert torch.equal(both.choose(context), one.choose(context))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_needle_is_found(dtype):
    layer = Layer.random(rows=2, heads=2, group=4, width=600, dim=32, dtype=dtype, spread=0.5)
    where = [[117, 400], [33, 208]]
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            direction = layer.keys[row, head, position].float().sign().to(dtype)
            layer.keys[row, head, position] = 8 * direction
            layer.queries[row, 4 * head : 4 * head + 4, -1] += 2 * direction
    policy = Squeezed(budget=96, window=64)
    context = layer.at([600, 600], policy.window)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    for row, heads in enumerate(where):
        for head, position in enumerate(heads):
            assert position in chosen[row, head].tolist()


def test_where_nothing_may_be_chosen_there_is_nothing():
    policy = Squeezed(budget=20, window=8, cluster=4)
    chooser, layer = policy.open(), Layer.random(rows=2)
    assert chosen_sets(chooser.choose(layer.at([0, 7], window=8))) == [[set(), set()]] * 2
    assert chosen_sets(chooser.choose(layer.at([2, 10], window=8))) == [[set(), set()], [{0, 1}, {0, 1}]]
    assert chosen_sets(chooser.choose(layer.at([10, 11], window=8))) == [[{0, 1}] * 2, [{0, 1, 2}] * 2]


@pytest.mark.parametrize("budget", [13, 20, 40])
def test_keys_that_are_all_alike(budget):
    """They share one cluster and leave the others empty."""
    layer = Layer.random(rows=2)
    layer.keys[:] = layer.keys[:, :, :1]
    policy = Squeezed(budget, window=8, cluster=4)
    context = layer.at([28, 26], policy.window)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    for row, choices in enumerate([20, 18]):
        assert [len(found) for found in chosen_sets(chosen)[row]] == [min(choices, policy.anchors)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"budget": 64}, "budget=64 must exceed window=64"),
        ({"cluster": 0}, "cluster=0 must be at least 1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        Squeezed(**options)
