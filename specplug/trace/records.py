"""What is kept of a recorded generation: plain Python values, no tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Origin(StrEnum):
    """Where a token came from."""

    ACCEPTED = "accepted"  # drafted, and accepted by the target
    BONUS = "bonus"  # the target's own, behind what was accepted of a proposal
    PLAIN = "plain"  # the target's own, nothing having been proposed


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a row's tree. Node 0 is the root.

    `draft`: the draft's probability of its token behind its parent, None where there is none (the root, a lookup).
    `target`: the target's, None for the root.
    """

    token: int
    parent: int  # an earlier node, -1 for the root
    accepted: bool
    draft: float | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class RowRound:
    """What one round was for one row.

    `tokens`: what it emitted, the accepted draft tokens first. `path`: the nodes whose law decided them, the root first,
    one for each token. `alternatives`: of each of these, what the target held most probable behind it: pairs of token
    and probability. `bonus`: the probability of the token behind the accepted ones, None if the host cut it.
    `cut`: tokens that the target had given and the host did not keep (a stop, a grammar, the length).
    """

    nodes: tuple[Node, ...]
    tokens: tuple[int, ...]
    path: tuple[int, ...]
    alternatives: tuple[tuple[tuple[int, float], ...], ...]
    bonus: float | None
    cut: int

    @property
    def proposed(self) -> int:
        """Draft tokens."""
        return len(self.nodes) - 1

    @property
    def accepted(self) -> int:
        """Draft tokens that were accepted and kept."""
        return sum(node.accepted for node in self.nodes)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of each of `tokens`."""
        own = Origin.BONUS if self.proposed else Origin.PLAIN
        return (Origin.ACCEPTED,) * self.accepted + (own,) * (len(self.tokens) - self.accepted)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round: its plan, its times, and what it was for each row (by identity).

    `size` and `depth`: of the tree that was planned. `predicted_tokens` a row, `predicted_seconds` without planning; None:
    the controller said nothing, also where `reason` is empty. `seconds`: by part, as in `specplug.round.Seconds`.
    `sampled`: the target's probabilities are its law after every processor; else the softmax of its logits before them.
    `has_draft`: whether a model drafted (what was looked up has no probabilities).
    """

    arm: str
    has_draft: bool
    size: int
    depth: int
    reason: str
    predicted_tokens: float | None
    predicted_seconds: float | None
    seconds: dict[str, float]
    sampled: bool
    context: int  # most tokens in the cache of any row
    rows: dict[Hashable, RowRound]


@dataclass(slots=True)
class RowRecord:
    """One row. `prompt`: its tokens before `root`, empty where the host keeps no history.

    `root`: the newest token when its first round began. It is in no round: the prompt's last, or what the prompt's own
    forward gave (transformers).
    """

    identity: Hashable
    prompt: tuple[int, ...]
    root: int


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token of a row's text: where it came from, and the number of its round (0 is the first; None: in no round)."""

    token: int
    origin: Origin
    round: int | None


@dataclass(slots=True)
class Generation:
    """One session's rounds, in the order in which they were observed, and its rows in the order in which they joined."""

    controller: str
    arms: tuple[str, ...]
    identity: tuple[str, str, str]  # of the host: model, device, dtype
    rounds: list[RoundRecord] = field(default_factory=list)
    rows: dict[Hashable, RowRecord] = field(default_factory=dict)

    def tokens(self, row: Hashable) -> Iterator[TokenRecord]:
        """The text of a row from its root on."""
        yield TokenRecord(self.rows[row].root, Origin.PLAIN, None)
        for number, finished in enumerate(self.rounds):
            mine = finished.rows.get(row)
            if mine is not None:
                for token, origin in zip(mine.tokens, mine.origins, strict=True):
                    yield TokenRecord(token, origin, number)


@dataclass(slots=True)
class Recording:
    """Every generation that began while it was active, in that order."""

    generations: list[Generation] = field(default_factory=list)
