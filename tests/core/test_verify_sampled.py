"""The law of what a sampled verification emits, integrated exactly: over the draws of the draft and over the uniforms.

The tolerance, 2e-6, is what fp32 laws allow; `law_error` is also what `test_mutants.py` runs on deliberate faults.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from scipy import stats

from specplug import verify
from specplug.ragged import ragged_trees
from specplug.random import DRAFT_STREAM, VERIFY_STREAM, draw_without_replacement, row_seeds, uniforms
from specplug.tree import DETERMINISTIC, TreeShape, chain_trees, fill_shape, inner_nodes, roots_only
from specplug.trees import best_tree
from specplug_conformance.exact import orders

from .tools import CPU, emitted_law, first_tokens, target_law

TOLERANCE = 2e-6
ALARM = 1e-5


@dataclass(frozen=True)
class Case:
    """A tree shape; at each inner node a draft law, and how many of its first children are deterministic instead."""

    shape: TreeShape
    vocab: int = 3
    seed: int = 0
    deterministic: int = 0
    one_hot_target: bool = False
    draft: str = "random"  # "random", "same" (equal to the target), "narrow" (fewer tokens than children), "far"

    def target(self, path):
        law = target_law(self.vocab, self.seed)(path)
        return torch.nn.functional.one_hot(law.argmax(), self.vocab).float() if self.one_hot_target else law

    def law(self, path):
        if self.draft == "same":
            return self.target(path)
        law = target_law(self.vocab, self.seed + 1000, 3.0 if self.draft == "far" else 1.0)(path)
        if self.draft == "narrow":
            law = torch.nn.functional.one_hot(law.argmax(), self.vocab).float()
        return law

    def fills(self):
        """Every way to fill the tree: tokens by node, the laws by inner node, and the probability."""
        shape, inner = self.shape, inner_nodes(self.shape)

        def extend(tokens, laws, mass, rest):
            if not rest:
                yield tokens, laws, mass
                return
            node = rest[0]
            path, walk = [], node
            while walk:
                path.insert(0, tokens[walk])
                walk = shape.parents[walk]
            law = self.law(tuple(path))
            children = [i for i, parent in enumerate(shape.parents) if parent == node]
            fixed = torch.sort(law, descending=True, stable=True).indices.tolist()[: self.deterministic]
            for drawn, share in orders(law, len(children[len(fixed) :])):
                filled = tokens | dict(zip(children, [*fixed, *drawn], strict=False))
                yield from extend(filled, [*laws, law], mass * share, rest[1:])

        yield from extend({0: 0}, [], 1.0, list(inner))

    def trees(self):
        fills = list(self.fills())
        tokens = torch.tensor([[fill[node] for node in range(self.shape.num_nodes)] for fill, _, _ in fills])
        laws = torch.stack([torch.stack(laws) for _, laws, _ in fills])
        trees = fill_shape(self.shape, tokens, laws)
        index = trees.law_index.clone()
        for node in range(1, self.shape.num_nodes):
            elder = self.shape.parents[:node].count(self.shape.parents[node])
            if elder < self.deterministic:
                index[0, node] = DETERMINISTIC
        trees = type(trees)(**{name: getattr(trees, name) for name in trees.__slots__} | {"law_index": index})
        return trees, [mass for _, _, mass in fills]


def law_error(case):
    """Largest difference between the two-token law of speculation and the target's own."""
    trees, masses = case.trees()
    assert sum(masses) == pytest.approx(1, abs=1e-6)
    got = sum(
        mass * first_tokens(law, case.target, case.vocab)
        for mass, law in zip(masses, emitted_law(trees, case.target), strict=True)
    )
    exact = first_tokens({(): 1.0}, case.target, case.vocab)
    return float((got - exact).abs().max())


CHAIN = TreeShape((-1, 0, 1))
FORK = TreeShape((-1, 0, 0))
THREE = TreeShape((-1, 0, 0, 0))
BOTH = TreeShape((-1, 0, 0, 1, 1))
UNEVEN = TreeShape((-1, 0, 0, 1, 2, 2))

