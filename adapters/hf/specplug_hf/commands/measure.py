"""Timing `generate`: what came before the first token apart from decoding, contenders taking turns.

Decoding starts when the target's first forward has returned (a hook on the model, the same for everybody): prompt and
first token are prefill. What is done once for a prompt, whatever is written after it, belongs there too: transformers
allocates a StaticCache before that forward, specplug takes the keys and values over into its own cache right behind it
(`stats.seconds_prefill`). Where the first forward yields more than one token (transformers' assisted decoding puts its
first candidates into it) those tokens are not counted as decoded either. The draft reads the prompt before that forward
there, and after it with us: it counts as decoding with us only. Whole calls are reported beside decoding.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from specplug import SpecStats
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.models import Models, synchronize
from specplug_hf.commands.setups import Contender, FirstCount, Option


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed call. Seconds; `first_tokens` of the `tokens` (over all rows) came with the first forward; `tree`: see `Option`."""

    contender: str
    option: str
    batch: int
    repeat: int
    seconds: float
    prefill_seconds: float
    tokens: int
    first_tokens: int
    stats: SpecStats | None = None
    tree: str = ""

    @property
    def decode_seconds(self) -> float:
        """From the first token on."""
        return self.seconds - self.prefill_seconds

    @property
    def rate(self) -> float:
        """Decoded tokens a second, over all rows."""
        return (self.tokens - self.first_tokens) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "stats"}
        return values | {"rate": self.rate, "stats": self.stats.as_dict() if self.stats else None}


@dataclass(slots=True)
class Forwards:
    """Start and end of every forward of the watched models, in order."""

    spans: list[tuple[float, float]]

    @property
    def seconds(self) -> list[float]:
        """Duration of each."""
        return [end - start for start, end in self.spans]


@contextlib.contextmanager
def watched(model: PreTrainedModel, wait: bool = True) -> Iterator[Forwards]:
    """Note when each forward of `model` starts and ends; `wait`: for the device, at each end."""
    forwards, started = Forwards([]), [0.0]

    def before(*_: object) -> None:
        started[0] = perf_counter()

    def after(*_: object) -> None:
        if wait or not forwards.spans:
            synchronize(model)
        forwards.spans.append((started[0], perf_counter()))

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()


def call(models: Models, option: Option, batch: PromptBatch, new_tokens: int, **more: object) -> Tensor:
    """One greedy `generate`; the whole output [B, L + new_tokens]."""
    with option.arranged(models) as keywords:
        return models.target.generate(**batch.inputs(), **keywords, **more, max_new_tokens=new_tokens, do_sample=False)


def timed(
    models: Models, contender: Contender, option: Option, batch: PromptBatch, new_tokens: int, place: tuple[int, int]
) -> tuple[Sample, Tensor]:
    """One timed call: the sample, and the output's new tokens [B, n]. `place`: number of the batch, of the repeat."""
    counter = FirstCount() if option.counts_first else None
    more = {} if counter is None else {"streamer": counter}
    synchronize(models.target)
    with watched(models.target, wait=False) as forwards:
        start = perf_counter()
        output = call(models, option, batch, new_tokens, **more)
        synchronize(models.target)
        seconds = perf_counter() - start
    new = output[:, batch.input_ids.shape[1] :]
    speculator = option.speculator
    stats = None if speculator is None else speculator.stats
    sample = Sample(
        contender=contender.name,
        option=option.label,
        batch=place[0],
        repeat=place[1],
        seconds=seconds,
        prefill_seconds=decoding_start(forwards, stats) - start,
        tokens=new.numel(),
        first_tokens=new.shape[0] if counter is None else counter.first,
        stats=stats,
        tree=option.tree,
    )
    return sample, new


def decoding_start(forwards: Forwards, stats: SpecStats | None) -> float:
    """When prefill was over, on the clock of `forwards` (of the target, over a whole call)."""
    start, end = forwards.spans[0]
    return end if stats is None else max(end, start + stats.seconds_prefill)


@contextlib.contextmanager
def short_garbage_collection() -> Iterator[None]:
    """What exists by now is left alone: walking through all that was imported takes 0.2 s, in the middle of whoever's turn it is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


Observer = Callable[[Contender, PromptBatch, Sample, Tensor], None]


def interleaved(
    models: Models,
    runs: Sequence[tuple[Contender, Option]],
    batches: Sequence[PromptBatch],
    new_tokens: int,
    repeats: int,
    observer: Observer,
) -> list[Sample]:
    """Every run on every batch, `repeats` times, taking turns and starting with another one each time."""
    samples = []
    turns = [(repeat, number) for repeat in range(repeats) for number in range(len(batches))]
    with short_garbage_collection():
        for turn, (repeat, number) in enumerate(turns):
            first, batch = turn % len(runs), batches[number]
            for contender, option in [*runs[first:], *runs[:first]]:
                sample, new = timed(models, contender, option, batch, new_tokens, (number, repeat))
                observer(contender, batch, sample, new)
                samples.append(sample)
    return samples
