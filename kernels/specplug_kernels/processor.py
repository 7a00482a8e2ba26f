"""What the processor can do."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has products in ``dtype``, bf16 or fp16, as oneDNN sees it."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
