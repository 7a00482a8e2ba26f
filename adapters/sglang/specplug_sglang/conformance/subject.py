"""SGLang as a subject of the conformance suite: its real scheduler beside plain `generate` of transformers, same weights."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from specplug import Need, Round, Speculator
from specplug_conformance import Feature, Request, Watch
from specplug_conformance.llama.world import LlamaWorld
from specplug_sglang.capabilities import OFFERED
from specplug_sglang.conformance.scheduler import SteppedScheduler, start
from specplug_sglang.conformance.state import SGLangState
from specplug_sglang.worker import SpecplugWorker

_names = count()
_running: list[
    tuple[SGLangWorld, SteppedScheduler]
] = []  # the one world whose scheduler this process has at the moment


class SGLangWorld:
    """A tiny Llama in a scheduler of its own. What it should say, transformers says."""

    def __init__(self, seed: int, vocab: int, dtype: str) -> None:
        self.seed, self.vocab, self.dtype = seed, vocab, dtype
        self.reference = LlamaWorld(seed, vocab, dtype)
        self._folder = tempfile.TemporaryDirectory(prefix="specplug-conformance-")  # lives as long as this world
        self._target, draft = (Path(self._folder.name) / name for name in ("target", "draft"))
        self.reference.model.save_pretrained(self._target)
        self.reference.draft.save_pretrained(draft)
        self.draft = str(draft)

    @property
    def scheduler(self) -> SteppedScheduler:
        """This world's; it takes the place of another world's."""
        if not _running or _running[0][0] is not self:
            _running.clear()
            _running.append((self, start(self._target, Path(self.draft))))
        return _running[0][1]

    @property
    def worker(self) -> SpecplugWorker:
        """The scheduler's; its set-up is exchanged for every call."""
        return self.scheduler.draft_worker  # type: ignore[no-any-return]

    def plain(self, request: Request) -> list[list[int]]:
        return self.reference.plain(request)

    def speculated(self, request: Request, speculator: Speculator, watch: Watch | None = None) -> list[list[int]]:
        self.worker.serve(speculator)
        call = Call(self, request, watch)
        try:
            self.scheduler.run(call.between)
        except BaseException:
            self.worker.session = self.worker.plain  # whoever was interrupted does not come back
            self.scheduler.abort("")
            self.scheduler.run(lambda: not self.scheduler.is_fully_idle())
            raise
        finally:
            self.scheduler.flush_cache(empty_cache=False)
        speculator.finish(self.worker.session)
        if self.worker.failure is not None:  # a server logs it, and serves the request all the same
            raise self.worker.failure
        return call.texts()

    def scores(self, tokens: Sequence[int], request: Request, prompt_length: int) -> Tensor:
        return self.reference.scores(tokens, request, prompt_length)

    def fresh(self, tokens: Sequence[int]) -> list[Tensor]:
        return self.reference.fresh(tokens)

    def fingerprint(self) -> Hashable:
        workers = (self.worker.host.target, self.worker.host.draft)
        weights = [p.detach().cpu().numpy().tobytes() for w in workers for p in w.model_runner.model.parameters()]
        return (
            self.reference.fingerprint(),
            hashlib.sha256(b"".join(weights)).hexdigest(),
            self.scheduler.free_slots(),
            self.scheduler.is_fully_idle(),
        )


class Call:
    """One request of the suite: a request to the scheduler for every row, in the round in which it joins."""

    def __init__(self, world: SGLangWorld, request: Request, watch: Watch | None) -> None:
        self.world, self.request, self.watch = world, request, watch
        self.name = f"call-{next(_names)}"
        self.waiting = dict(enumerate(request.joins or (0,) * request.num_rows))
        self.leaving = dict(request.leaves)
        self.reqs: dict[int, Any] = {}
        self.rounds = 0
        self._seen: list[Round] = []
        session = world.worker.session
        session.observe = partial(self._observe, session.observe)

    def between(self) -> bool:
        """Called before each step of the scheduler: look, join, leave. False when all rows have ended."""
        self._look()
        scheduler = self.world.scheduler
        for row in [row for row, when in self.leaving.items() if when <= self.rounds and row in self.reqs]:
            del self.leaving[row]
            scheduler.abort(self._rid(row))
        idle = scheduler.is_fully_idle()
        for row in [row for row, when in self.waiting.items() if when <= self.rounds]:
            del self.waiting[row]
            self.reqs[row] = scheduler.add(self._rid(row), self.request.prompts[row], **self._sampling(row))
            idle = False
        self.rounds += idle  # nothing runs: the next row's time comes all the same
        return not idle or bool(self.waiting)

    def texts(self) -> list[list[int]]:
        """What every row has generated."""
        return [list(self.reqs[row].output_ids_through_stop) for row in range(self.request.num_rows)]

    def _observe(self, observe: Any, finished: Round) -> None:
        observe(finished)
        self._seen.append(finished)

    def _look(self) -> None:
        self.rounds += len(self._seen)
        rounds, self._seen = self._seen, []
        if self.watch is None:
            return
        running = {row: req for row, req in self.reqs.items() if self._runs(req)}
        for finished in rounds:
            rows = tuple(int(name.rsplit("-", 1)[1]) for name in finished.batch.rows)  # type: ignore[union-attr]
            batch = replace(finished.batch, rows=rows)
            self.watch(replace(finished, batch=batch), SGLangState(self.world.worker.host, batch, running))

    @staticmethod
    def _runs(req: Any) -> bool:
        return bool(req.output_ids) and not req.finished()

    def _rid(self, row: int) -> str:
        return f"{self.name}-{row}"

    def _sampling(self, row: int) -> dict[str, Any]:
        request = self.request
        options: dict[str, Any] = {
            "max_new_tokens": request.new_tokens,
            "stop_token_ids": set(request.end_tokens) or None,
        }
        if request.seeds is None:
            return options | {"temperature": 0.0}
        return options | {
            "temperature": request.temperature,
            "top_k": request.top_k or -1,
            "top_p": request.top_p,
            "sampling_seed": request.seeds[row],
        }


class SGLangSubject:
    """Requests of one scheduler; it knows no float64, no padding and no processor that reads a prefix but its penalties."""

    features = frozenset(Feature) - {Feature.FLOAT64, Feature.PADDING, Feature.RULES}
    capabilities = OFFERED - {Need.TOKENIZER}  # its models have none

    def world(self, seed: int, vocab: int, dtype: str) -> SGLangWorld:
        disable_progress_bar()
        logging.getLogger("specplug_sglang").setLevel(logging.CRITICAL)  # drafters that fail are failures of a check
        return SGLangWorld(seed, vocab, dtype)
