"""`lookahead`: n-grams that the target makes up itself, in the pass that verifies (Fu et al., arXiv 2402.02057, section 3).

Beside what is proposed, every pass reads a window of guesses at what comes later: W columns of N - 1 levels. Level 0 is a chain,
the root its column 0; the node of level j and column i stands below that of level j - 1. So it sees level 0 up to its column and
the lower levels of its column, and stands i + j behind the root. The target's own choice behind the last level is the last level
of the next window, whose others are one step older (Jacobi iteration), and with the column before it an n-gram, remembered by
its first token. Up to G n-grams that begin with the root are proposed.

To the target all of it is one tree of deterministic tokens, and what it accepts of the window counts as well. There is no draft
to wait for, but every node is verified: W (N - 1) - 1 for the window and G (N - 1) for the n-grams, less what they share. On a
CPU, or in large batches, that is dear; take a smaller window there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.jacobi import JacobiRows
from specplug.drafters.paths import each_path_once, lineage_of
from specplug.errors import OptionError
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, roots_only

if TYPE_CHECKING:
    from specplug.round import Round

IN_FLIGHT = 4  # rounds that may have been drafted and not yet observed; older ones were given up


@dataclass
class Lookahead(Drafter):
    """`window` columns, n-grams of `ngram` tokens, of which up to `guesses` are proposed and `memory` are kept a row.

    A smaller tree than its own drops guesses first, all but one, then columns.
    """

    window: int = 7
    ngram: int = 5
    guesses: int = 7
    memory: int = 1024
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY, Need.TARGET_PASS})
    checked: ClassVar[bool] = False
    indivisible: ClassVar[bool] = True  # n-grams come from the window alone, and from few columns come none that suit

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("ngram", 2), ("guesses", 1), ("memory", max(self.window, self.guesses))):
            value = getattr(self, name)
            if value < least:
                raise OptionError(f"lookahead: {name}={value} must be at least {least}.")

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.window},{self.ngram},{self.guesses}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        parents = _parents(self.window, self.ngram - 1, self.guesses, self.ngram - 1)
        return (TreeShape.from_parents(list(parents)),)

    def setup(self) -> None:
        self._rows = JacobiRows(self.window, self.ngram, self.memory, self.host.device)
        self._drafted: deque[_Drafted] = deque(maxlen=IN_FLIGHT)

    def draft(self, request: DraftRequest) -> TreeBatch:
        """The window and the n-grams that begin with the root, equal paths once. Waits for the device: how many are they."""
        batch, levels = request.batch, self.ngram - 1
        columns, guesses, length = self._fitting(request.shape)
        if not columns and not guesses:
            return roots_only(batch.roots)
        places = self._rows.places(batch)
        window = self._rows.window(places, batch.roots)
        ngrams, found = self._rows.following(places, batch.roots, guesses)
        ahead = window[:, :, :columns].transpose(1, 2).flatten(1) if columns else batch.roots[:, None]
        tokens = torch.cat([ahead, ngrams[..., :length].flatten(1)], 1)
        there = torch.cat([torch.ones_like(ahead, dtype=torch.bool), found.repeat_interleave(length, 1)], 1)
        parents, lineage = _nodes(columns, levels, guesses, length, tokens.device)
        trees, nodes = each_path_once(tokens, there, parents, lineage)
        if columns:
            last = nodes[:, levels - 1 : columns * levels : levels]
            self._drafted.append(_Drafted(trees.tokens, window, last))
        return trees

    def observe(self, finished: Round) -> None:
        """Take the target's choices behind the window's last level into the next window, and remember the n-grams."""
        drafted = next((drafted for drafted in self._drafted if drafted.tokens is finished.trees.tokens), None)
        if drafted is None or finished.logits is None:
            return
        self._drafted.remove(drafted)
        logits, nodes, valid = finished.logits, drafted.last, finished.trees.valid
        row = torch.arange(logits.shape[0], device=logits.device)[:, None]
        chosen = logits[row, nodes.to(logits.device)].argmax(-1).to(nodes.device)
        real = torch.ones_like(nodes, dtype=torch.bool) if valid is None else valid.gather(1, nodes)
        self._rows.learn(finished.batch.rows, drafted.window, chosen, real)

    def forget(self, rows: Sequence[Hashable]) -> None:
        self._rows.forget(rows)

    def _fitting(self, shape: TreeShape) -> tuple[int, int, int]:
        """Columns, n-grams, and tokens of each n-gram, within `shape`'s size and depth."""
        levels, length = self.ngram - 1, min(self.ngram - 1, shape.depth)
        if not length:
            return 0, 0, 0
        affordable = (shape.size + 1) // levels  # the root is one of the window's nodes
        affordable -= affordable > 1  # as much as one n-gram takes
        columns = max(0, min(self.window, affordable, shape.depth + 2 - levels))
        left = shape.size + 1 - max(1, columns * levels)
        return columns, min(self.guesses, left // length), length


@dataclass(frozen=True, slots=True, eq=False)
class _Drafted:
    """What is needed to learn from a round once it is observed."""

    tokens: Tensor  # the proposal's, by which its round is known
    window: Tensor  # [B, N - 1, W]
    last: Tensor  # [B, columns]: the tree's nodes of the last level


@lru_cache(maxsize=128)
def _parents(columns: int, levels: int, guesses: int, length: int) -> tuple[int, ...]:
    """Parents of the root, the window's nodes column by column, and `guesses` chains of `length` nodes below the root."""
    parents = [-1]
    for node in range(1, columns * levels):
        column, level = divmod(node, levels)
        parents.append(node - 1 if level else (column - 1) * levels)
    for _ in range(guesses):
        parents += [0, *range(len(parents), len(parents) + length - 1)]
    return tuple(parents)


@lru_cache(maxsize=128)
def _nodes(columns: int, levels: int, guesses: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same as a tensor [n], and the nodes' lineage (drafters/paths.py)."""
    parents = _parents(columns, levels, guesses, length)
    return torch.tensor(parents, device=device), lineage_of(parents).to(device)
