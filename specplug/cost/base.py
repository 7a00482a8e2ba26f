"""What a cost model says: seconds of one forward from what it computes and reads.

T_round = depth * T_draft + T_target + overhead (DESIGN.md section 5; MagicDec, arXiv 2408.11049, section 3; Sequoia's
adaptive form; SmartSpec, arXiv 2406.14066, section 4).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Load(NamedTuple):
    """One forward over a batch.

    `rows`: B. `tokens`: query tokens over all rows, padding included; a decode step has `rows`. `context`: KV entries
    read, summed over rows (of one layer and head); what a draft's budget leaves of it, for a draft.
    """

    rows: int
    tokens: int
    context: int

    @property
    def pairs(self) -> float:
        """Query-key pairs that attention scores: every row's tokens against its share of the context."""
        return self.tokens * self.context / self.rows


class CostModel(Protocol):
    """Seconds of a round's parts. Never negative, and never less for a larger load."""

    def target(self, load: Load) -> float:
        """One forward of the target: a decode step, or a verify of `load.tokens` nodes."""
        ...

    def draft(self, drafter: str, load: Load) -> float:
        """One forward of what `drafter` drafts with; 0 for a drafter that runs no model. Raises `OptionError` if unknown."""
        ...

    def overhead(self, rows: int) -> float:
        """What a round of `rows` rows costs besides forwards."""
        ...
