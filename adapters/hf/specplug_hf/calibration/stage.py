"""Real rounds at somebody's word: a batch prefilled as `generate` does it, then each round with the drafter and tree told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from specplug import Round, Speculator, TreeShape
from specplug.controllers import Arm, Controller, Memory
from specplug.controllers.base import Plan
from specplug.drafters import Drafter, NoDraft
from specplug.host import Batch, Host
from specplug.session import Session
from specplug.speculator import AUTO
from specplug.tree import ROOT_ONLY
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.models import Models
from specplug_hf.generation import Generation, prepare

NOBODY = 0  # the place of plain decoding among the arms
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


class Script(Controller):
    """Plans what it was told last."""

    def __init__(self) -> None:
        self.arms: tuple[Arm, ...] = ()
        self.told = (NOBODY, ROOT_ONLY)
        self.awaited: torch.device | None = None  # a device that every draft waits for, from the first round on

    def open(self, arms: Sequence[Arm], host: Host, memory: Memory) -> Script:
        self.arms = tuple(arms)
        return self

    def plan(self, batch: Batch) -> Plan:
        if self.awaited is not None:
            # by now the drafts are what they will be: one that is recorded must not wait inside
            for arm in self.arms:
                arm.drafter.draft = _waiting(arm.drafter.draft, self.awaited)  # type: ignore[method-assign]
            self.awaited = None
        place, shape = self.told
        return Plan(self.arms[place], shape)


class _Scripted(Speculator):
    """All of `cast` in one generation, at the word of `script`."""

    cast: Sequence[Drafter]
    script: Script
    waits: bool

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        return tuple(self.cast)

    def open(self, host: Host) -> Session:
        """Arms in the order of `cast`, behind plain decoding; on a device that runs behind our back each part waits for it,
        unless told otherwise."""
        opened = [drafter.open(host) for drafter in (NoDraft(), *self.cast)]
        if self.waits and _runs_behind(host.device):
            host.verify = _waiting(host.verify, host.device)  # type: ignore[method-assign]
            self.script.awaited = host.device
        return Session(host, [Arm(d.key, d, ROOT_ONLY) for d in opened], self.script, Memory())


def _runs_behind(device: torch.device) -> bool:
    """Whether a call returns before its work is done."""
    return device.type != "cpu"


def _waiting(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    def waiting(*arguments: Any) -> Any:
        result = function(*arguments)
        torch.get_device_module(device).synchronize(device)
        return result

    return waiting


class Stage:
    """One batch in generation. `seconds_start`: what its prompts took, once a round was run."""

    def __init__(self, script: Script, generation: Generation) -> None:
        self._script = script
        self._rounds: Iterator[Round] = generation.rounds()
        self._rows = generation.input_ids.shape[0]
        self.seconds_start = 0.0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Plain decoding, then the drafters; known once a round was run."""
        return self._script.arms

    def round(self, place: int, shape: TreeShape) -> Round | None:
        """Run a round of the drafter at `place` with `shape`; None when a row has taken all it may."""
        self._script.told = (place, shape)
        start = perf_counter()
        finished = next(self._rounds, None)
        if finished is None or finished.batch.num_rows < self._rows:
            return None
        if not self.seconds_start:
            self.seconds_start = perf_counter() - start
        return finished


def perform(
    models: Models,
    batch: PromptBatch,
    cast: Sequence[Drafter],
    new_tokens: int,
    play: Callable[[Stage], None],
    sampling: bool = False,
    kernel: str = AUTO,
    waits: bool = True,
) -> None:
    """Hand `play` a stage on which `cast` may draft for `batch`, whose rows may take `new_tokens` each.

    `kernel` as in `Speculator`. `waits`: each part of a round waits for the device, so that its time is its own.
    """
    script = Script()
    speculator = _Scripted(drafter=cast[0], controller=script, seed=0, kernel=kernel)
    speculator.cast, speculator.script, speculator.waits = cast, script, waits

    def decode(model: Any, input_ids: Tensor, **call: Any) -> Tensor:
        generation = prepare(model, input_ids, speculator, **call)
        stage = Stage(script, generation)
        try:
            play(stage)
        finally:
            stage._rounds.close()  # type: ignore[attr-defined]
        return input_ids

    law = SAMPLING if sampling else {"do_sample": False}
    models.target.generate(**batch.inputs(), custom_generate=decode, max_new_tokens=new_tokens, **law)
