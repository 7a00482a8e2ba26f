"""Deliberate faults. Each must be caught by the very check that the real tests use, or the check proves nothing."""

import importlib

import pytest
import torch

import specplug.round as round_module
from specplug import verify
from specplug.tree import TreeBatch, TreeShape
from specplug.verify import Verdict

from . import test_round, test_verify_sampled
from .test_verify_sampled import ALARM, CASES, TOLERANCE, law_error
from .tools import plain_greedy, table

expand_module = importlib.import_module("specplug.drafters.expand")  # the package's attribute is the function
REAL_CHILDREN = verify._verify_children
REAL_RESIDUAL = verify._residual
REAL_WITHOUT = verify._without


def changed(trees, **fields):
    return TreeBatch(**{name: getattr(trees, name) for name in trees.__slots__} | fields)


def half_precision_q(trees, *rest):
    return REAL_CHILDREN(changed(trees, laws=trees.laws.half().float()), *rest)


def bfloat16_q(trees, *rest):
    return REAL_CHILDREN(changed(trees, laws=trees.laws.bfloat16().float()), *rest)


def residual_skipped(p, q, token):
    return p


def residual_not_cut_at_zero(p, q, token):
    return REAL_WITHOUT(p, token) if q is None else (p - q).abs() / (p - q).abs().sum(-1, keepdim=True)


def token_left_in_the_residual(p, q, token):
    return p if q is None or not bool(q.any()) else REAL_RESIDUAL(p, q, token)


def q_not_renormalised(law, token):
    return law.scatter(1, token[:, None], 0.0)


def q_with_the_token_left_in(law, token):
    return law


def child_order_swapped(trees, probs, accept, children, *rest):
    return REAL_CHILDREN(trees, probs, accept, children.flip(1), *rest)


def sibling_law(trees, *rest):
    return REAL_CHILDREN(changed(trees, laws=trees.laws.flip(1)), *rest)


def stale_target(trees, probs, *rest):
    """The law at the parent is used after a child was accepted."""
    return REAL_CHILDREN(trees, probs[:, :1].expand_as(probs), *rest)


MUTANTS = [
    ("_verify_children", half_precision_q, "two levels"),
    ("_verify_children", bfloat16_q, "fork"),
    ("_residual", residual_skipped, "chain"),
    ("_residual", residual_skipped, "deterministic children"),
    ("_residual", residual_not_cut_at_zero, "far draft"),
    ("_residual", token_left_in_the_residual, "deterministic chain"),
    ("_verify_children", child_order_swapped, "fork"),
    ("_verify_children", child_order_swapped, "three children, V=4"),
    ("_verify_children", sibling_law, "two levels"),
    ("_verify_children", stale_target, "chain"),
]


