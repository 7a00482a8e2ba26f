"""A draft that is asked late: it has more to read than one block holds, and some rows have more than others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from generate_tools import Models, prompt, same

from specplug import Batch, Controller, Plan, Speculator
from specplug_hf.runners import model as runners

BLOCK = 3


@dataclass
class Late(Controller):
    """The first arm every `pause` rounds; in between the target drafts for itself, each row at its own speed."""

    pause: int = 3
    needs_baseline = True

    def plan(self, batch: Batch) -> Plan:
        self._rounds = getattr(self, "_rounds", -1) + 1
        arm = self.arms[0] if self._rounds % self.pause == 0 else self.arms[-2]
        return Plan(arm, arm.shape.cut(batch.room - 1))


@pytest.mark.parametrize("padding", ["left", "none"])
@pytest.mark.parametrize("tree", ["chain:length=3", "kary:branch=2,depth=2"])
def test_a_draft_that_comes_back_reads_what_it_missed(
    fp64: Models, tree: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "SCRATCH", BLOCK)
    spec = Speculator(draft_model=fp64.draft, kv_policy="streaming:sink=2,window=5", tree=tree, controller=Late())
    call = prompt(3, padding) | {"max_new_tokens": 60}
    same(fp64.target.generate(**call, assistant=spec), fp64.target.generate(**call))
    used = [label.split("/")[0] for label in spec.stats.rounds_by_arm]
    assert sorted(used) == ["ModelDraft", "SelfDraft"]
