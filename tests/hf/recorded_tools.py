"""What the tests of recorded rounds share: a call of `generate` that is watched round by round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from generate_tools import Models, same
from recorded_ops import RecordedOps

from specplug import Speculator
from specplug_hf import host
from specplug_hf.generation import prepare
from specplug_hf.graphs import Graphs


@dataclass
class Watched:
    """One call. `rounds`: of each the batch's rows, the tokens proposed, and how many of them were accepted."""

    output: Any = None
    recorded: Any = None  # the host's recordings, or None
    host: Any = None
    rounds: list[tuple[Any, ...]] = field(default_factory=list)
    replayed: list[set[str]] = field(default_factory=list)  # what was replayed in each round: "draft", "verify"

    @property
    def replays(self) -> Counter[str]:
        """Rounds in which each kind was replayed."""
        return Counter(kind for kinds in self.replayed for kind in kinds)


def record_on_a_cpu(monkeypatch: pytest.MonkeyPatch, recorder: Any = RecordedOps) -> None:
    """Let hosts record with `recorder` from here on: the stand-in for CUDA graphs."""
    monkeypatch.setattr(host, "recorder_of", lambda device: recorder)


def speculated(models: Models, spec: Speculator, **call: Any) -> Watched:
    """`generate` by `spec`, recorded where that was prepared (`record_on_a_cpu`)."""
    watched, run, replayed = Watched(), Graphs.run, set[str]()

    def noting(self: Graphs, kind: Any, *rest: Any) -> Any:
        result = run(self, kind, *rest)
        if result is not None:
            replayed.add(kind[0])
        return result

    def watching(model: Any, input_ids: Any, **rest: Any) -> Any:
        generation = prepare(model, input_ids, spec, **rest)
        for finished in generation.rounds():
            watched.host, watched.recorded = generation.host, generation.host.recorded
            rows, trees = finished.batch.rows, finished.trees
            watched.rounds.append((rows, trees.tokens.tolist(), finished.verdict.num_accepted.tolist()))
            watched.replayed.append(set(replayed))
            replayed.clear()
        return generation.finish()

    with mock.patch.object(Graphs, "run", noting):
        watched.output = models.target.generate(**call, custom_generate=watching)
    return watched


def as_eagerly(models: Models, monkeypatch: pytest.MonkeyPatch, spec: Speculator, **call: Any) -> Watched:
    """The call, recorded; it proposes, accepts and returns what it does eagerly."""
    record_on_a_cpu(monkeypatch, None)
    eager = speculated(models, spec, **call)
    assert eager.recorded is None
    record_on_a_cpu(monkeypatch)
    ran = speculated(models, spec, **call)
    assert ran.rounds == eager.rounds
    same(ran.output, eager.output)
    return ran
