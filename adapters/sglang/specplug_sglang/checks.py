"""What cannot be served losslessly is refused when the server starts, with the reason."""

from __future__ import annotations

from typing import Any

import torch

from specplug import UnsupportedError
from specplug.kv_policies import KVPolicy


def check_pool(pool: Any) -> None:
    """Raise `UnsupportedError` for a KV pool other than plain keys and values of every token, one slot in all layers."""
    if type(pool).__name__ != "MHATokenToKVPool":
        raise UnsupportedError(
            f"SPECPLUG cannot serve this model: its KV cache is a {type(pool).__name__}, and only MHATokenToKVPool is known "
            "to be read and moved rightly. Sliding-window models may work with --disable-hybrid-swa-memory."
        )


def check_layout(policy: KVPolicy) -> None:
    """Raise `UnsupportedError` for a selection that differs between layers or heads: a page table is one for all."""
    selection = policy.select(torch.zeros(1, dtype=torch.int64))
    if selection is not None and selection.anchors.shape[1:3] != (1, 1):
        raise UnsupportedError(
            f"KV policy {type(policy).__name__} selects by layer or head, which the SGLang adapter cannot read; use "
            "'streaming' or 'full'."
        )


def check_window(sliding_window: int | None, device: str) -> None:
    """Raise `UnsupportedError` for sliding-window layers on a GPU, whose kernels want a second slot list for them."""
    if sliding_window is not None and device != "cpu":
        raise UnsupportedError(
            f"SPECPLUG cannot serve a model with a sliding window (of {sliding_window}) on {device} yet; on a CPU it can."
        )
