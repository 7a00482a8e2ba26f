"""The compiled library: loaded once a process, tried against the definition, and called."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specplug_kernels.native.build import BuildError, build
from specplug_kernels.reference import tree_attention_reference

SWITCH = "SPECPLUG_NATIVE"
"""The environment variable that turns the library off with ``0``."""
CALL = struct.Struct("@5P 8q 3q 3q 3q 3q 2q d")
"""``struct call`` of ``tree_attention.c``."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
TRIAL_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""What a trial may be off by, of outputs up to about one: the rounding of the outputs, twice over."""

logger = logging.getLogger(__name__)


class UnusableError(RuntimeError):
    """Why a library that was built is not used, in one line."""


@dataclass(frozen=True, slots=True)
class Library:
    """``dtypes``: those served. ``threads``: whether it runs on torch's threads, or else on the caller's alone.
    ``vectors``: whether it was built with the vector instructions that it is fast with.
    """

    attend: Callable[[bytes], int]
    dtypes: frozenset[torch.dtype]
    threads: bool
    vectors: bool

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float
    ) -> Tensor:
        """As ``dispatch.tree_attention``, of tensors that this library serves: nothing is looked at again here."""
        if query.stride(3) != 1:
            query = query.contiguous()
        batch, heads, nodes, dim = query.shape
        kv_heads, columns, value_dim = key.shape[1], key.shape[2], value.shape[3]
        out = query.new_empty(batch, nodes, heads, value_dim)
        status = self.attend(
            CALL.pack(
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                batch,
                kv_heads,
                heads // kv_heads,
                nodes,
                columns,
                prefix,
                dim,
                value_dim,
                *query.stride()[:3],
                *key.stride()[:3],
                *value.stride()[:3],
                *_bias_strides(bias),
                DTYPES[query.dtype],
                torch.get_num_threads() if self.threads else 1,
                scale,
            )
        )
        if status:
            raise MemoryError(f"no memory for attention of {heads * nodes} queries")
        return out


def library() -> Library | str:
    """The library, built and loaded by the first call of the process; or why there is none."""
    if _known.found is None:
        with _known.lock:
            if _known.found is None:
                _known.found = _found()
    return _known.found


def load(path: Path) -> Library:
    """Load a library and try it.

    Raises:
        UnusableError: it does not load, is another version's, or computes something else than the definition.
    """
    try:
        functions = ctypes.CDLL(str(path))
        attend = functions.specplug_tree_attention
        size, float16 = functions.specplug_call_bytes(), functions.specplug_has_float16()
        threads, vectors = functions.specplug_has_threads(), functions.specplug_has_vectors()
    except (OSError, AttributeError) as error:
        raise UnusableError(f"it does not load: {error}") from error
    if size != CALL.size:
        raise UnusableError(f"its arguments take {size} bytes, not {CALL.size}")
    attend.argtypes = [ctypes.c_char_p]
    served = [dtype for dtype in DTYPES if dtype != torch.float16 or float16]
    loaded = Library(attend, frozenset(served), bool(threads), bool(vectors))
    for dtype in served:
        _try(loaded, dtype)
    return loaded


def _found() -> Library | str:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 turns it off"
    try:
        return load(build())
    except (BuildError, UnusableError) as error:
        logger.info("compiled attention is not available, torch serves: %s", error)
        return str(error)


def _try(loaded: Library, dtype: torch.dtype) -> None:
    """Compare with the definition: three packed rows and padding, blocks that threads share, a hidden half, a blind query."""
    groups, nodes, columns, tail = 2, 3, 700, 40
    with torch.no_grad():
        query = _numbers(2, 2 * groups, nodes, 24).to(dtype)
        key, value = _numbers(2, 2, columns, 24).to(dtype), _numbers(2, 2, columns, 40).to(dtype)
        for prefix in (columns - tail, 0):
            hidden = _numbers(2, 1, nodes, columns - prefix) > 0
            hidden[0, 0, 1] = True
            bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            given = query, key, value
            ours = loaded(*given, prefix, bias, 0.5).float()
            wanted = tree_attention_reference(*given, prefix=prefix, bias=bias, scale=0.5).float()
            if not torch.allclose(ours, wanted, rtol=0.0, atol=TRIAL_ERRORS[dtype]):
                worst = (ours - wanted).abs().max().item()
                raise UnusableError(f"in {dtype} it is off by {worst:.2g} from the definition")


def _numbers(*shape: int) -> Tensor:
    """The same numbers between -2 and 2 every time, without touching torch's generators."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul_(12.9898).sin_().mul_(2.0).float().view(shape)


def _bias_strides(bias: Tensor | None) -> tuple[int, int, int]:
    """Of batch, node and column; a bias of one row serves the whole batch."""
    if bias is None:
        return 0, 0, 0
    batch, _, node, column = bias.stride()
    return (batch if bias.shape[0] > 1 else 0), node, column


class _Known:
    """What this process found."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: Library | str | None = None


_known = _Known()
