"""The sampling law against plain words: what SGLang's PyTorch sampler may draw, and how often."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from specplug_sglang.laws import draft_law, target_law

ALL = 1 << 30


def sampling(temperature=1.0, top_k=ALL, top_p=1.0, min_p=0.0):
    """One row's `SamplingBatchInfo`, as far as laws read it."""
    return SimpleNamespace(
        temperatures=torch.tensor([[temperature]]),
        top_ks=torch.tensor([top_k]),
        top_ps=torch.tensor([top_p]),
        min_ps=torch.tensor([min_p]),
        need_top_k_sampling=top_k != ALL,
        need_top_p_sampling=top_p != 1.0,
        need_min_p_sampling=min_p > 0,
    )


def in_plain_words(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    probs = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0).tolist()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    kept, mass = set(), 0.0
    for rank, token in enumerate(order):
        if rank < top_k and mass <= top_p and probs[token] >= min_p * probs[order[0]]:
            kept.add(token)
        mass += probs[token]
    total = sum(probs[token] for token in kept)
    return [probs[token] / total if token in kept else 0.0 for token in range(len(probs))]


@given(
    st.lists(st.integers(-40, 40), min_size=5, max_size=5, unique=True),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([1, 2, 3, ALL]),
    st.sampled_from([0.31, 0.67, 0.93, 1.0]),
    st.sampled_from([0.0, 0.053, 0.41]),
)
def test_what_may_be_drawn(tenths, temperature, top_k, top_p, min_p):
    logits = [tenth / 10 for tenth in tenths]
    law = target_law(torch.tensor(logits)[None, None], sampling(temperature, top_k, top_p, min_p))[0, 0]
    expected = torch.tensor(in_plain_words(logits, temperature, top_k, top_p, min_p), dtype=torch.float32)
    assert torch.allclose(law, expected, atol=1e-5)
    assert torch.equal(law > 0, expected > 0)


def test_a_greedy_row_is_one_hot_and_its_draft_is_not():
    logits = torch.tensor([[[1.0, 3.0, 2.0, 0.0]]])
    assert target_law(logits, sampling(top_k=1)).tolist() == [[[0.0, 1.0, 0.0, 0.0]]]
    draft = draft_law(logits, sampling(top_k=1))[0, 0]
    assert draft.argsort(descending=True).tolist() == [1, 2, 0, 3] and draft[1] > 0.99 and (draft > 0).all()


def test_a_sampled_rows_draft_is_drawn_under_the_same_cuts():
    logits = torch.tensor([[[1.0, 3.0, 2.0, 0.0]]])
    assert torch.equal(draft_law(logits, sampling(0.7, 2)), target_law(logits, sampling(0.7, 2)))
