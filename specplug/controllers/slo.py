"""`slo`: meets a stated time per token with the least work, so that the rest of the machine is left for others.

SpecServe (arXiv 2503.05096): speculate as far as a latency objective asks for. Plain decoding where that is fast enough, else
the smallest tree that is; where nothing is, the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specplug.controllers.goodput import Goodput
from specplug.controllers.option import Option
from specplug.controllers.trees import Candidate
from specplug.errors import OptionError


@dataclass
class Slo(Goodput):
    """`ms`: milliseconds a token and row that must not be exceeded. What is learnt, and how, is goodput's."""

    ms: float = 50.0

    def __post_init__(self) -> None:
        if not self.ms > 0:
            raise OptionError(f"slo: ms={self.ms} must be a positive number of milliseconds a token.")

    def _tree(self, priced: Sequence[tuple[float, Candidate]]) -> tuple[float, Candidate]:
        enough = [(seconds, tree) for seconds, tree in priced if self._meets(tree.tokens / seconds)]
        return min(enough, key=lambda p: (p[1].size, p[0])) if enough else super()._tree(priced)

    def _worth(self, option: Option) -> float:
        """What meets the objective is worth the more the less it computes; anything else, less than all that does."""
        if not self._meets(option.rate):
            return option.rate * 1e-9
        return 1 / option.shape.num_nodes

    def _meets(self, rate: float) -> bool:
        return rate * self.ms >= 1000
