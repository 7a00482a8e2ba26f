"""`kvpress`: scorers of NVIDIA's kvpress package, those that look at keys and values alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from specplug.errors import OptionError, UnsupportedError, unknown_name
from specplug.kv_policies.base import ChoosingPolicy, LayerContext, best_positions, check_budget

PACKAGE = "kvpress"
TRIAL = (1, 2, 512, 8)  # keys that a scorer is tried with: rows, heads, positions (several blocks of any scorer), width


@dataclass(frozen=True, slots=True)
class KVPress(ChoosingPolicy):
    """The last `window` positions, and by layer and KV head the `budget - window` that `press` scores best.

    `press`: the name of a `kvpress.ScorerPress` (github.com/NVIDIA/kvpress: "KnormPress", "KeyDiffPress", "LagKVPress",
    "CURPress", "RandomPress"), made with its defaults, or such an object with options of your own (any object with that
    class's `score`). A scorer is tried at once: one that looks at hidden states, at the attention module or at attention
    weights is refused, since a KV cache holds none of them ('snapkv' does what SnapKVPress does). Scores are taken of each row by
    itself, of all its committed positions, with the `compression_ratio` that leaves `budget` of them.

    kvpress patches transformers' attention functions when it is imported; what we import it for needs none of it, so they
    are put back. The framework's random generator is left as it was, also by RandomPress. Version 0.5.5 was tried.
    """

    press: str | Any = "KnormPress"
    budget: int = 512
    window: int = 64
    refresh: int = 16

    def __post_init__(self) -> None:
        check_budget("kvpress", self.budget, self.window, self.refresh)
        _try(_scorer(self.press), self._name, self.budget)

    @property
    def key(self) -> str:
        return f"kvpress {self._name} {self.budget}"

    @property
    def _name(self) -> str:
        return self.press if isinstance(self.press, str) else type(self.press).__name__

    def open(self) -> _Scores:
        return _Scores(copy.copy(_scorer(self.press)), self)


class _Scores:
    """It remembers nothing: every choice scores the whole cache."""

    def __init__(self, scorer: Any, policy: KVPress) -> None:
        self._scorer, self._policy = scorer, policy

    def choose(self, context: LayerContext) -> Tensor:
        """As `Chooser.choose`; waits for the device, since a scorer takes rows of one length."""
        lowest = torch.finfo(torch.float32).min
        scores = torch.full(context.keys.shape[:3], lowest, device=context.keys.device)
        for row, length in enumerate(context.lengths.tolist()):
            if length:
                keys, values = (states[row : row + 1, :, :length] for states in (context.keys, context.values))
                scores[row, :, :length] = _score(self._scorer, keys, values, self._policy.budget)[0]
        return best_positions(scores.nan_to_num(nan=lowest), context.choices, self._policy.anchors)

    def keep_rows(self, rows: Sequence[int]) -> None:
        pass


class _WithheldError(Exception):
    """A scorer looked at something that it was not given."""


class _Withheld:
    """Stands for an argument of `score` that a KV cache cannot supply; whoever looks at it is told so."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise _WithheldError(self._what)

    def __getitem__(self, key: object) -> NoReturn:
        raise _WithheldError(self._what)


def _score(scorer: Any, keys: Tensor, values: Tensor, budget: int) -> Tensor:
    """Scores [1, Hkv, T] of `keys` and `values` [1, Hkv, T, D]; attention weights are None, as with any fused kernel.

    Sets the scorer's `compression_ratio`, the part that is to go.
    """
    scorer.compression_ratio = max(0.0, 1 - budget / keys.shape[2])
    with torch.random.fork_rng([keys.device] if keys.is_cuda else []):
        scores: Tensor = scorer.score(
            _Withheld("the attention module"),
            _Withheld("hidden states"),
            keys,
            values,
            None,
            _Withheld("the arguments of the forward pass"),
        )
    return scores


def _try(scorer: Any, name: str, budget: int) -> None:
    """Raise `UnsupportedError` unless `scorer` scores keys and values, given nothing else."""
    if not callable(getattr(scorer, "score", None)):
        raise OptionError(
            f"kvpress: press={scorer!r} is neither the name of a ScorerPress nor an object with its `score`."
        )
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, *TRIAL, generator=generator)
    remedy = "; use a scorer of keys and values ('KnormPress', 'KeyDiffPress', 'LagKVPress'), or 'snapkv', 'retrieval'."
    try:
        scores = _score(copy.copy(scorer), keys, values, budget)
    except _WithheldError as error:
        raise UnsupportedError(f"kvpress: {name} looks at {error}, which a KV cache does not hold{remedy}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".: ")
        raise UnsupportedError(f"kvpress: {name} cannot score keys and values alone ({reason}){remedy}") from error
    if not isinstance(scores, Tensor) or scores.shape != keys.shape[:3]:
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UnsupportedError(f"kvpress: {name} gave {shape} for keys {list(keys.shape)}, not a score a key{remedy}")


def _scorer(press: Any) -> Any:
    """The object that `press` names, or itself."""
    if not isinstance(press, str):
        return press
    package = _package()
    presses = {name: value for name, value in vars(package).items() if isinstance(value, type)}
    scorers = [name for name, value in presses.items() if issubclass(value, package.ScorerPress)]
    if press not in scorers:
        raise unknown_name("scorer of kvpress", press, scorers)
    try:
        return presses[press](compression_ratio=0.0)
    except (TypeError, ValueError, AssertionError) as error:
        raise OptionError(
            f"kvpress: {press} cannot be made from its name ({error}); pass the object: press={press}(...)."
        ) from error


def _package() -> ModuleType:
    """The package, imported without what it does to transformers' attention (if nobody has imported it before)."""
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    try:
        functions = import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
        before = dict(functions)
        package = import_module(PACKAGE)
    except ImportError as error:
        raise UnsupportedError(
            f"kv_policy 'kvpress' needs NVIDIA's package ({error}): pip install --no-deps kvpress (it would have pip replace "
            "transformers by an older one), and what it imports: pip install accelerate cachetools datasets fire pandas requests"
        ) from error
    for name, function in before.items():
        functions[name] = function
    return package