CASES = {
    "chain": Case(CHAIN),
    "chain, V=4": Case(CHAIN, vocab=4, seed=1),
    "chain, V=2": Case(CHAIN, vocab=2, seed=2),
    "fork": Case(FORK, seed=3),
    "three children, V=4": Case(THREE, vocab=4, seed=4),
    "every token a child": Case(THREE, vocab=3, seed=5),
    "two levels": Case(BOTH, seed=6),
    "two levels, uneven": Case(UNEVEN, seed=7),
    "far draft": Case(BOTH, seed=8, draft="far"),
    "p = q (zero residual)": Case(BOTH, seed=9, draft="same"),
    "p = q, chain": Case(CHAIN, vocab=4, seed=9, draft="same"),
    "q exhausted": Case(THREE, seed=10, draft="narrow"),
    "q exhausted, two levels": Case(BOTH, seed=11, draft="narrow"),
    "one-hot p": Case(BOTH, seed=12, one_hot_target=True),
    "one-hot p, far draft": Case(THREE, seed=13, one_hot_target=True, draft="far"),
    "one-hot p and q": Case(FORK, seed=14, one_hot_target=True, draft="narrow"),
    "one-hot p = q": Case(CHAIN, seed=14, one_hot_target=True, draft="same"),
    "deterministic chain": Case(CHAIN, seed=15, deterministic=1),
    "deterministic children": Case(BOTH, seed=16, deterministic=2),
    "mixed, duplicates among siblings": Case(THREE, vocab=4, seed=17, deterministic=1),
    "mixed, two levels": Case(BOTH, seed=18, deterministic=1),
    "mixed with p = q": Case(THREE, vocab=3, seed=19, deterministic=1, draft="same"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_law_is_the_targets(case):
    assert law_error(case) < TOLERANCE


def test_merged_drafters_with_equal_tokens():
    """A law's two children, a deterministic child and another law's child under one root, all equal tokens possible."""
    vocab, target = 3, target_law(3, 30)
    first, second = target_law(3, 31)(()), target_law(3, 32)(())
    total, got = 0.0, torch.zeros(9, dtype=torch.float64)
    fills = [
        (a, b, mass_a * mass_b) for (a, mass_a), (b, mass_b) in itertools.product(orders(first, 2), orders(second, 1))
    ]
    for fixed in range(vocab):
        tokens = torch.tensor([[0, *a, fixed, *b] for a, b, _ in fills])
        rows = len(fills)
        trees = ragged_trees(
            tokens,
            torch.tensor([[-1, 0, 0, 0, 0]]).repeat(rows, 1),
            laws=torch.stack([first, second]).repeat(rows, 1, 1),
            law_index=torch.tensor([[-1, 0, 0, DETERMINISTIC, 1]]).repeat(rows, 1),
        )
        for (_, _, mass), law in zip(fills, emitted_law(trees, target), strict=True):
            got += mass / vocab * first_tokens(law, target, vocab)
            total += mass / vocab
    assert total == pytest.approx(1, abs=1e-6)
    assert float((got - first_tokens({(): 1.0}, target, vocab)).abs().max()) < TOLERANCE


def test_ragged_chains_and_padding_nodes():
    """Rows use different numbers of tokens, fixed before drawing; every row's law is exact on its own."""
    vocab, target = 3, target_law(3, 40)
    for tokens in itertools.product(range(vocab), repeat=2):
        trees = chain_trees(torch.zeros(3, dtype=torch.int64), torch.tensor([tokens] * 3), torch.tensor([2, 1, 0]))
        for law in emitted_law(trees, target):
            assert (
                float((first_tokens(law, target, vocab) - first_tokens({(): 1.0}, target, vocab)).abs().max())
                < TOLERANCE
            )


def test_rows_with_different_shapes():
    vocab, target, draft = 3, target_law(3, 50), target_law(3, 51)
    parents = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, 2], [-1, 0, 0, 0]])
    valid = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    law = draft(())
    got = torch.zeros(3, 9, dtype=torch.float64)
    for drawn, mass in orders(law, 3):
        # row 0: two drawn children, a deterministic grandchild; row 1: a drawn child, a deterministic chain; row 2: one
        tokens = torch.tensor([[0, drawn[0], drawn[1], 2], [0, drawn[0], 1, 0], [0, drawn[0], drawn[1], drawn[2]]])
        trees = ragged_trees(
            tokens,
            parents,
            valid,
            laws=law.repeat(3, 1, 1),
            law_index=torch.tensor([[-1, 0, 0, -1], [-1, 0, -1, -1], [-1, 0, 0, 0]]),
        )
        for row, emitted in enumerate(emitted_law(trees, target)):
            got[row] += mass * first_tokens(emitted, target, vocab)
    assert float((got - first_tokens({(): 1.0}, target, vocab)).abs().max()) < TOLERANCE


