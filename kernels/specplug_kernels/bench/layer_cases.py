"""Layers of a verify's few rows: a square linear layer as wide as a model's attention heads together, and a norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.shapes import Shape
from specplug_kernels.bench.timing import Call
from specplug_kernels.bench.work import linear_work, norm_work
from specplug_kernels.linear_dispatch import explain_linear, skinny_linear, why_no_linear_library
from specplug_kernels.native.norm_library import norm_library
from specplug_kernels.norm_dispatch import norm_numbers, rms_norm, serves_norms
from specplug_kernels.reference import rms_norm_reference

EPSILON = 1e-6


def linear_case(shape: Shape, device: torch.device) -> Case:
    """``[B n, D]`` times a weight ``[D, D]``."""
    rows, width = shape.batch * shape.nodes, shape.width
    x, weight = _operands(shape, device, rows, width), _operands(shape, device, width, width)
    calls: dict[str, Call] = {"torch": lambda: functional.linear(x, weight)}
    absent = _native(
        device, lambda: why_no_linear_library(shape.dtype), calls, lambda: skinny_linear(x, weight, kernel="native")
    )
    chosen = explain_linear(rows, width, width, dtype=shape.dtype).partition(":")[0] if not absent else None
    work = linear_work(rows, width, width, shape.dtype.itemsize)
    return Case("linear", _label(shape), work, calls, absent, chosen, reading=weight.sum)


def norm_case(shape: Shape, device: torch.device) -> Case:
    """The root-mean-square norm of ``[B n, D]``."""
    rows, width = shape.batch * shape.nodes, shape.width
    x, weight = _operands(shape, device, rows, width), _operands(shape, device, width)
    calls: dict[str, Call] = {"torch": lambda: rms_norm_reference(x, weight, EPSILON)}
    absent = _native(
        device, lambda: norm_library.why_none(shape.dtype), calls, lambda: rms_norm(x, weight, EPSILON, kernel="native")
    )
    serves = not absent and serves_norms(shape.dtype) and x.numel() <= norm_numbers(shape.dtype)
    chosen = None if absent else "native" if serves else "torch"
    return Case("norm", _label(shape), norm_work(rows, width, shape.dtype.itemsize), calls, absent, chosen)


def _native(
    device: torch.device, why_not: Callable[[], str | None], calls: dict[str, Call], call: Call
) -> Mapping[str, str]:
    """Add ``call`` to ``calls``, or say why it cannot be."""
    reason = why_not() if device.type == "cpu" else f"it computes on a CPU, not on {device.type}"
    if reason is not None:
        return {"native": reason}
    calls["native"] = call
    return {}


def _operands(shape: Shape, device: torch.device, *size: int) -> Tensor:
    return torch.randn(size, device=device).to(shape.dtype)


def _label(shape: Shape) -> str:
    return f"rows{shape.batch * shape.nodes} D{shape.width} {shape.short_dtype}"
