"""What all compiled libraries are: loaded once a process, asked what they can do, tried against their definition; or a reason why not."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from specplug_kernels.native.build import BuildError, build

SWITCH = "SPECPLUG_NATIVE"
"""The environment variable that turns compiled libraries off with ``0``."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As ``lanes.h`` numbers them."""
TRIAL_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""What a trial may be off by, of outputs up to about one: the rounding of the outputs, twice over."""

L = TypeVar("L", bound="Library")

logger = logging.getLogger(__name__)


class UnusableError(RuntimeError):
    """Why a library that was built is not used, in one line."""


class Library(ABC):
    """The library of ``source``.c, whose function ``specplug_<source>`` takes the bytes of its ``struct call``, as ``call`` packs them.

    ``dtypes``: those served. ``threads``: whether it runs on torch's threads, or else on the caller's alone. ``vectors``: whether it
    was built with the vector instructions that it is fast with.
    """

    source: ClassVar[str]
    call: ClassVar[struct.Struct]

    function: Callable[[bytes], int]
    dtypes: frozenset[torch.dtype]
    threads: bool
    vectors: bool

    def __init__(self, path: Path) -> None:
        """Load the library and try it.

        Raises:
            UnusableError: it does not load, is another version's, or computes something else than the definition.
        """
        try:
            functions = ctypes.CDLL(str(path))
            self.function = functions[f"specplug_{self.source}"]
            size, float16 = functions.specplug_call_bytes(), functions.specplug_has_float16()
            self.threads, self.vectors = bool(functions.specplug_has_threads()), bool(functions.specplug_has_vectors())
        except (OSError, AttributeError) as error:
            raise UnusableError(f"it does not load: {error}") from error
        if size != self.call.size:
            raise UnusableError(f"its arguments take {size} bytes, not {self.call.size}")
        self.function.argtypes = [ctypes.c_char_p]  # type: ignore[attr-defined]
        self.dtypes = frozenset(dtype for dtype in DTYPES if dtype != torch.float16 or float16)
        self._try()

    @abstractmethod
    def trials(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """What it computes in ``dtype``, and what the definition says in fp32, for the kinds of sizes that it treats apart."""

    def _try(self) -> None:
        with torch.no_grad():
            for dtype in sorted(self.dtypes, key=DTYPES.__getitem__):
                for ours, wanted in self.trials(dtype):
                    if not torch.allclose(ours.float(), wanted, rtol=0.0, atol=TRIAL_ERRORS[dtype]):
                        worst = (ours.float() - wanted).abs().max().item()
                        raise UnusableError(f"in {dtype} it is off by {worst:.2g} from the definition")


class Known(Generic[L]):
    """What this process found when it first looked for a library of ``kind``."""

    def __init__(self, kind: type[L]) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self.found: L | str | None = None  # None: nobody has asked yet

    def __call__(self) -> L | str:
        """The library, built and loaded by the first call; or why there is none."""
        if self.found is None:
            with self._lock:
                if self.found is None:
                    self.found = self._look()
        return self.found

    def why_none(self, dtype: torch.dtype) -> str | None:
        """Why there is no library for ``dtype`` here; ``None`` if there is. Builds it when first asked."""
        found = self()
        if isinstance(found, str):
            return f"it is not available: {found}"
        return None if dtype in found.dtypes else f"the processor does not convert {dtype}"

    def _look(self) -> L | str:
        if os.environ.get(SWITCH) == "0":
            return f"{SWITCH}=0 turns it off"
        try:
            return self._kind(build(self._kind.source))
        except (BuildError, UnusableError) as error:
            what = self._kind.source.replace("_", " ")
            logger.info("compiled %s is not available, torch serves: %s", what, error)
            return str(error)


def numbers(*shape: int) -> Tensor:
    """The same numbers between -2 and 2 every time, without touching torch's generators."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul_(12.9898).sin_().mul_(2.0).float().view(shape)
