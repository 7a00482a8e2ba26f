"""Modules that one thread's forwards pass by, while every other thread's run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specplug_hf.stand_ins import Answer, StandIns

Parts = dict[int, int]  # id(module) -> values of the tuple that it returns; 0: a tensor alone


class Bypass(StandIns):
    """A context in which this thread's calls of `modules` return zeros like what they are given, and run nothing.

    `parts` says what they return. See `StandIns`; what is passed by is not computed in another way, either.
    """

    rank = 1

    def __init__(self, modules: Sequence[nn.Module], parts: Parts) -> None:
        super().__init__(modules, [_nothing(parts[id(module)]) for module in modules])


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a layer or sublayer."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _nothing(parts: int) -> Answer:
    def answer(_: Any, *args: Any, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(given(args, kwargs))
        return (nothing, *[None] * (parts - 1)) if parts else nothing

    return answer
