"""Statistics of a generation. `num_accepted` counts draft tokens; `accepted_length` includes the bonus token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from specplug.round import Round


@dataclass(slots=True)
class SpecStats:
    """Counts and times, summed over rounds and rows. Times in seconds, `kv_bytes_read` an estimate in bytes."""

    rounds: int = 0
    proposed: int = 0
    padded: int = 0  # nodes that a row's forward computed only since another row of its batch proposed more
    accepted: int = 0
    emitted: int = 0
    row_rounds: int = 0
    proposed_by_depth: Counter[int] = field(default_factory=Counter)
    tried_by_depth: Counter[int] = field(default_factory=Counter)  # rows and rounds that proposed at the depth
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    emitted_by_row: Counter[Hashable] = field(default_factory=Counter)
    rounds_by_row: Counter[Hashable] = field(default_factory=Counter)
    rounds_by_arm: Counter[str] = field(default_factory=Counter)
    tree_sizes: Counter[int] = field(default_factory=Counter)
    draft_forwards: int = 0
    target_forwards: int = 0
    seconds_draft: float = 0.0
    seconds_verify: float = 0.0
    seconds_commit: float = 0.0
    seconds_other: float = 0.0
    seconds_plan: float = 0.0
    seconds_prefill: float = 0.0
    kv_bytes_read: int = 0

    def observe(self, finished: Round, kv_bytes: int) -> None:
        """Add a finished round; reads its results, so it waits for the device."""
        batch, trees = finished.batch, finished.trees
        accepted = finished.verdict.accepted
        new = finished.commit.counts
        self.rounds += 1
        self.row_rounds += len(new)
        self.emitted += sum(new)
        self.target_forwards += 1
        drafter = finished.plan.arm.drafter
        self.draft_forwards += finished.plan.shape.depth if drafter.drafts_with_model else 0
        self._count_proposed(finished)
        for row, taken, kept in zip(batch.rows, accepted, new, strict=True):
            taken = min(taken, kept)  # the host may have cut it
            self.accepted += taken
            for depth in range(1, taken + 1):
                self.accepted_by_depth[depth] += 1
            self.emitted_by_row[row] += kept
            self.rounds_by_row[row] += 1
        self.rounds_by_arm[finished.plan.arm.label] += 1
        self.tree_sizes[trees.num_nodes - 1] += 1
        self._count_time(finished)
        self.kv_bytes_read += kv_bytes * batch.num_rows * (batch.context + trees.num_nodes)

    def _count_proposed(self, finished: Round) -> None:
        trees, rows = finished.trees, finished.batch.num_rows
        if trees.num_nodes == 1:
            return
        if trees.shape is not None and trees.valid is None:
            for depth, (start, stop) in enumerate(trees.shape.levels[1:], start=1):
                self._count_depth(depth, rows * (stop - start), rows)
            return
        depths = trees.depths.expand(rows, -1)[:, 1:]
        if trees.valid is not None:
            depths = depths.where(trees.valid[:, 1:], 0)
            self.padded += depths.numel() - int(trees.valid[:, 1:].sum())
        for row in depths.tolist():
            for depth, nodes in Counter(row).items():
                if depth:
                    self._count_depth(depth, nodes, 1)

    def _count_depth(self, depth: int, nodes: int, rows: int) -> None:
        self.proposed += nodes
        self.proposed_by_depth[depth] += nodes
        self.tried_by_depth[depth] += rows

    def _count_time(self, finished: Round) -> None:
        self.seconds_draft += finished.seconds.draft
        self.seconds_verify += finished.seconds.verify
        self.seconds_commit += finished.seconds.commit
        self.seconds_other += finished.seconds.other
        self.seconds_plan += finished.seconds.plan

    @property
    def acceptance_rate(self) -> float:
        """Accepted over proposed draft tokens; 0 if nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def accepted_length(self) -> float:
        """Mean tokens a row and round, the bonus included."""
        return self.emitted / self.row_rounds if self.row_rounds else 0.0

    @property
    def accepted_length_by_row(self) -> dict[Hashable, float]:
        """`accepted_length` of each row."""
        return {row: self.emitted_by_row[row] / rounds for row, rounds in self.rounds_by_row.items()}

    @property
    def acceptance_by_depth(self) -> dict[int, float]:
        """P(a token is accepted at this depth): accepted at the depth over rows and rounds that proposed there."""
        return {depth: self.accepted_by_depth[depth] / tried for depth, tried in sorted(self.tried_by_depth.items())}

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values: the keys of counts are integers or text."""
        plain: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Counter):
                value = {key if isinstance(key, int | str) else str(key): count for key, count in value.items()}
            plain[name] = value
        return plain | {
            "acceptance_rate": self.acceptance_rate,
            "accepted_length": self.accepted_length,
            "acceptance_by_depth": self.acceptance_by_depth,
        }
