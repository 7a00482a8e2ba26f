"""What the core's tests share: a target with an exact law, a host around it, and the exact law of a verification.

The target is a table: the law of the next token given the last two. It is a real language model (of order two) whose
every joint law can be written down, so that "lossless" can be checked to the last digit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specplug.host import Batch, Commit
from specplug.needs import Need
from specplug.random import row_seeds
from specplug.tree import TreeBatch, TreeShape
from specplug.verify import Targets, Verdict
from specplug_conformance import exact
from specplug_conformance.exact import Path, tokens_to

CPU = torch.device("cpu")


def table(vocab: int, seed: int, spread: float = 1.5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [V, V, V] of the next token given the last two."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(vocab, vocab, vocab, generator=generator, dtype=torch.float64) * spread).to(dtype)


def near(other: Tensor, seed: int, noise: float = 0.7) -> Tensor:
    """A table that mostly agrees with `other`: a draft."""
    generator = torch.Generator().manual_seed(seed)
    return other + torch.randn(other.shape, generator=generator, dtype=torch.float64).to(other.dtype) * noise


@dataclass
class TableRunner:
    """Drafts from a table. A fake of what adapters build: no cache, the committed text is simply read."""

    host: TableHost
    logits: Tensor
    vocab_size: int = 0
    calls: int = 0

    def unread(self, batch: Batch) -> int:
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        self.calls += 1
        self._shape = shape
        self._before = self.host.before_root(batch)
        self._tokens = batch.roots[:, None]
        return self.logits[self._before, batch.roots][:, None]

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        self.calls += 1
        start, stop = self._shape.levels[level]
        assert tokens.shape[1] == stop - start
        parents = self._tokens[:, list(self._shape.parents[start:stop])]
        self._tokens = torch.cat([self._tokens, tokens], dim=1)
        return self.logits[parents, tokens]


@dataclass
class TableHost:
    """Rows of text under a table target. `prompts` have at least two tokens; `starts` leaves pad columns before a row."""

    target: Tensor
    draft: Tensor
    prompts: Sequence[Sequence[int]]
    sampling: bool = False
    new_tokens: int | Sequence[int] = 16
    seed: int = 0
    seeds: Tensor | None = None
    names: Sequence[Hashable] | None = None
    starts: Sequence[int] | None = None
    capabilities: frozenset[Need] = frozenset({Need.HISTORY, Need.TARGET_RUNNER, Need.MODEL_RUNNER})
    key: Hashable = "table"
    identity: tuple[str, str, str] = ("table", "cpu", "float32")
    kv_bytes: int = 2
    device: torch.device = CPU
    vocab_size: int = field(init=False)
    verified: int = 0

    def __post_init__(self) -> None:
        self.vocab_size = self.target.shape[-1]
        rows = len(self.prompts)
        limits = [self.new_tokens] * rows if isinstance(self.new_tokens, int) else list(self.new_tokens)
        starts = [0] * rows if self.starts is None else list(self.starts)
        lengths = [start + len(prompt) for start, prompt in zip(starts, self.prompts, strict=True)]
        self.names = tuple(range(rows)) if self.names is None else tuple(self.names)
        self.begins = torch.tensor(starts)
        self.ends = torch.tensor(lengths)
        self.stops = self.ends + torch.tensor(limits)
        self.text = torch.full((rows, int(self.stops.max()) + 1), self.vocab_size - 1)
        for row, prompt in enumerate(self.prompts):
            self.text[row, starts[row] : lengths[row]] = torch.tensor(list(prompt))
        self.first = self.ends.clone()
        self.row_seeds = row_seeds(self.seed, rows, CPU) if self.seeds is None else self.seeds
        self.active = torch.arange(rows)

    def batch(self) -> Batch:
        active = self.active
        ends = self.ends[active]
        return Batch(
            rows=tuple(self.names[i] for i in active.tolist()),
            roots=self.text[active, ends - 1],
            lengths=ends - 1 - self.begins[active],
            seeds=self.row_seeds[active],
            sampling=self.sampling,
            context=int((ends - self.begins[active]).max()) - 1,
            room=int((self.stops[active] - ends).max()),
            history=self.text[active],
            history_ends=ends,
            history_starts=self.begins[active],
        )

    def before_root(self, batch: Batch) -> Tensor:
        return self.text[self.active, self.ends[self.active] - 2]

    def runner(self, model: Tensor | None, policy: object) -> TableRunner:
        return TableRunner(self, self.draft if model is None else model, self.vocab_size)

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        self.verified += 1
        parents = trees.parents.clamp(min=0).expand(trees.num_rows, -1)
        before = trees.tokens.gather(1, parents)
        before[:, 0] = self.before_root(batch)
        tokens = trees.tokens
        if trees.valid is not None:  # padding nodes: a host may compute anything for them
            tokens, before = tokens.where(trees.valid, 0), before.where(trees.valid, 0)
        return self.target[before, tokens]

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        if batch.sampling:
            return Targets(probs=logits.float().softmax(-1))
        return Targets(tokens=logits.argmax(-1))

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        tokens = verdict.tokens(trees)
        ends = self.ends[self.active]
        new = torch.minimum(verdict.num_accepted + 1, self.stops[self.active] - ends)
        for column in range(tokens.shape[1]):
            writes = column < new
            self.text[self.active[writes], (ends + column)[writes]] = tokens[writes, column]
        self.ends[self.active] = ends + new
        over = self.ends[self.active] >= self.stops[self.active]
        finished = tuple(self.names[i] for i in self.active[over].tolist())
        self.active = self.active[~over]
        return Commit(new, finished)

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        return len(sizes) * max(sizes)

    def result(self, row: int) -> list[int]:
        """New tokens of a row."""
        return self.text[row, self.first[row] : self.ends[row]].tolist()


def plain_greedy(target: Tensor, prompt: Sequence[int], count: int) -> list[int]:
    """What the target alone generates."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(target[text[-2], text[-1]].argmax()))
    return text[len(prompt) :]


