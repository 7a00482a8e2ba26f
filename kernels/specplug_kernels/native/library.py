"""The compiled library: loaded once a process, tried against the definition, and called."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specplug_kernels.native.opening import DTYPES, TRIAL_ERRORS, Known, UnusableError, numbers, opened
from specplug_kernels.reference import tree_attention_reference

CALL = struct.Struct("@5P 8q 3q 3q 3q 3q 2q d")
"""``struct call`` of ``tree_attention.c``."""

TRIED = ((2, 7), (1, 13), (1, 11), (2, 9), (1, 25))
"""Groups and nodes whose packed rows go in tiles of 8, 4, 2 and 1, and of 16 where there are such: whole ones and padded ones."""

logger = logging.getLogger(__name__)


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
    return _known()


def load(path: Path) -> Library:
    """Load a library and try it.

    Raises:
        UnusableError: it does not load, is another version's, or computes something else than the definition.
    """
    found = opened(path, "specplug_tree_attention", CALL.size)
    loaded = Library(found.function, found.dtypes, found.threads, found.vectors)
    for dtype in sorted(loaded.dtypes, key=DTYPES.__getitem__):
        _try(loaded, dtype)
    return loaded


def _try(loaded: Library, dtype: torch.dtype) -> None:
    """Compare with the definition: tiles of every size, padded ones too, blocks that threads share, a hidden half, a blind query."""
    columns, tail = 700, 40
    with torch.no_grad():
        for groups, nodes in TRIED:
            query = numbers(2, 2 * groups, nodes, 24).to(dtype)
            key, value = numbers(2, 2, columns, 24).to(dtype), numbers(2, 2, columns, 40).to(dtype)
            for prefix in (columns - tail, 0):
                hidden = numbers(2, 1, nodes, columns - prefix) > 0
                hidden[0, 0, 1] = True
                bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
                given = query, key, value
                ours = loaded(*given, prefix, bias, 0.5).float()
                wanted = tree_attention_reference(*given, prefix=prefix, bias=bias, scale=0.5).float()
                if not torch.allclose(ours, wanted, rtol=0.0, atol=TRIAL_ERRORS[dtype]):
                    worst = (ours - wanted).abs().max().item()
                    raise UnusableError(f"in {dtype} it is off by {worst:.2g} from the definition")


def _bias_strides(bias: Tensor | None) -> tuple[int, int, int]:
    """Of batch, node and column; a bias of one row serves the whole batch."""
    if bias is None:
        return 0, 0, 0
    batch, _, node, column = bias.stride()
    return (batch if bias.shape[0] > 1 else 0), node, column


def _nothing_known() -> Known[Library]:
    return Known("tree_attention", load, logger)


_known = _nothing_known()
