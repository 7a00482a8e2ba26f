"""What the processor can do."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path

import torch


class Processor(StrEnum):  # asked for in every layer: text has a hash of its own, an Enum computes one
    """What the compiled kernels were measured on, as far as it differs in what is faster there."""

    USUAL = "with AVX2, and any other"
    AMX = "Intel's, which multiplies blocks of sixteen rows in bf16 at a time"
    INTEL = "Intel's, with AVX-512 and its products of bf16, but not of blocks"
    OLDER_INTEL = "Intel's, with AVX-512 and without products of bf16"
    AMD = "AMD's, with AVX-512"


@cache
def processor() -> Processor:
    """Which of them this one is."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return Processor.USUAL
    if torch.cpu._is_amx_tile_supported():
        return Processor.AMX
    try:
        says = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Processor.USUAL
    if "AuthenticAMD" in says:
        return Processor.AMD
    if "GenuineIntel" not in says:
        return Processor.USUAL
    return Processor.INTEL if "avx512_bf16" in says else Processor.OLDER_INTEL


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has products of its own in ``dtype``, bf16 or fp16, as oneDNN sees it; false for other dtypes."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    supported = None if name is None else getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
