"""A server with continuous batching, in simulated time.

Requests wait until there is room in the batch; the prompts of those that wait are read before the next round, as many at
once as a forward takes, and give their first tokens.
Then rounds: the controller plans, the world says how long it took, the requests' own fates say what was accepted, and
the session observes a real `Round`. Whoever has its output leaves after the round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from specplug.controllers.base import Controller, Plan
from specplug.host import Batch, Commit
from specplug.ragged import limited
from specplug.round import Round, Seconds
from specplug.session import Session
from specplug.simulation.host import SimulatedHost
from specplug.simulation.workload import Request
from specplug.simulation.world import Ledger, World
from specplug.tree import TreeBatch, TreeShape, fill_shape
from specplug.verify import Targets, Verdict

AT_ONCE = 8192  # tokens of prompts that a forward reads; a longer prompt is read alone


@dataclass(slots=True)
class Row:
    """A request in the batch. `done`: tokens of its output so far."""

    request: Request
    done: int = 1

    @property
    def context(self) -> int:
        """Tokens in the cache; the newest is not there yet."""
        return self.request.prompt + self.done - 1

    @property
    def left(self) -> int:
        return self.request.output - self.done


@dataclass(slots=True)
class Served:
    """A finished request: seconds at which it arrived, had its first token, and left."""

    number: int
    tokens: int
    arrival: float
    first: float
    left: float

    @property
    def latency(self) -> float:
        return self.left - self.arrival


@dataclass(slots=True)
class Outcome:
    """A run. `busy`: seconds of work; `row_seconds`: summed over rows in the batch; `end`: when the last request left."""

    served: list[Served] = field(default_factory=list)
    end: float = 0.0
    busy: float = 0.0
    prefill: float = 0.0
    row_seconds: float = 0.0
    rounds: int = 0
    row_rounds: int = 0
    plain_rounds: int = 0  # rounds that drafted nothing
    decoded: int = 0  # tokens, all but the prompts' first ones
    drafted: int = 0  # most draft tokens of any row, summed over rounds


@dataclass(slots=True)
class Server:
    """`session`: a controller at work, with its arms opened on a `SimulatedHost`. `drafts`: it has a draft with a cache.

    `eager`: the draft reads a prompt when the target does. Otherwise it does when it is first asked to draft for a row.
    """

    world: World
    session: Session
    ledger: Ledger
    max_batch: int
    drafts: bool
    eager: bool = False
    outcome: Outcome = field(default_factory=Outcome)
    clock: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def serve(self, requests: Sequence[Request]) -> Outcome:
        """Serve them all, in the order in which they arrive."""
        coming, waiting = deque(requests), deque[Request]()
        while coming or waiting or self.rows:
            if not waiting and not self.rows:
                self.clock = max(self.clock, coming[0].arrival)
            while coming and coming[0].arrival <= self.clock:
                waiting.append(coming.popleft())
            if waiting and len(self.rows) < self.max_batch:
                self._admit(self._next(waiting))
            elif self.rows:
                self._round()
        self.outcome.end = self.clock
        return self.outcome

    def _next(self, waiting: deque[Request]) -> list[Request]:
        """Those whose prompts are read together: at least one, as long as there is room."""
        found, tokens = [waiting.popleft()], 0
        while waiting and len(self.rows) + len(found) < self.max_batch:
            tokens = sum(request.prompt for request in found) + waiting[0].prompt
            if tokens > AT_ONCE:
                break
            found.append(waiting.popleft())
        return found

    def _admit(self, requests: Sequence[Request]) -> None:
        """Read their prompts; the others wait meanwhile."""
        prompts, start = [request.prompt for request in requests], self.clock
        self._work(self.world.prefill(prompts, self.clock))
        if self.eager:
            self._work(self.world.reading(prompts, self.clock))
        self.outcome.prefill += self.clock - start
        for request in requests:
            row = Row(request)
            self.outcome.served.append(Served(request.number, request.output, request.arrival, self.clock, self.clock))
            if row.left:
                self.rows.append(row)
                if self.eager:
                    self.ledger.read[request.number] = request.prompt

    def _work(self, seconds: float) -> None:
        self.outcome.row_seconds += seconds * len(self.rows)
        self.outcome.busy += seconds
        self.clock += seconds

    def _round(self) -> None:
        rows, host = self.rows, self.session.host
        assert isinstance(host, SimulatedHost)
        numbers = [row.request.number for row in rows]
        contexts = [row.context for row in rows]
        self.ledger.lengths = dict(zip(numbers, contexts, strict=True))
        batch = _batch(numbers, contexts, max(row.left for row in rows))
        plan = self.session.controller.plan(batch)
        tokens = host.padded_tokens([size + 1 for size in sizes_of(plan, len(rows))])
        unread = self.ledger.unread(numbers) if self.drafts else [0] * len(rows)
        seconds = self.world.round(plan.shape, tokens, contexts, unread, self.clock)
        self._work(seconds.total)
        self._commit(batch, plan, seconds)

    def _commit(self, batch: Batch, plan: Plan, seconds: Seconds) -> None:
        shape, rows, sizes = plan.shape, self.rows, sizes_of(plan, len(self.rows))
        paths = [accepted(row.request, row.done, shape, size) for row, size in zip(rows, sizes, strict=True)]
        new = []
        for row, path in zip(rows, paths, strict=True):
            if shape.size:  # the draft has read the root and every level but the last
                self.ledger.read[row.request.number] = row.context + min(len(path) + 1, shape.depth)
            new.append(min(len(path) + 1, row.left))
            row.done += new[-1]
        gone = tuple(row.request.number for row in rows if not row.left)
        self._count(plan, new)
        if type(self.session.controller).observe is not Controller.observe:  # somebody learns
            trees, verdict = _verdict(plan, paths)
            self.session.observe(Round(batch, plan, trees, Targets(), verdict, Commit(new, gone), seconds))
        if gone:
            self._leave(gone)

    def _count(self, plan: Plan, new: Sequence[int]) -> None:
        outcome = self.outcome
        outcome.rounds += 1
        outcome.row_rounds += len(new)
        outcome.plain_rounds += not plan.shape.size
        outcome.decoded += sum(new)
        outcome.drafted += max(sizes_of(plan, len(new)))

    def _leave(self, gone: Sequence[int]) -> None:
        finished = {row.request.number for row in self.rows if not row.left}
        for served in self.outcome.served:
            if served.number in finished:
                served.left = self.clock
        self.rows = [row for row in self.rows if row.left]
        for number in gone:
            self.ledger.read.pop(number, None)


def sizes_of(plan: Plan, rows: int) -> Sequence[int]:
    """Draft tokens of each row."""
    return plan.sizes if plan.sizes is not None else (plan.shape.size,) * rows


def accepted(request: Request, done: int, shape: TreeShape, size: int) -> Sequence[int]:
    """The nodes that are accepted behind output token `done` - 1, of the first `size` of `shape`; the root left out."""
    if shape.is_chain:
        return range(1, min(request.runs[done], size) + 1)
    return list(_walk(request, done, shape, size))


def _walk(request: Request, done: int, shape: TreeShape, size: int) -> Iterator[int]:
    children, node = _children(shape), 0
    for place in range(done, len(request.ranks)):
        rank = request.ranks[place]
        if not 0 <= rank < len(children[node]) or shape.priority[children[node][rank]] > size:
            return
        node = children[node][rank]
        yield node


@lru_cache(maxsize=512)
def _children(shape: TreeShape) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in shape.parents]
    for node, parent in enumerate(shape.parents[1:], start=1):
        found[parent].append(node)
    return tuple(map(tuple, found))


@lru_cache(maxsize=1024)
def _zeros(*size: int) -> torch.Tensor:
    return torch.zeros(*size, dtype=torch.int64)


def _batch(numbers: Sequence[int], contexts: Sequence[int], room: int) -> Batch:
    zeros = _zeros(len(numbers))
    return Batch(tuple(numbers), zeros, torch.tensor(contexts), zeros, False, max(contexts), room)


def _verdict(plan: Plan, paths: Sequence[Sequence[int]]) -> tuple[TreeBatch, Verdict]:
    """The trees, all of token 0, and what became of them."""
    shape = plan.shape
    trees = _trees(shape, len(paths))
    if plan.sizes is not None:
        trees = limited(trees, shape, plan.sizes)
    count = torch.tensor([len(path) for path in paths])
    if shape.is_chain:
        return trees, Verdict(torch.minimum(trees.depths, count[:, None]), count, _zeros(len(paths)))
    filled = [[0, *path] + [path[-1] if path else 0] * (shape.depth - len(path)) for path in paths]
    return trees, Verdict(torch.tensor(filled), count, _zeros(len(paths)))


@lru_cache(maxsize=1024)
def _trees(shape: TreeShape, rows: int) -> TreeBatch:
    return fill_shape(shape, _zeros(rows, shape.num_nodes))