def test_keeping_only_some_of_what_was_drawn_is_not_lossless():
    """Why child counts are fixed before drawing (DESIGN): p = q = (1/2, 1/2), dropping a drawn 0 gives P(1) = 3/4."""
    half = torch.tensor([0.5, 0.5])
    kept = chain_trees(torch.zeros(2, dtype=torch.int64), torch.tensor([[0], [1]]), torch.tensor([0, 1]))
    kept = type(kept)(
        **{name: getattr(kept, name) for name in kept.__slots__}
        | {"laws": half.repeat(2, 1, 1), "law_index": torch.tensor([[-1, 0]])}
    )
    law = [first_tokens(emitted, lambda path: half, 2, 1) for emitted in emitted_law(kept, lambda path: half)]
    assert (law[0] / 2 + law[1] / 2).tolist() == pytest.approx([0.25, 0.75])


def test_a_root_alone_draws_from_the_target():
    p = torch.tensor([[[0.25, 0.75]]])
    trees = roots_only(torch.tensor([0]))
    for u, token in ((0.2, 0), (0.3, 1)):
        verdict = verify.verify_sampled(trees, p, torch.zeros(1, 1).double(), torch.tensor([u]).double())
        assert verdict.tokens(trees).tolist() == [[token]]


def test_a_broken_draft_law_still_yields_the_target():
    """A draft that computes NaN loses speed, not exactness: its tokens are verified as deterministic."""
    law = target_law(3, 60)
    trees = fill_shape(FORK, torch.tensor([[0, 1, 2]]), torch.full((1, 1, 3), float("nan")))
    got = first_tokens(emitted_law(trees, law)[0], law, 3)
    assert float((got - first_tokens({(): 1.0}, law, 3)).abs().max()) < TOLERANCE


def emitted_counts(vocab, shape, rows, seed=0, noise=1.0):
    """First token emitted, counted over `rows` with the real draws, for one target and one draft law."""
    target, draft = target_law(vocab, seed, 1.5)(()), target_law(vocab, seed + 1, 1.5)(())
    draft = (target.log() + noise * draft.log()).softmax(-1)
    seeds, positions = row_seeds(seed, rows, CPU), torch.zeros(rows, dtype=torch.int64)
    uniform = uniforms(seeds, positions, DRAFT_STREAM, vocab)
    children = draw_without_replacement(draft.expand(rows, -1), shape.size, uniform)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), children], 1)
    trees = fill_shape(shape, tokens, draft.expand(rows, 1, -1))
    accept = uniforms(seeds, positions, VERIFY_STREAM, shape.num_nodes)
    verdict = verify.verify_sampled(trees, target.expand(rows, shape.num_nodes, -1), accept, accept[:, 0])
    return torch.bincount(verdict.tokens(trees)[:, 0], minlength=vocab), target.double() / target.double().sum()


def chi_square(counts, law):
    return stats.chisquare(counts.numpy(), (law * counts.sum()).numpy()).pvalue


@pytest.mark.parametrize("children", [1, 4])
def test_chi_square_at_64_tokens(children):
    """n = 60 000 fixed beforehand. A lossless sampler fails with probability 1e-5 (once: the seeds are fixed)."""
    shape = best_tree((0.5,) * children, children, 1)
    counts, law = emitted_counts(64, shape, 60_000)
    assert chi_square(counts, law) > ALARM
