"""Faults planted in the Hugging Face adapter: each fails the check that is there for it, and the adapter fails none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from specplug.drafters import SelfDraft
from specplug.kv_policies import Streaming
from specplug_conformance import Case, Effort, Status, suite
from specplug_hf import attention, generation, processors
from specplug_hf.conformance.subject import HFSubject
from specplug_hf.host import HFHost
from specplug_hf.progress import Progress
from specplug_hf.step import Step
from specplug_hf.store import KVStore

HF = Case("hf", "adapter", HFSubject)
SELF = Case("self", "drafter", lambda: SelfDraft(Streaming(sink=1, window=4)), tree="chain:length=3")
EFFORT = Effort(examples=3, samples=400, shrink=False)
Patch = Callable[[pytest.MonkeyPatch], None]


def failing(check: str, case: Case) -> str | None:
    """What `check` finds wrong with `case` (the adapter itself: with a drafter that knows the answer too), or None."""
    chosen = suite([] if case is HF else [case.name], checks=[check], cases=[HF] if case is HF else [HF, case])
    chosen.effort = EFFORT
    [result] = chosen.run()
    assert result.status in (Status.PASSED, Status.FAILED), result
    return result.message if result.status is Status.FAILED else None


def stale_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = HFHost.node_positions
    monkeypatch.setattr(
        HFHost, "node_positions", lambda self, ahead, depths: real(self, ahead, None if depths is None else depths * 0)
    )


def the_roots_kv_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = HFHost.commit

    def commit(self: Any, batch: Any, *args: Any) -> Any:
        for keys in self.store.keys:
            keys[0, :, self.lengths[0]] = 0
        return real(self, batch, *args)

    monkeypatch.setattr(HFHost, "commit", commit)


def a_sibling_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = HFHost.verify

    def verify(self: Any, batch: Any, trees: Any) -> Any:
        ancestors = trees.ancestors.clone()
        ancestors[:, 2:, 1] = True
        return real(self, batch, replace(trees, ancestors=ancestors, shape=None))

    monkeypatch.setattr(HFHost, "verify", verify)


def the_accepted_path_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFHost, "_keep_path", lambda *args: None)


def a_neighbours_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.tree_attention
    monkeypatch.setattr(attention, "tree_attention", lambda q, k, v, **rest: real(q, k.roll(1, 0), v, **rest))


def a_slot_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer row's length is taken for every row's."""
    real = Step.__init__

    def init(self: Any, view: Any, lengths: Any, *args: Any, **more: Any) -> None:
        real(self, view, lengths, *args, **more)
        self.fills = [max(self.fills)] * len(self.fills)

    monkeypatch.setattr(Step, "__init__", init)


def a_prefix_without_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    real = processors._prefixes
    monkeypatch.setattr(
        processors, "_prefixes", lambda ids, nodes: real(ids, [n._replace(path=(0,) * len(n.path)) for n in nodes])
    )


def stopping_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Progress.append

    def append(self: Any, rows: Any, tokens: Any, counts: Any) -> Any:
        ends, self._eos = self._eos, None
        kept = real(self, rows, tokens, counts)
        self._eos = ends
        for row in rows:
            self._at_end[row] = bool(torch.isin(self.ids[row, self.ends[row] - 1], ends)) if ends is not None else False
        return kept

    monkeypatch.setattr(Progress, "append", append)


def half_precision_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    real = HFHost.distributions

    def distributions(self: Any, *args: Any) -> Any:
        targets = real(self, *args)
        return targets if targets.probs is None else replace(targets, probs=targets.probs.half().float())

    monkeypatch.setattr(HFHost, "distributions", distributions)


def one_seed_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = generation.row_seeds
    monkeypatch.setattr(generation, "row_seeds", lambda seed, rows, device: real(0, rows, device))


def attention_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.AttentionSwap, "_leave", lambda self: None)


def rows_that_leave_are_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_rows(self: Any, rows: Any) -> None:
        real(self, list(range(len(rows))))

    real = KVStore.keep_rows
    monkeypatch.setattr(KVStore, "keep_rows", keep_rows)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (stale_positions, "greedy"),
        (stale_positions, "cache"),
        (the_roots_kv_lost, "cache"),
        (the_roots_kv_lost, "greedy"),
        (a_sibling_visible, "law-exact"),
        (a_sibling_visible, "greedy"),
        (the_accepted_path_not_moved, "cache"),
        (a_neighbours_cache, "batch"),
        (a_slot_too_many, "greedy"),
        (a_prefix_without_the_path, "processors"),
        (stopping_after_the_block, "stopping"),
        (half_precision_laws, "law-exact"),
        (one_seed_for_all_rows, "seeds"),
        (attention_left_in_place, "interruption"),
        (rows_that_leave_are_not_moved, "stopping"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_in_the_adapter_fails_the_check(patch: Patch, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    assert failing(check, HF) is not None


@pytest.mark.parametrize(
    "check", ["greedy", "cache", "batch", "processors", "stopping", "law-exact", "seeds", "interruption"]
)
@pytest.mark.parametrize("case", [HF, SELF], ids=lambda case: case.name)
def test_the_adapter_as_it_is_fails_none(case: Case, check: str) -> None:
    assert failing(check, case) is None
