"""Verification by Triton gives the tokens of `specplug.verify`, which enumeration and chi-square hold to the law."""

from __future__ import annotations

from dataclasses import replace

import no_readback
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from specplug.ragged import ragged_trees
from specplug.random import VERIFY_STREAM, draw_without_replacement, uniforms
from specplug.tree import TreeBatch, TreeShape, chain_trees, fill_shape
from specplug.verify import Verdict, verify_greedy, verify_sampled

pytest.importorskip("triton", reason="needs the triton package (specplug[triton])")

from specplug_kernels import ancestor_bitmap, verify_greedy_triton, verify_sampled_triton

MARGIN = 1e-5
"""A uniform this close (relative) to a threshold may fall on its other side: sums of float32 in another order."""


def sampled(trees: TreeBatch, probs: Tensor, accept: Tensor, bonus: Tensor, device: torch.device) -> Verdict:
    def there(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    verdict = verify_sampled_triton(
        *(t.to(device) for t in (trees.tokens, trees.children, probs, accept, bonus)),
        max_depth=trees.max_depth,
        valid=there(trees.valid),
        laws=there(trees.laws),
        law_index=there(trees.law_index),
    )
    return Verdict(*(t.cpu() for t in verdict))


def greedy(trees: TreeBatch, targets: Tensor, device: torch.device) -> Verdict:
    verdict = verify_greedy_triton(
        *(t.to(device) for t in (trees.tokens, trees.parents, trees.depths, ancestor_bitmap(trees.ancestors), targets)),
        max_depth=trees.max_depth,
        valid=None if trees.valid is None else trees.valid.to(device),
    )
    return Verdict(*(t.cpu() for t in verdict))


def agreeing(ours: Verdict, theirs: Verdict) -> Tensor:
    """[B] bool: rows whose verdicts are the same."""
    same = (ours.path == theirs.path).all(1) & (ours.num_accepted == theirs.num_accepted)
    return same & (ours.bonus == theirs.bonus)


def clear_rows(trees: TreeBatch, probs: Tensor, accept: Tensor, bonus: Tensor) -> tuple[Verdict, Tensor]:
    """The verdict, and the rows where uniforms moved by `MARGIN` either way do not change it."""
    verdict = verify_sampled(trees, probs, accept, bonus)
    clear = torch.ones(len(bonus), dtype=torch.bool)
    for nudge in (1 - MARGIN, 1 + MARGIN):
        for nudged in ((accept * nudge, bonus), (accept, (bonus * nudge).clamp(max=1 - 2**-53))):
            clear &= agreeing(verify_sampled(trees, probs, *nudged), verdict)
    return verdict, clear


def random_laws(*shape: int, zeros: float) -> Tensor:
    laws = torch.rand(shape) ** 3
    laws[torch.rand(shape) < zeros] = 0
    laws[..., 0] += 1e-3
    return laws / laws.sum(-1, keepdim=True)


@st.composite
def sampled_cases(draw: st.DrawFn) -> tuple[TreeBatch, Tensor, Tensor, Tensor]:
    """Ragged trees of drawn and of deterministic children, padding, equal siblings (which exhaust q), p = q.

    The rule must agree for any uniforms, so acceptance gets large ones now and then: rejections are what is hard.
    """
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    rows, nodes, vocab = 8, draw(st.integers(1, 14)), draw(st.integers(2, 9))
    kind = draw(st.sampled_from(("chain", "wide", "any")))
    lowest = [max(0, i - 1) if kind == "chain" else 0 for i in range(nodes)]
    parents = torch.tensor(
        [[-1] + [int(torch.randint(lowest[i], min(i, 3) if kind == "wide" else i, ())) for i in range(1, nodes)]] * rows
    )
    parents[1::2, 2:] = parents[1::2, 2:].clamp(max=1)  # rows differ in shape
    laws = random_laws(rows, nodes, vocab, zeros=draw(st.sampled_from((0.0, 0.5))))
    tokens = torch.stack([laws[row, parents[row].clamp(min=0)].multinomial(1)[:, 0] for row in range(rows)])
    law_index = parents.clone()
    law_index[torch.rand(rows) < draw(st.sampled_from((0.0, 0.3)))] = -1
    valid = torch.rand(rows, nodes) < 0.9 if draw(st.booleans()) else None
    probs = laws.clone() if draw(st.integers(0, 4)) == 0 else random_laws(rows, nodes, vocab, zeros=0.2)
    given_laws = (laws, law_index) if draw(st.integers(0, 4)) else (None, None)
    accept, bonus = random_uniforms(seed, rows, nodes)
    if draw(st.booleans()):
        accept = accept.sqrt().sqrt()
    return ragged_trees(tokens, parents, valid, *given_laws), probs, accept, bonus


def random_uniforms(seed: int, rows: int, nodes: int) -> tuple[Tensor, Tensor]:
    numbers = uniforms(torch.arange(rows) + 1000 * seed, torch.full((rows,), 7), VERIFY_STREAM, nodes + 1)
    return numbers[:, 1:], numbers[:, 0]


def test_the_tokens_are_those_of_the_rule_in_torch(device: torch.device) -> None:
    """The same tokens wherever no threshold is within rounding; elsewhere, either side is right, and rare."""
    seen = {"rows": 0, "unclear": 0, "accepted": 0}

    @settings(max_examples=50)
    @given(case=sampled_cases())
    def compare(case: tuple[TreeBatch, Tensor, Tensor, Tensor]) -> None:
        expected, clear = clear_rows(*case)
        assert (agreeing(sampled(*case, device), expected) | ~clear).all()
        seen["rows"] += len(clear)
        seen["unclear"] += int((~clear).sum())
        seen["accepted"] += int(expected.num_accepted.sum())

    compare()
    # p = q leaves a residual of rounding errors, whose law may be anything; it takes a uniform within rounding of 1
    assert seen["unclear"] <= 0.02 * seen["rows"] and seen["accepted"] > seen["rows"] / 5


def test_every_child_refused_and_the_corner_rules(device: torch.device) -> None:
    """Uniforms of 1 refuse whatever can be refused: residuals of p = q, of one-hot laws, and children of two laws."""
    torch.manual_seed(2)
    shape = TreeShape((-1, 0, 0, 0, 0, 0))
    laws = random_laws(40, 2, 6, zeros=0.3)
    laws[:4] = torch.nn.functional.one_hot(torch.tensor(3), 6).float()
    probs = random_laws(40, 6, 6, zeros=0.3)
    probs[:20, 0] = laws[:20, 0]
    tokens = torch.cat([torch.zeros(40, 1, dtype=torch.int64), laws[:, 0].multinomial(5, replacement=True)], 1)
    tokens[:, 3:] = laws[:, 1].multinomial(3, replacement=True)
    trees = fill_shape(shape, tokens, laws=laws)
    accept, bonus = torch.ones(40, 6).double(), random_uniforms(1, 40, 6)[1]
    for law_index in ([-1, 0, 0, 1, 1, 1], [-1, 0, 0, 0, 0, -1], [-1, -1, -1, -1, 1, 1]):
        refusing = replace(trees, law_index=torch.tensor([law_index]))
        expected = verify_sampled(refusing, probs, accept, bonus)
        assert agreeing(sampled(refusing, probs, accept, bonus, device), expected).all()


@pytest.mark.parametrize("vocab", [1023, 1025, 5000])
def test_vocabularies_of_several_blocks(device: torch.device, vocab: int) -> None:
    torch.manual_seed(vocab)
    shape = TreeShape((-1, 0, 0, 0, 1, 1, 2))
    laws, probs = random_laws(3, 3, vocab, zeros=0.5), random_laws(3, 7, vocab, zeros=0.5)
    first = [draw_without_replacement(laws[:, i], n, torch.rand(3, vocab).double()) for i, n in enumerate((3, 2, 1))]
    trees = fill_shape(shape, torch.cat([torch.zeros(3, 1, dtype=torch.int64), *first], 1), laws=laws)
    accept, bonus = random_uniforms(vocab, 3, 7)
    for accepting in (accept, accept * 0.2):
        expected, clear = clear_rows(trees, probs, accepting, bonus)
        assert clear.all()
        assert agreeing(sampled(trees, probs, accepting, bonus, device), expected).all()


def test_the_largest_vocabulary(device: torch.device) -> None:
    vocab = 262_144
    probs, laws = torch.rand(1, 2, vocab), torch.rand(1, 1, vocab)
    probs, laws = probs / probs.sum(-1, keepdim=True), laws / laws.sum(-1, keepdim=True)
    for token, accept in ((int((laws - probs[:, :1]).argmax()), 0.99), (7, 0.0)):
        tokens = torch.tensor([[0, token]])
        trees = fill_shape(TreeShape((-1, 0)), tokens, laws=laws)
        given_uniforms = torch.tensor([[0.5, accept]]).double(), torch.tensor([0.9]).double()
        expected = verify_sampled(trees, probs, *given_uniforms)
        ours = sampled(trees, probs, *given_uniforms, device)
        # a law of 262144 tokens has thresholds every 4e-6: closer than MARGIN; sums of 256 float32 a lane are not
        assert torch.equal(ours.num_accepted, expected.num_accepted)
        assert abs(int(ours.bonus) - int(expected.bonus)) <= 1


def test_no_token_of_weight_zero_is_drawn_at_either_end(device: torch.device) -> None:
    """Uniforms of 0 and of the float64 below 1, where rounding may point past the last token with weight."""
    vocab = 1500
    probs = torch.zeros(2, 1, vocab)
    probs[:, 0, 100:1200] = torch.rand(2, 1100)
    trees = fill_shape(TreeShape((-1,)), torch.zeros(2, 1, dtype=torch.int64))
    bonus = torch.tensor([0.0, 1 - 2**-53]).double()
    ours = sampled(trees, probs, torch.zeros(2, 1).double(), bonus, device)
    assert ours.bonus.tolist() == [100, 1199]


def test_trees_that_are_cut_short_and_rows_of_different_laws(device: torch.device) -> None:
    """A chain shared by all rows, some shorter; a one-hot target accepts all or nothing."""
    probs = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [9, 1, 1, 1]]), 12).float()
    trees = chain_trees(torch.zeros(3, dtype=torch.int64), torch.tensor([[1, 2, 3]] * 3), torch.tensor([3, 1, 3]))
    accept, bonus = random_uniforms(3, 3, 4)
    ours = sampled(trees, probs, accept, bonus, device)
    assert ours.path.tolist() == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert ours.num_accepted.tolist() == [3, 1, 0] and ours.bonus.tolist() == [4, 2, 9]


