"""The recordings of one generation. What cannot be recorded, or is not worth it, runs eagerly, and says so once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from specplug_hf.graphs.recording import Recorder, Recording

logger = logging.getLogger(__name__)

WORTH = 4  # eager runs of one kind before it is recorded: recording costs about as much as so many


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: tuple[Tensor, ...]
    recording: Recording


class Graphs:
    """Recordings by kind and shapes, all over memory that does not move: `forget` when it does."""

    def __init__(self, recorder: Recorder) -> None:
        self._record = recorder
        self._recorded: dict[Hashable, _Recorded] = {}
        self._uses: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()
        self.replays = 0

    def run(self, kind: Hashable, inputs: Sequence[Tensor], function: Callable[..., Any]) -> Any | None:
        """What `function(*inputs)` returns, by a replay; None: run it eagerly.

        The result's tensors are overwritten by the next replay of this kind. `function` must compute from `inputs` alone,
        besides memory that stays where it is, and must do no harm if it is run once more.
        """
        key = (kind, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        found = self._recorded.get(key)
        if found is None:
            self._uses[key] += 1
            if self._uses[key] <= WORTH or kind in self._refused:
                return None
            found = self._made(kind, inputs, function)
            if found is None:
                return None
            self._recorded[key] = found
        for mine, given in zip(found.inputs, inputs, strict=True):
            mine.copy_(given)
        found.recording.replay()
        self.replays += 1
        return found.recording.result

    def forget(self) -> None:
        """Something they stand on has moved: rows have left, or the cache has grown."""
        self._recorded.clear()
        self._uses.clear()

    def _made(self, kind: Hashable, inputs: Sequence[Tensor], function: Callable[..., Any]) -> _Recorded | None:
        own = tuple(tensor.clone() for tensor in inputs)
        try:
            function(*own)  # whatever is compiled or cached at first use must be there before
            return _Recorded(own, self._record(lambda: function(*own)))
        except Exception as error:  # whatever a recording raises: eagerly it runs
            logger.warning("specplug: no CUDA graph for %s: %r. It runs eagerly.", kind, error)
            self._refused.add(kind)
            return None