@pytest.mark.parametrize(("name", "mutant", "case"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_fault_in_the_verifier_changes_the_law(monkeypatch, name, mutant, case):
    assert law_error(CASES[case]) < TOLERANCE
    monkeypatch.setattr(verify, name, mutant)
    assert law_error(CASES[case]) > 10 * TOLERANCE


@pytest.mark.parametrize("mutant", [q_not_renormalised, q_with_the_token_left_in], ids=lambda mutant: mutant.__name__)
def test_a_fault_in_q_after_a_rejection_changes_the_law(monkeypatch, mutant):
    """`_without` serves p and q; only q is broken here."""

    def residual(p, q, token):
        with monkeypatch.context() as patch:
            patch.setattr(verify, "_without", REAL_WITHOUT)
            return REAL_RESIDUAL(p, q, token)

    monkeypatch.setattr(verify, "_residual", residual)
    assert law_error(CASES["three children, V=4"]) < TOLERANCE
    monkeypatch.setattr(verify, "_without", mutant)
    assert law_error(CASES["three children, V=4"]) > 10 * TOLERANCE


def test_a_fault_in_the_verifier_fails_the_chi_square(monkeypatch):
    monkeypatch.setattr(verify, "_residual", residual_skipped)
    counts, law = test_verify_sampled.emitted_counts(64, TreeShape((-1, 0, 0, 0, 0)), 60_000)
    assert test_verify_sampled.chi_square(counts, law) < ALARM


def shared_noise(*arguments):
    """The draft and the acceptance draw from one stream."""
    return REAL_UNIFORMS(arguments[0], arguments[1], 2, arguments[3])


def same_noise_every_level(seeds, positions, stream, count):
    return REAL_UNIFORMS(seeds, positions, stream & 255, count)


def same_noise_every_position(seeds, positions, stream, count):
    return REAL_UNIFORMS(seeds, torch.zeros_like(positions), stream, count)


def no_noise_of_the_row(seeds, positions, stream, count):
    return REAL_UNIFORMS(torch.zeros_like(seeds), positions, stream, count)


REAL_UNIFORMS = round_module.uniforms


@pytest.mark.parametrize(
    "mutant",
    [shared_noise, same_noise_every_level, same_noise_every_position, no_noise_of_the_row],
    ids=lambda mutant: mutant.__name__,
)
def test_a_fault_in_the_draws_fails_the_chi_square(monkeypatch, mutant):
    assert test_round.p_value(*test_round.sampled_tokens("self", "chain:length=3")) > ALARM
    monkeypatch.setattr(round_module, "uniforms", mutant)
    monkeypatch.setattr(expand_module, "uniforms", mutant)
    assert test_round.p_value(*test_round.sampled_tokens("self", "chain:length=3")) < ALARM


def children_in_parent_order(plans):
    """The bug that trees from a heap once had: tokens filled parent by parent where nodes stand in turn."""

    def wrong(shape, device):
        return tuple(
            type(plan)(plan.inner, plan.candidates, None if plan.pick is None else plan.pick.sort().values)
            for plan in plans(shape, device)
        )

    return wrong


def test_tokens_under_the_wrong_parent_fail_the_chi_square(monkeypatch):
    from specplug.trees import TreeBuilder

    class Crossed(TreeBuilder):
        def build(self, acceptance=()):
            return TreeShape((-1, 0, 0, 1, 2, 1, 2))

    assert test_round.p_value(*test_round.sampled_tokens("self", Crossed())) > ALARM
    monkeypatch.setattr(expand_module, "level_plans", children_in_parent_order(expand_module.level_plans))
    assert test_round.p_value(*test_round.sampled_tokens("self", Crossed())) < ALARM


def bonus_twice(verdict):
    return Verdict(verdict.path, verdict.num_accepted + 1, verdict.bonus)


def bonus_forgotten(verdict):
    return Verdict(verdict.path, (verdict.num_accepted - 1).clamp(min=0), verdict.bonus)


def bonus_of_the_root(verdict):
    return Verdict(verdict.path, verdict.num_accepted, verdict.bonus[:1].expand_as(verdict.bonus))


def path_of_the_first_row(verdict):
    return Verdict(verdict.path[:1].expand_as(verdict.path), verdict.num_accepted, verdict.bonus)


@pytest.mark.parametrize(
    "mutant",
    [bonus_twice, bonus_forgotten, bonus_of_the_root, path_of_the_first_row],
    ids=lambda mutant: mutant.__name__,
)
def test_a_fault_in_the_verdict_changes_the_greedy_text(monkeypatch, mutant):
    target = table(6, 1)

    def lossless():
        host = test_round.host_of(target, test_round.PROMPTS, new_tokens=24)
        test_round.generate(host, test_round.speculator("self", "kary:branch=2,depth=3", target))
        return all(host.result(row) == plain_greedy(target, test_round.PROMPTS[row], 24) for row in range(4))

    assert lossless()
    real = round_module.accept
    monkeypatch.setattr(round_module, "accept", lambda *arguments: mutant(real(*arguments)))
    assert not lossless()