def test_the_law_of_the_first_token_is_the_targets(device: torch.device) -> None:
    """Chi-square of 200 rows over 4 tokens, two children drawn without replacement; false alarms: one in a million."""
    rows, p, q = 200, torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.55, 0.25, 0.15, 0.05])
    noise = uniforms(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), 1, 4)
    drawn = draw_without_replacement(q.expand(rows, -1), 2, noise)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), drawn], 1)
    trees = fill_shape(TreeShape((-1, 0, 0)), tokens, laws=q.expand(rows, 1, -1).contiguous())
    ours = sampled(trees, p.expand(rows, 3, -1), *random_uniforms(5, rows, 3), device)
    first = ours.tokens(trees)[:, 0]
    expected = p.double() / p.double().sum() * rows
    counts = torch.bincount(first, minlength=4)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-6


@settings(max_examples=60)
@given(data=st.data())
def test_greedy_paths_are_those_of_torch(device: torch.device, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    rows, nodes, vocab = (data.draw(st.integers(low, high)) for low, high in ((1, 4), (1, 40), (1, 3)))
    narrow = data.draw(st.sampled_from((1, 2, 40)))
    parents = [[-1] + [int(torch.randint(max(0, i - narrow), i, ())) for i in range(1, nodes)] for _ in range(rows)]
    valid = torch.rand(rows, nodes) < 0.9 if data.draw(st.booleans()) else None
    trees = ragged_trees(torch.randint(0, vocab, (rows, nodes)), torch.tensor(parents), valid)
    targets = torch.randint(0, vocab, (rows, nodes))
    assert agreeing(greedy(trees, targets, device), verify_greedy(trees, targets)).all()


@pytest.mark.parametrize("nodes", [1, 2, 32, 33, 129])
def test_greedy_chains(device: torch.device, nodes: int) -> None:
    tokens = torch.arange(nodes - 1).repeat(3, 1) + 1
    trees = chain_trees(torch.zeros(3, dtype=torch.int64), tokens, torch.tensor([nodes - 1, nodes // 2, nodes - 1]))
    targets = torch.arange(1, nodes + 1).repeat(3, 1)
    targets[2, nodes // 3] = 0
    ours, theirs = greedy(trees, targets, device), verify_greedy(trees, targets)
    assert agreeing(ours, theirs).all()
    assert theirs.num_accepted.tolist() == [nodes - 1, nodes // 2, nodes // 3]


def test_nothing_is_read_back(device: torch.device) -> None:
    trees, probs, accept, bonus = _fixed_case()
    bitmap, targets = ancestor_bitmap(trees.ancestors), probs.argmax(-1)
    given_laws = {"laws": trees.laws.to(device), "law_index": trees.law_index.to(device)}
    to_sampled = [t.to(device) for t in (trees.tokens, trees.children, probs, accept, bonus)]
    to_greedy = [t.to(device) for t in (trees.tokens, trees.parents, trees.depths, bitmap, targets)]
    with no_readback.NoReadback():
        sampled = verify_sampled_triton(*to_sampled, max_depth=2, **given_laws)
        greedy_verdict = verify_greedy_triton(*to_greedy, max_depth=2)
        with pytest.raises(AssertionError, match="waits for the device"):  # the guard sees what it is there for
            sampled.bonus.sum().item()
    assert sampled.path.shape == greedy_verdict.path.shape == (1, 3)


def _fixed_case() -> tuple[TreeBatch, Tensor, Tensor, Tensor]:
    tokens = torch.tensor([[0, 1, 2, 3]])
    trees = fill_shape(TreeShape((-1, 0, 0, 1)), tokens, laws=random_laws(1, 2, 6, zeros=0.0))
    return trees, random_laws(1, 4, 6, zeros=0.0), *random_uniforms(1, 1, 4)


def test_dtypes_that_do_not_fit_are_named() -> None:
    trees, probs, accept, bonus = _fixed_case()
    given_trees = trees.tokens, trees.children
    with pytest.raises(ValueError, match=r"probs must be torch.float32, not torch.float16"):
        verify_sampled_triton(*given_trees, probs.half(), accept, bonus, max_depth=2)
    with pytest.raises(ValueError, match=r"accept must be torch.float64"):
        verify_sampled_triton(*given_trees, probs, accept.float(), bonus, max_depth=2)
    with pytest.raises(ValueError, match="laws and law_index are given together"):
        verify_sampled_triton(*given_trees, probs, accept, bonus, max_depth=2, laws=trees.laws)
