"""Run by test_draft_cache.py in a process of its own: what drafts go by is right.

Wrong draft KV or a wrong history cost acceptance and never an answer, so nothing else would show it.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import torch
from transformers import DynamicCache

from specplug import Batch, Controller, Plan, Round, Speculator, TreeShape
from specplug.controllers.base import planned
from specplug.controllers.fixed import Fixed
from specplug.drafters import ModelDraft, SelfDraft
from specplug.kv_policies import Full, Streaming
from specplug_conformance import Request
from specplug_conformance.scene import Sometimes
from specplug_sglang import draft_prompts
from specplug_sglang.conformance.state import SGLangState
from specplug_sglang.conformance.subject import SGLangSubject, SGLangWorld
from specplug_sglang.runners import ModelRunner

PROMPTS = ((1, 2, 3, 1, 2, 3, 4), (4, 4), (9, 8, 7, 6, 5, 4, 3, 2, 1))
SINK, WINDOW = 1, 3


def fresh(world: SGLangWorld, tokens: list[int]) -> list[torch.Tensor]:
    """The draft's keys and values of `tokens`, by transformers: [n, width] each."""
    cache = DynamicCache(config=world.reference.draft.config)
    world.reference.draft(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]


def check_cache(world: SGLangWorld, state: SGLangState) -> int:
    """The draft's cache up to what its runner says it has read; returns how many positions were compared.

    Of requests that have left it remembers nothing.
    """
    host = world.worker.host
    (runner,), pool = host.runners, host.draft.model_runner.token_to_kv_pool
    assert len(runner._read) == len(state.batch.rows)
    compared = 0
    for row, tokens in state.committed().items():
        if row not in state.batch.rows:
            continue
        req = state.running[row]
        known = min(runner.known(req.rid, int(state.batch.lengths[state.batch.rows.index(row)])), len(tokens) - 1)
        slots = host.pool.req_to_token[req.kv.req_pool_idx, :known].long()
        kept = [
            part(i)[slots].flatten(1)
            for i in range(pool.layer_num)
            for part in (pool.get_key_buffer, pool.get_value_buffer)
        ]
        for ours, wanted in zip(kept, fresh(world, tokens[:known]), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)
        compared += known
    return compared


def check_window(world: SGLangWorld, state: SGLangState) -> int:
    """What the draft's last forward saw of each row's committed tokens is the policy's selection."""
    (runner,), compared = world.worker.host.runners, 0
    view = runner.last_view
    for place, row in enumerate(state.batch.rows):
        length = int(state.batch.lengths[place])
        positions = view.key_positions[place]
        for query in view.visible[place]:
            seen = {p for p in positions[query].tolist() if p < length}
            assert seen == {*range(min(SINK, length)), *range(max(0, length - WINDOW), length)}, (row, length, seen)
            compared += 1
    return compared


def check_history(finished: Round, state: SGLangState) -> None:
    """The text that drafters look things up in is the request's."""
    batch = finished.batch
    for row, tokens in state.committed().items():
        if row in batch.rows and batch.history is not None:
            place = batch.rows.index(row)
            known = batch.history[place, batch.history_starts[place] : batch.history_ends[place]].tolist()
            assert known == tokens[: len(known)] and len(known) == int(batch.lengths[place]) + 1


def run(world: SGLangWorld, check: Any, speculator: Speculator) -> int:
    compared = 0

    def watch(finished: Round, state: SGLangState) -> None:
        nonlocal compared
        check_history(finished, state)
        if finished.plan.shape.size:
            compared += check(world, state)

    request = Request(PROMPTS, new_tokens=16)
    assert world.speculated(request, speculator, watch) == world.plain(request)  # type: ignore[arg-type]
    return compared


class NotForTheFirst(Controller):
    """Drafts in no round that row 0 takes part in."""

    needs_baseline = True

    def plan(self, batch: Batch) -> Plan:
        first = any(str(row).endswith("-0") for row in batch.rows)
        return planned(self.arms[-1 if first else 0], batch)


def check_late(world: SGLangWorld, idle: int, later: int, expected: dict[int, int]) -> None:
    """Prompts left unread while the draft is not in use, and a prefix from the radix cache that it has read in part.

    Row 0 is written without the draft, row 1 with it; rows 2 and 3 go on from what row 0 has written, when it has left, and
    row 4 from row 2's prompt. `idle`, `later`: IDLE before and after the first draft. `expected`: of every row,
    how much of it the draft had not read when it was first asked.
    """
    draft_prompts.IDLE = idle
    first = PROMPTS[0]
    written = tuple(world.plain(Request((first,), new_tokens=12))[0])
    third = (*first, *written[:9], 5)
    request = Request((first, (3, 3), third, (*first, 6), (*third, 2)), new_tokens=12, joins=(0, 14, 15, 16, 18))
    spec = Speculator(ModelDraft(world.draft, Full()), tree="chain:length=3", controller=NotForTheFirst())
    unread: dict[int, int] = {}

    def watch(finished: Round, state: SGLangState) -> None:
        if finished.plan.shape.size:
            check_cache(world, state)

    real = ModelRunner.begin

    def begin(runner: ModelRunner, batch: Batch, shape: TreeShape) -> torch.Tensor:
        for row, length in zip(batch.rows, runner.host.lengths_cpu, strict=True):
            unread.setdefault(int(str(row).rsplit("-", 1)[1]), length - runner.known(row, length))
        draft_prompts.IDLE = later
        return real(runner, batch, shape)

    with mock.patch.object(ModelRunner, "begin", begin):
        assert world.speculated(request, spec, watch) == world.plain(request)  # type: ignore[arg-type]
    assert unread == expected


@torch.no_grad()
def main() -> int:
    world = SGLangSubject().world(0, 13, "float32")
    check_late(world, 0, 0, {1: 2, 2: 17, 3: 8, 4: 18})  # every prompt is left until it is asked for
    check_late(world, 100, 100, {1: 0, 2: 10, 3: 0, 4: 0})  # none; what row 0 has written without the draft is a gap
    check_late(world, 1, 100, {1: 2, 2: 10, 3: 0, 4: 0})  # row 1's is left: the draft was not in use then
    check_late(world, 0, 100, {1: 2, 2: 17, 3: 0, 4: 0})  # row 0's too, until row 2 reads it
    tree = "sequoia:size=9,depth=4"
    for controller in (Fixed(), Sometimes()):
        assert (
            run(world, check_cache, Speculator(ModelDraft(world.draft, Full()), tree=tree, controller=controller)) > 50
        )
    policy = Streaming(sink=SINK, window=WINDOW)
    for drafter in (ModelDraft(world.draft, policy), SelfDraft(policy)):
        assert run(world, check_window, Speculator(drafter, tree=tree, controller="fixed")) > 20
    return 0


if __name__ == "__main__":
    sys.exit(main())
