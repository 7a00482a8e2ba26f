"""`mlp_speculator` in `generate`: the heads get the target's own hidden states, and the output stays the target's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generate_tools import VOCAB, Models, Oracle, prompt, same
from test_generate_sampling import ALARM, WARPERS, exact_law, p_value, sampled, small
from test_generate_sampling import VOCAB as SMALL
from torch import Tensor

from specplug import Need, OptionError, Speculator, TreeBatch
from specplug.drafters import DraftRequest
from specplug.drafters.mlp_speculator import MLPSpeculator
from specplug.mlp import Heads, HeadsConfig, save_heads
from specplug_hf.training.heads import hidden_states

__all__ = ["small"]  # a fixture
CONFIG = HeadsConfig(VOCAB, 64, inner_dim=16, n_predict=3, top_k_tokens_per_head=(3, 2, 2), scale_input=True)
TREES = ("chain:length=3", "sequoia:size=9,depth=4", "dynamic:size=8,depth=3", "auto")


def random_heads(config: HeadsConfig = CONFIG, seed: int = 0) -> Heads:
    heads = Heads(config)
    heads.initialise(torch.Generator().manual_seed(seed))
    return heads


class Watched(Oracle):
    """Proposes the right tokens and some wrong ones, and notes the hidden states that it is given."""

    needs = frozenset({Need.HIDDEN_STATES})
    seen: list[tuple[list[int], list[int], Tensor]]

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch = request.batch
        assert batch.history_ends is not None and batch.hidden is not None
        self.seen.append((list(batch.rows), batch.history_ends.tolist(), batch.hidden.clone()))
        return super().draft(request)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("tree", TREES)
def test_greedy_is_what_plain_says(fp64: Models, tree: str, padding: str) -> None:
    inputs = prompt(3, padding)
    spec = Speculator(drafter=MLPSpeculator(heads=random_heads()), tree=tree, controller="fixed")
    ours = fp64.target.generate(**inputs, max_new_tokens=12, assistant=spec)
    same(ours, fp64.target.generate(**inputs, max_new_tokens=12))


def test_a_planner_may_choose_it(fp64: Models) -> None:
    spec = Speculator(drafter=MLPSpeculator(heads=random_heads()))
    ours = fp64.target.generate(**prompt(2), max_new_tokens=30, assistant=spec)
    same(ours, fp64.target.generate(**prompt(2), max_new_tokens=30))


@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=6,depth=3"])
def test_the_heads_see_what_the_root_was_chosen_from(fp64: Models, tree: str) -> None:
    """Of every round, after the prompt too, and in rows that go ahead at their own speed."""
    inputs = prompt(3)
    texts = fp64.target.generate(**inputs, max_new_tokens=24)
    drafter = Watched(texts[:, 11:], 11, spoil=0.3)
    drafter.seen = []
    spec = Speculator(drafter=drafter, tree=tree, controller="fixed")
    same(fp64.target.generate(**inputs, max_new_tokens=24, assistant=spec), texts)
    assert 1.5 < spec.stats.accepted_length < 3.5
    assert len(drafter.seen[-1][0]) < 3  # some rows were done before the others
    whole = hidden_states(fp64.target, texts)
    for rows, ends, hidden in drafter.seen:
        for place, row in enumerate(rows):
            torch.testing.assert_close(hidden[place].float(), whole[row, ends[place] - 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=6,depth=3"])
def test_sampled_texts_have_the_law_of_plain_generation(small: Models, tree: str) -> None:
    config = replace(CONFIG, vocab_size=SMALL, emb_dim=16, top_k_tokens_per_head=())
    spec = Speculator(drafter=MLPSpeculator(heads=random_heads(config)), tree=tree, controller="fixed", seed=11)
    assert p_value(sampled(small, spec, WARPERS["temperature"]), exact_law(small, WARPERS["temperature"])) > ALARM


def test_a_checkpoint_of_another_model_is_refused_by_tensor_and_shape(fp64: Models, tmp_path: Path) -> None:
    for config, tensor in (
        (replace(CONFIG, vocab_size=50), r"speculator\.emb\.0\.weight has shape \[50, 16\].* need \[97, 16\]"),
        (replace(CONFIG, emb_dim=32), r"speculator\.proj\.0\.weight has shape \[16, 32\].* need \[16, 64\]"),
    ):
        save_heads(random_heads(config), tmp_path)
        spec = Speculator(drafter=MLPSpeculator(str(tmp_path)), controller="fixed")
        with pytest.raises(OptionError, match=tensor):
            fp64.target.generate(**prompt(2), max_new_tokens=4, assistant=spec)