def joint_law(target: Tensor, prompt: Sequence[int], count: int) -> Tensor:
    """The target's exact law of the next `count` tokens, flattened: [V ** count] float64."""
    laws = target.double().softmax(-1)
    size = laws.shape[-1]
    result = torch.zeros([size] * count, dtype=torch.float64)
    for tokens in itertools.product(range(size), repeat=count):
        text, mass = list(prompt), 1.0
        for token in tokens:
            mass *= float(laws[text[-2], text[-1], token])
            text.append(token)
        result[tokens] = mass
    return result.flatten()


# --- the exact law of a verification -----------------------------------------------------------------------------

TargetLaw = Callable[[Path], Tensor]  # tokens accepted so far -> law of the next, [V] float32


def emitted_law(trees: TreeBatch, target: TargetLaw) -> list[dict[Path, float]]:
    """For each row, the exact law of what one verification emits (accepted tokens and bonus)."""
    paths = [[tokens_to(trees, row, node) for node in range(trees.num_nodes)] for row in range(trees.num_rows)]
    return exact.emitted_law(trees, torch.stack([torch.stack([target(path) for path in row]) for row in paths]))


def first_tokens(law: dict[Path, float], target: TargetLaw, vocab: int, count: int = 2) -> Tensor:
    """Law of the first `count` tokens when plain decoding follows what was emitted, [V ** count] float64."""
    result = torch.zeros([vocab] * count, dtype=torch.float64)
    for path, mass in law.items():
        for tail in itertools.product(range(vocab), repeat=max(0, count - len(path))):
            whole, share = path[:count] + tail, mass
            for i in range(len(path), len(whole)):
                share *= float(target(whole[:i]).double()[whole[i]])
            result[whole[:count]] += share
    return result.flatten()


def target_law(vocab: int, seed: int, spread: float = 1.0) -> TargetLaw:
    """A target with its own random law after every path."""
    known: dict[Path, Tensor] = {}

    def law(path: Path) -> Tensor:
        if path not in known:
            generator = torch.Generator().manual_seed(hash((seed, path)) % 2**31)
            known[path] = (torch.randn(vocab, generator=generator, dtype=torch.float64) * spread).softmax(-1).float()
        return known[path]

    return law
