"""What every drafter is: something that fills a token tree for each row of a batch."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from specplug.host import Batch, Host
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape
from specplug.trees import Chain, Sequoia

if TYPE_CHECKING:
    from specplug.hindsight import Hindsight
    from specplug.round import Round


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One round's order: fill `shape`, or less. A proposal must not have more draft tokens or depth than `shape`.

    `grown`: better trees of other topologies are welcome (drafters/grow.py). `explain`: somebody looks on; a drafter that
    knows its probabilities should give them (`TreeBatch.confidence`), and must propose as it would have otherwise.
    `part`: what is proposed will be a part of the tree that is verified, so that its nodes get other numbers there.
    """

    batch: Batch
    shape: TreeShape
    grown: bool = False
    explain: bool = False
    part: bool = False


class Drafter:
    """Base of the drafters.

    A drafter object is configuration; `open` makes the working copy that one generation uses, bound to its host, so
    that one drafter serves many threads. Override `draft`, and `setup` if there is something to prepare.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    checked: ClassVar[bool] = True  # proposals are checked for range and NaN before they reach the target
    drafts_with_model: ClassVar[bool] = False  # whether each level of its tree costs a forward
    indivisible: ClassVar[bool] = False  # its tree is worth little in parts: a planner takes all of it, or none
    rehearses: ClassVar[bool] = (
        False  # proposes from `Batch.history` alone, remembers nothing: may be tried on the past
    )
    host: Host

    @property
    def parts(self) -> tuple[Drafter, ...]:
        """The drafters that it is made of: itself, unless it puts others' proposals together."""
        return (self,)

    @property
    def required(self) -> frozenset[Need]:
        """What a host must offer: `needs`, and what the parts that it was made of need (a KV policy, other drafters)."""
        return self.needs

    @property
    def budget(self) -> int | None:
        """Most committed tokens of a row that it reads in a round; None: all."""
        return None

    @property
    def min_context(self) -> int:
        """Tokens in the cache below which it cannot pay."""
        return 0

    def shapes(self) -> tuple[TreeShape, ...]:
        """Trees to choose from where none was asked for; the first is what a fixed controller takes."""
        return Sequoia(8, 4).build(), Chain(3).build(), Sequoia(16, 6).build()

    def fitted(self, shape: TreeShape) -> TreeShape:
        """The part of `shape` that it can fill."""
        return shape

    @property
    def key(self) -> str:
        """What measured times and acceptance hold for: the method, with whatever makes it draft differently. Of a working copy."""
        return type(self).__name__

    def open(self, host: Host) -> Self:
        """A working copy bound to `host`."""
        working = copy.copy(self)
        working.host = host
        working.setup()
        return working

    def setup(self) -> None:
        """Prepare the working copy (`self.host` is set). Called once a generation."""

    def draft(self, request: DraftRequest) -> TreeBatch:
        """Propose a tree a row. Child counts are fixed before anything is drawn; nothing drawn may be discarded."""
        raise NotImplementedError

    def hindsight(self, batch: Batch, ago: Sequence[int], shape: TreeShape) -> Hindsight | None:
        """What drafting `shape` some tokens ago would have come to, for a drafter that `rehearses`; None: draft, and see.

        `ago`: tokens since, a number a row, again and again for as many places as are asked for: those of the first place, then
        those of the next. To be overridden where it can be said in less time than drafting takes.
        """
        return None

    def unread(self, batch: Batch) -> int:
        """Committed tokens, over all rows, that it would have to read before it could draft: a prompt, or what it missed."""
        return 0

    def observe(self, finished: Round) -> None:
        """Learn what became of a round; may come a round late."""

    def forget(self, rows: Sequence[Hashable]) -> None:
        """These rows have left for good."""
