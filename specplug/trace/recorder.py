"""`recording`: what generations do, round by round, while it is active in the context (the thread, the task) they begin in.

Nobody records: a session has no recorder, and a round pays for one look at an attribute. Somebody does: drafters are asked for
their probabilities, the verify's logits go along to the end of the round, and there everything becomes plain values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from specplug.trace.records import Generation, Recording, RowRecord
from specplug.trace.reduction import reduced

if TYPE_CHECKING:
    from specplug.controllers.base import Arm, Controller
    from specplug.host import Batch, Host
    from specplug.round import Round

_active: ContextVar[Recording | None] = ContextVar("specplug_recording", default=None)


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Record every generation that begins in this block; within another one, only this one hears of them."""
    made = Recording()
    token = _active.set(made)
    try:
        yield made
    finally:
        _active.reset(token)


class Recorder:
    """What a session hands its finished rounds to."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def observe(self, finished: Round) -> None:
        """Keep a finished round as plain values; waits for the device."""
        for place, row in enumerate(finished.batch.rows):
            if row not in self._generation.rows:
                prompt, root = _begun(finished.batch, place)
                self._generation.rows[row] = RowRecord(row, prompt, root)
        self._generation.rounds.append(reduced(finished))


def new_recorder(host: Host, arms: Sequence[Arm], controller: Controller) -> Recorder | None:
    """A recorder for a session that begins; None if nobody records."""
    active = _active.get()
    if active is None:
        return None
    generation = Generation(type(controller).__name__, tuple(arm.label for arm in arms), host.identity)
    active.generations.append(generation)
    return Recorder(generation)


def _begun(batch: Batch, place: int) -> tuple[tuple[int, ...], int]:
    """The tokens of the row at `place` before its root, as far as the host knows them, and the root."""
    root = int(batch.roots[place])
    if batch.history is None or batch.history_starts is None or batch.history_ends is None:
        return (), root
    start, end = int(batch.history_starts[place]), int(batch.history_ends[place])
    return tuple(batch.history[place, start : end - 1].tolist()), root
