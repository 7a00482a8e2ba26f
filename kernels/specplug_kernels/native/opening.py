"""What all compiled libraries have in common: opened and asked what they can do, once a process, or a reason why there is none."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from specplug_kernels.native.build import BuildError, build

SWITCH = "SPECPLUG_NATIVE"
"""The environment variable that turns compiled libraries off with ``0``."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As ``lanes.h`` numbers them."""
TRIAL_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""What a trial may be off by, of outputs up to about one: the rounding of the outputs, twice over."""

L = TypeVar("L")


class UnusableError(RuntimeError):
    """Why a library that was built is not used, in one line."""


@dataclass(frozen=True, slots=True)
class Opened:
    """``function`` takes the bytes of a ``struct call``. ``dtypes``: those served. ``threads``: whether it runs on torch's
    threads, or else on the caller's alone. ``vectors``: whether it was built with the vector instructions that it is fast with.
    """

    function: Callable[[bytes], int]
    dtypes: frozenset[torch.dtype]
    threads: bool
    vectors: bool


def opened(path: Path, function: str, call_bytes: int) -> Opened:
    """Load the library of ``function``, whose ``struct call`` takes ``call_bytes``.

    Raises:
        UnusableError: it does not load, or is another version's.
    """
    try:
        functions = ctypes.CDLL(str(path))
        called = functions[function]
        size, float16 = functions.specplug_call_bytes(), functions.specplug_has_float16()
        threads, vectors = functions.specplug_has_threads(), functions.specplug_has_vectors()
    except (OSError, AttributeError) as error:
        raise UnusableError(f"it does not load: {error}") from error
    if size != call_bytes:
        raise UnusableError(f"its arguments take {size} bytes, not {call_bytes}")
    called.argtypes = [ctypes.c_char_p]
    served = frozenset(dtype for dtype in DTYPES if dtype != torch.float16 or float16)
    return Opened(called, served, bool(threads), bool(vectors))


class Known(Generic[L]):
    """What this process found when it first looked for a library."""

    def __init__(self, name: str, load: Callable[[Path], L], logger: logging.Logger) -> None:
        self._name, self._load, self._logger = name, load, logger
        self._lock = threading.Lock()
        self._found: L | str | None = None

    def __call__(self) -> L | str:
        """The library, built and loaded by the first call; or why there is none."""
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = self._look()
        return self._found

    def _look(self) -> L | str:
        if os.environ.get(SWITCH) == "0":
            return f"{SWITCH}=0 turns it off"
        try:
            return self._load(build(self._name))
        except (BuildError, UnusableError) as error:
            self._logger.info("compiled %s is not available, torch serves: %s", self._name.replace("_", " "), error)
            return str(error)


class Served(Protocol):
    """A library, as far as it says what it serves."""

    @property
    def dtypes(self) -> frozenset[torch.dtype]: ...


def why_none(found: Served | str, dtype: torch.dtype) -> str | None:
    """Why there is no library for ``dtype``, given what `Known` found; ``None`` if there is."""
    if isinstance(found, str):
        return f"it is not available: {found}"
    return None if dtype in found.dtypes else f"the processor does not convert {dtype}"


def numbers(*shape: int) -> Tensor:
    """The same numbers between -2 and 2 every time, without touching torch's generators."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul_(12.9898).sin_().mul_(2.0).float().view(shape)
