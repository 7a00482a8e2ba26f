"""The toy framework as a subject of the suite."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from specplug import Speculator, run_round
from specplug.session import Session
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature, Watch
from specplug_conformance.toy.host import ToyHost
from specplug_conformance.toy.model import ToyModel, make_draft, make_model
from specplug_conformance.toy.processing import processed


class ToyState:
    """A look into a `ToyHost` between two rounds."""

    def __init__(self, host: ToyHost) -> None:
        self.host = host

    def committed(self) -> dict[Hashable, list[int]]:
        return {row: self.host.text[row, : int(self.host.ends[row])].tolist() for row in self.host.rows}

    def cached(self, row: Hashable) -> list[Tensor]:
        assert isinstance(row, int)
        length = int(self.host.ends[row]) - 1
        return [self.host.entries[row, :length], self.host.places[row, :length, None].double()]

    def draft_reads(self, row: Hashable) -> int | None:
        assert isinstance(row, int)
        return max((runner.reads[row] for runner in self.host.runners if row in runner.reads), default=None)


class ToyWorld:
    """A toy model and a draft that often agrees with it."""

    def __init__(self, seed: int, vocab: int, dtype: str) -> None:
        self.seed, self.vocab, self.dtype = seed, vocab, dtype
        self.model: ToyModel = make_model(seed, vocab, getattr(torch, dtype))
        self.draft: ToyModel = make_draft(self.model, seed + 1)

    def plain(self, request: Request) -> list[list[int]]:
        texts = []
        for prompt in request.prompts:
            new: list[int] = []
            while len(new) < request.new_tokens and not (new and new[-1] in request.end_tokens):
                new.append(int(self.scores([*prompt, *new], request, len(prompt)).argmax()))
            texts.append(new)
        return texts

    def speculated(self, request: Request, speculator: Speculator, watch: Watch | None = None) -> list[list[int]]:
        host = ToyHost(self.model, request)
        session = speculator.open(host)
        waiting = dict(enumerate(request.joins or (0,) * request.num_rows))
        leaving, count = dict(request.leaves), 0
        while waiting or host.rows:
            _come_and_go(host, session, waiting, leaving, count)
            count += 1
            if host.rows:
                finished = run_round(host, session)
                session.observe(finished)
                if watch is not None:
                    watch(finished, ToyState(host))
        speculator.finish(session)
        starts = map(len, request.prompts)
        return [host.text[row, start : int(host.ends[row])].tolist() for row, start in enumerate(starts)]

    def scores(self, tokens: Sequence[int], request: Request, prompt_length: int) -> Tensor:
        return processed(self.model.next_logits(tokens), tokens, request)

    def fresh(self, tokens: Sequence[int]) -> list[Tensor]:
        text = torch.tensor(list(tokens), dtype=torch.int64)
        return [self.model.entries(text), torch.arange(len(text), dtype=torch.float64)[:, None]]

    def fingerprint(self) -> Hashable:
        parts = [self.model.last, self.model.past, self.model.place, self.draft.last, self.draft.past, self.draft.place]
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def _come_and_go(host: ToyHost, session: Session, waiting: dict[int, int], leaving: dict[int, int], count: int) -> None:
    """Rows whose time has come enter or are aborted before round `count`."""
    aborted = [row for row, when in leaving.items() if when <= count and row in host.rows]
    host.rows = [row for row in host.rows if row not in aborted]
    if aborted:
        session.forget(aborted)
    for row in [row for row, when in waiting.items() if when <= count]:
        del waiting[row]
        host.rows.append(row)


class ToySubject:
    """Everything that the suite can ask for; its rows are not padded."""

    features = frozenset(Feature) - {Feature.PADDING}
    capabilities = ToyHost.capabilities

    def world(self, seed: int, vocab: int, dtype: str) -> ToyWorld:
        return ToyWorld(seed, vocab, dtype)
