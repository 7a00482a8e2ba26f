"""Trees grown at run time, against plain loops over a made-up draft whose law depends on the whole path."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import OptionError, Speculator
from specplug.drafters.base import DraftRequest
from specplug.drafters.grow import frontier_width, grow
from specplug.trees import Dynamic

VOCAB = 11


def law(row, path):
    """Logits of what follows `path`, the root's token first: [V]."""
    generator = torch.Generator().manual_seed(
        sum((token + 2) * 31**place for place, token in enumerate((row, *path))) % 2**31
    )
    return torch.randn(VOCAB, generator=generator) * 2


class PathRunner:
    """A stand-in for a draft model: it knows a node by the tokens of its ancestors, as attention would."""

    vocab_size = VOCAB

    def begin(self, batch, shape):
        self.shape, self.tokens, self.forwards = shape, batch.roots[:, None], 1
        return torch.stack([law(row, (int(root),)) for row, root in enumerate(batch.roots)])[:, None]

    def extend(self, tokens, level, ancestors=None):
        start, stop = self.shape.levels[level]
        assert tokens.shape[1] == stop - start and ancestors.shape[1:] == (stop, stop)
        self.tokens, self.forwards = torch.cat([self.tokens, tokens], 1), self.forwards + 1
        return torch.stack(
            [
                torch.stack([law(row, self.tokens[row][ancestors[row, node]].tolist()) for node in range(start, stop)])
                for row in range(len(tokens))
            ]
        )


def grown_in_plain_words(row, root, size, depth):
    """The paths of the kept nodes."""
    width, seen, frontier = frontier_width(size, depth), {}, [((root,), 0.0)]
    branch = min(size, max(2, width), VOCAB)
    for _ in range(depth):
        found = []
        for path, score in frontier:
            best = law(row, path).log_softmax(-1).topk(branch)
            found += [((*path, int(t)), score + float(p)) for p, t in zip(best.values, best.indices, strict=True)]
        seen |= dict(found)
        frontier = sorted(found, key=lambda node: -node[1])[:width]
    return {path[1:] for path in sorted(seen, key=lambda path: -seen[path])[:size]}


def paths_of(trees, row):
    ancestors, tokens = trees.ancestors[row], trees.tokens[row]
    return {tuple(tokens[line].tolist()[1:]) for line in ancestors[1:]}


def grow_for(roots, size, depth):
    batch = SimpleNamespace(roots=torch.tensor(roots), num_rows=len(roots), sampling=False)
    runner = PathRunner()
    return grow(None, runner, DraftRequest(batch, Dynamic(size, depth).build(), grown=True)), runner


@settings(max_examples=200)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 5))
def test_the_most_probable_nodes_that_were_seen_are_kept(roots, size, depth):
    depth = min(size, depth)
    trees, runner = grow_for(roots, size, depth)
    assert trees.tokens[:, 0].tolist() == roots and runner.forwards == depth
    for row, root in enumerate(roots):
        assert paths_of(trees, row) == grown_in_plain_words(row, root, size, depth)


@given(st.integers(1, 12), st.integers(1, 5))
def test_a_grown_tree_keeps_within_what_was_asked_for(size, depth):
    depth = min(size, depth)
    trees, runner = grow_for([3, 7], size, depth)
    bound = Dynamic(size, depth).build()
    assert trees.num_nodes - 1 <= bound.size == size and int(trees.depths.max()) <= bound.depth == depth
    # what is forwarded fits in the places of the tree that is verified
    assert runner.tokens.shape[1] <= size + 1
    assert trees.law_index is None  # nothing was drawn


def test_rows_have_trees_of_their_own():
    trees, _ = grow_for([1, 2, 3, 4], 8, 4)
    assert len({tuple(parents) for parents in trees.parents.tolist()}) > 1
    alone, _ = grow_for([1], 8, 4)
    assert trees.tokens[0].tolist() == alone.tokens[0].tolist()


@pytest.mark.parametrize(("size", "depth"), [(0, 1), (4, 5), (3, 0)])
def test_sizes_that_cannot_be(size, depth):
    with pytest.raises(OptionError, match="1 <= depth <= size"):
        Dynamic(size, depth)


def test_only_drafts_that_can_are_asked_to_grow():
    from specplug_conformance.request import Request
    from specplug_conformance.toy.host import ToyHost
    from specplug_conformance.toy.model import make_model

    host = ToyHost(make_model(0, 13, torch.float64), Request(((1, 2),)))
    for drafter, grown in (("self", True), ("prompt_lookup", False)):
        session = Speculator(drafter=drafter, tree="dynamic:size=8,depth=3", controller="fixed").open(host)
        assert session.arms[0].grown == grown
    assert Speculator(drafter="self", tree="dynamic:size=8,depth=3").max_nodes == 9
