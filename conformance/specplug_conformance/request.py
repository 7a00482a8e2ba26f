"""What a world is asked to generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# Scores to add to the target's, given the tokens before: a processor that reads its prefix.
Rule = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `seeds` None: greedy; else sampled, one seed a row.

    `padding`: columns of padding in front of each row, where the framework pads. `joins`: the round in which each row
    enters (default: all at once). `leaves`: row -> round before which it is aborted.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int = 12
    seeds: tuple[int, ...] | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    rule: Rule | None = None
    end_tokens: tuple[int, ...] = ()
    padding: int = 0
    joins: tuple[int, ...] | None = None
    leaves: tuple[tuple[int, int], ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.prompts)

    @property
    def reads_prefix(self) -> bool:
        """Whether a processor of this request depends on the tokens before."""
        return self.rule is not None or self.repetition_penalty != 1.0

    @property
    def options(self) -> dict[str, object]:
        """Whatever differs from a plain greedy call, for people."""
        default = Request(self.prompts)
        names = ("seeds", "temperature", "top_k", "top_p", "repetition_penalty", "rule", "end_tokens", "padding")
        named = {name: getattr(self, name) for name in (*names, "joins", "leaves")}
        shown = {name: value for name, value in named.items() if value != getattr(default, name)}
        return {name: getattr(value, "__name__", value) for name, value in shown.items()}
