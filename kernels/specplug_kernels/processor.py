"""What the processor can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def is_avx512(vendor: str) -> bool:
    """Whether this is one of `vendor`'s ("GenuineIntel", "AuthenticAMD") with AVX-512 and without AMX."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or multiplies_blocks():
        return False
    try:
        return vendor in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


@cache
def multiplies_blocks() -> bool:
    """Whether this CPU multiplies blocks of sixteen rows in bf16 at a time (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has products in ``dtype``, bf16 or fp16, as oneDNN sees it."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
