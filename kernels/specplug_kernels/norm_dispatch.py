"""Root-mean-square norms of a few rows: the public function, and where the compiled kernel serves.

Written out in torch, as models have it, a norm is seven operations, whose calls take longer than their arithmetic where there are few
rows: a sixth of a decode step of a small model on a CPU. The compiled kernel (``native/rms_norm.c``) is one call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from specplug_kernels.measured_rows import NORM_NUMBERS
from specplug_kernels.native.library import DTYPES
from specplug_kernels.native.norm_library import NormLibrary, norm_library
from specplug_kernels.processor import processor
from specplug_kernels.reference import rms_norm_reference

NORM_KERNELS = ("auto", "native", "torch")
"""What ``kernel=`` accepts here."""
_PLAIN = (Parameter, Tensor)  # a subclass computes in its own way


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, kernel: str = "auto") -> Tensor:
    """``weight * (x / sqrt(mean(x * x) + epsilon))`` over the last dimension.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        epsilon: added to the mean.
        kernel: ``"auto"`` is compiled where that serves; ``"native"`` and ``"torch"`` do what they say.

    Returns:
        ``[..., D]`` in the dtype of ``x``; what was divided is rounded to it before it is multiplied. No argument is modified.

    Raises:
        ValueError: an unknown kernel, or ``"native"`` where it cannot serve, and why.
    """
    if kernel not in NORM_KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(NORM_KERNELS)}")
    if kernel == "native":
        obstacle = why_not_norm(x, weight) or norm_library.why_none(x.dtype)
        if obstacle is not None:
            raise ValueError(f"kernel 'native' does not serve: {obstacle}")
        return _run(x, weight, epsilon)
    ours = None if kernel == "torch" or torch.is_autocast_enabled("cpu") else try_rms_norm(x, weight, epsilon)
    return rms_norm_reference(x, weight, epsilon) if ours is None else ours


def try_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """The compiled norm where it serves and is the faster one, else ``None``. Not to be called under autocast.

    Asked in every layer of every forward, and so all in one function: see ``try_linear``.
    """
    dtype, loaded = x.dtype, norm_library.found
    if loaded is None:
        loaded = norm_library()
    if isinstance(loaded, str) or not (
        weight.dtype is dtype
        and dtype in loaded.dtypes
        and loaded.vectors
        and type(x) is Tensor
        and type(weight) in _PLAIN
        and x.is_cpu
        and weight.is_cpu
        and x.layout is weight.layout is torch.strided
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.ndim
        and x.shape[-1:] == weight.shape
        and 0 < x.numel() <= NORM_NUMBERS[processor()][dtype]
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    return loaded(x, weight, epsilon)


def serves_norms(dtype: torch.dtype) -> bool:
    """Whether :func:`try_rms_norm` may compute in ``dtype`` here. May compile, like the first call."""
    if dtype not in DTYPES:
        return False  # nothing is built for that
    loaded = norm_library()
    return not isinstance(loaded, str) and dtype in loaded.dtypes and loaded.vectors


def norm_numbers(dtype: torch.dtype) -> int:
    """Of how many numbers :func:`try_rms_norm` may compute the norms at once: with more, torch's threads share what ours has alone."""
    return NORM_NUMBERS[processor()].get(dtype, 0)


def why_not_norm(x: Tensor, weight: Tensor) -> str | None:
    """Why the compiled kernel does not serve these tensors; ``None`` if it does. Nothing is built for the answer."""
    if x.dtype not in DTYPES or x.dtype is not weight.dtype:
        return f"it computes in fp32 from fp32, bf16 and fp16 alone, not from rows in {x.dtype} and a weight in {weight.dtype}"
    if type(x) is not Tensor or type(weight) not in _PLAIN:
        return f"it computes with plain tensors, not with a {type(x).__name__} and a {type(weight).__name__}"
    if not (x.is_cpu and weight.is_cpu and x.is_contiguous() and weight.is_contiguous()):
        return f"it computes on a CPU from contiguous tensors, not on {x.device.type} from strides {x.stride()}"
    if weight.ndim != 1 or not x.ndim or x.shape[-1] != weight.shape[0] or not x.numel():
        return f"rows of shape {tuple(x.shape)} do not fit a weight of shape {tuple(weight.shape)}"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return "gradients are wanted"
    return None


def _run(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    loaded = norm_library()
    assert isinstance(loaded, NormLibrary), loaded
    return loaded(x, weight, epsilon)
