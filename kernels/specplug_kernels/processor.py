"""What the processor can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


@cache
def is_intel_avx512() -> bool:
    """Whether this is one of Intel's with AVX-512 and without AMX: torch's own products (MKL) are at their best there."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.cpu._is_amx_tile_supported():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has products in ``dtype``, bf16 or fp16, as oneDNN sees it."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
