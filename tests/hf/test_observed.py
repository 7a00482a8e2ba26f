"""What is kept of the target's forwards: the last committed queries, and the hidden state behind each root."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from generate_tools import Models, prompt
from torch import Tensor

from specplug import Batch, DraftRequest, Need, Speculator, TreeBatch
from specplug.drafters import ModelDraft
from specplug_hf.attention import AttentionSwap, watch_queries
from specplug_hf.generation import prepare
from specplug_hf.queries import QueryLog

NEW, LENGTH = 14, 12


class Looking(ModelDraft):
    """The draft model, which besides looks at what is kept."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL_RUNNER, Need.HIDDEN_STATES})
    seen: ClassVar[list[Batch]] = []

    def draft(self, request: DraftRequest) -> TreeBatch:
        self.seen.append(request.batch)
        return super().draft(request)


def texts(host: Any, mask: Tensor) -> list[Tensor]:
    """Each row's committed tokens, the root included."""
    found = []
    for row in host.rows:
        end = host.progress.ends[row]
        visible = torch.cat([mask[row].bool(), torch.ones(end - mask.shape[1], dtype=torch.bool)])
        found.append(host.progress.ids[row, :end][visible])
    return found


@pytest.mark.parametrize("kernel", ["auto", "paged"])
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "left")])
@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=6,depth=3"])
def test_hidden_states_are_those_of_a_fresh_forward(
    fp64: Models, kernel: str, rows: int, padding: str, tree: str
) -> None:
    inputs, checked = prompt(rows, padding, LENGTH), 0
    spec = Speculator(drafter=Looking(fp64.draft), tree=tree, controller="fixed", kernel=kernel)

    def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        nonlocal checked
        generation = prepare(model, input_ids, spec, **rest)
        for _ in generation.rounds():
            host = generation.host
            for place, ids in enumerate(texts(host, inputs["attention_mask"])):
                with torch.no_grad():
                    expected = model.model(ids[None, :-1]).last_hidden_state[0, -1]
                assert torch.allclose(host.hidden_states.newest[place], expected, atol=1e-9)
                checked += 1
        return generation.finish()

    Looking.seen.clear()
    fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=None, custom_generate=run)
    assert checked >= 2 * rows and all(batch.hidden is not None for batch in Looking.seen)


def test_nothing_is_kept_unless_it_is_needed(fp64: Models) -> None:
    def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        generation = prepare(model, input_ids, Speculator(drafter="prompt_lookup"), **rest)
        for _ in generation.rounds():
            assert generation.host.queries is None and generation.host.hidden_states is None
        assert not fp64.target.model._forward_hooks
        return generation.finish()

    fp64.target.generate(**prompt(1), max_new_tokens=4, custom_generate=run)


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "left"), (2, "holes")])
def test_queries_are_those_of_a_fresh_forward(fp64: Models, size: int, rows: int, padding: str) -> None:
    """After every round the log holds the newest committed queries of all layers, whatever tree was accepted."""
    inputs, checked = prompt(rows, padding, LENGTH), 0
    spec = Speculator(drafter="model", draft_model=fp64.draft, tree="sequoia:size=6,depth=3", controller="fixed")

    def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        nonlocal checked
        generation = prepare(model, input_ids, spec, **rest)
        object.__setattr__(generation.observed, "queries", QueryLog(model, size))
        for _ in generation.rounds():
            host = generation.host
            for place, ids in enumerate(texts(host, inputs["attention_mask"])):
                expected = fresh_queries(model, ids[:-1])
                for layer, own in expected.items():
                    ring, counts, scale = host.queries.layer(layer)
                    count = int(counts[place])
                    assert 1 <= count <= size and scale == own.shape[-1] ** -0.5
                    mine = ring[place, :, ring.shape[2] - count :]
                    assert torch.allclose(mine, own[0, :, own.shape[2] - count :], atol=1e-9)
                    checked += count == min(size, len(ids) - 1)
        return generation.finish()

    fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=None, custom_generate=run)
    assert checked


def fresh_queries(model: Any, ids: Tensor) -> dict[int, Tensor]:
    """Every layer's queries [1, Hq, n, D] of one forward over `ids`."""
    found: dict[int, Tensor] = {}

    def keep(module: Any, query: Tensor, scaling: float | None) -> None:
        found[module.layer_idx] = query

    with torch.no_grad(), AttentionSwap(model, own=True).held(), watch_queries(keep):
        model(ids[None])
    return found
