"""Matrix products of a few rows, as a verify of a few nodes needs them: the public function, and the choice of a backend by shape.

torch takes two to ten times as long for two to sixteen rows as for one: what it calls packs the weights first. The compiled kernel
(``native/linear.c``) reads every weight once, as it lies, for all rows.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from specplug_kernels.measured_rows import LINEAR_ROWS
from specplug_kernels.native.library import DTYPES
from specplug_kernels.native.linear_library import LinearLibrary, linear_library
from specplug_kernels.processor import Processor, multiplies, processor

LINEAR_KERNELS = ("auto", "native", "torch")
"""What ``kernel=`` accepts here."""
LEAST_WEIGHTS = 4096
"""Below, either takes the time of the call itself."""
_PLAIN = (Parameter, Tensor)  # a subclass (a quantised weight, a distributed one) computes in its own way


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, kernel: str = "auto") -> Tensor:
    """``x @ weight.T + bias`` for a few rows.

    Args:
        x: ``[..., K]``, any strides.
        weight: ``[N, K]``, as ``nn.Linear`` keeps it.
        bias: ``[N]``.
        kernel: ``"auto"`` chooses by shape, see :func:`explain_linear`; ``"native"`` and ``"torch"`` do what they say.

    Returns:
        ``[..., N]`` in the dtype of ``x``. Sums are in fp32 and rounded once (``"torch"``: as torch does). No argument is modified.

    Raises:
        ValueError: an unknown kernel, or ``"native"`` where it cannot serve, and why.
    """
    if kernel not in LINEAR_KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(LINEAR_KERNELS)}")
    if kernel == "native":
        obstacle = why_not_linear(x, weight, bias) or why_no_linear_library(x.dtype)
        if obstacle is not None:
            raise ValueError(f"kernel 'native' does not serve: {obstacle}")
        return _run(x, weight, bias, x.numel() // weight.shape[1], *weight.shape)
    ours = None if kernel == "torch" or torch.is_autocast_enabled("cpu") else try_linear(x, weight, bias)
    return functional.linear(x, weight, bias) if ours is None else ours


def try_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The compiled product where it serves and is the faster one, else ``None``. Not to be called under autocast.

    Asked in every layer of every forward. All that is known of ``weight`` is looked up here and now: it may have been
    changed or replaced since the last call. It says what :func:`why_not_linear` and :func:`explain_linear` say, in one function:
    behind a layer's weights, which drive all else out of the processor's caches, a dozen small ones take as long as the product.
    """
    dtype = weight.dtype
    if not (
        x.dtype is dtype
        and type(x) is Tensor
        and type(weight) in _PLAIN
        and x.is_cpu
        and weight.is_cpu
        and x.layout is torch.strided
        and weight.layout is torch.strided
        and weight.ndim == 2
        and weight.is_contiguous()
        and (bias is None or _why_not_bias(bias, weight) is None)
        and not (torch.is_grad_enabled() and _wants_gradients(x, weight, bias))
    ):
        return None
    outputs, inputs = weight.shape
    if not x.ndim or x.shape[-1] != inputs or inputs * outputs < LEAST_WEIGHTS:
        return None
    rows, loaded = x.numel() // inputs, linear_library.found
    if loaded is None:
        loaded = linear_library()
    if isinstance(loaded, str):
        return None
    if rows not in _faster_rows(loaded, dtype, processor(), multiplies(dtype), torch.get_num_threads()):
        return None
    return loaded(x, weight, bias, rows, outputs, inputs)


@lru_cache(maxsize=64)
def _faster_rows(loaded: LinearLibrary, dtype: torch.dtype, kind: Processor, multiplied: bool, threads: int) -> range:
    """Rows for which the compiled kernel is the faster one, with so many threads, on a processor of `kind` that multiplies in ``dtype``."""
    if dtype not in loaded.dtypes or _why_slow(loaded, dtype, kind, multiplied, threads) is not None:
        return range(0)
    return LINEAR_ROWS[kind].get(dtype, range(0))


def explain_linear(rows: int, inputs: int, outputs: int, *, dtype: torch.dtype = torch.float32) -> str:
    """Which backend ``"auto"`` picks on a CPU for ``rows`` rows, and why. Like the first call itself, it may compile.

    For tensors as they usually are: contiguous, and no gradients.
    """
    obstacle = _why_not_dtype(dtype) or _better_torch(rows, outputs, inputs, dtype)
    if obstacle is not None:
        return f"torch: {obstacle}"
    return f"native: {rows} rows of {inputs} by {outputs}: weights are read once, as they lie"


def serves_weight(weight: Tensor) -> bool:
    """Whether there are numbers of rows for which :func:`try_linear` may compute with ``weight``. May compile, like the first call."""
    return (
        _why_not_weight(weight) is None
        and _better_torch(skinny_rows(weight.dtype).start, *weight.shape, weight.dtype) is None
    )


def skinny_rows(dtype: torch.dtype) -> range:
    """Rows for which :func:`try_linear` may compute from ``dtype`` on this processor; empty if it never does."""
    return LINEAR_ROWS[processor()].get(dtype, range(0))


def why_not_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the compiled kernel does not serve these tensors; ``None`` if it does. Nothing is built for the answer."""
    obstacle = _why_not_weight(weight) or _why_not_rows(x, weight) or _why_not_bias(bias, weight)
    if obstacle is None and torch.is_grad_enabled() and _wants_gradients(x, weight, bias):
        return "gradients are wanted"
    return obstacle


def why_no_linear_library(dtype: torch.dtype) -> str | None:
    """Why there is no library for ``dtype`` here; ``None`` if there is. Builds it when first asked."""
    return linear_library.why_none(dtype)


def _why_not_dtype(dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"it computes in fp32 from fp32, bf16 and fp16, not from {dtype}"


def _why_not_weight(weight: Tensor) -> str | None:
    if weight.dtype not in DTYPES:
        return _why_not_dtype(weight.dtype)
    if type(weight) not in _PLAIN:
        return f"the weight is no plain tensor but a {type(weight).__name__}"
    if not weight.is_cpu or weight.layout is not torch.strided:
        return f"it computes on a CPU from dense weights, not on {weight.device.type} from {weight.layout}"
    if weight.ndim != 2 or not weight.is_contiguous() or not weight.numel():
        return f"the weight, of shape {tuple(weight.shape)}, is no contiguous matrix"
    return None


def _why_not_rows(x: Tensor, weight: Tensor) -> str | None:
    if type(x) is not Tensor or not x.is_cpu or x.layout is not torch.strided:
        return f"the rows are no plain dense tensor on a CPU but a {type(x).__name__} on {x.device}"
    if x.dtype is not weight.dtype:
        return f"the rows are in {x.dtype} and the weight is in {weight.dtype}"
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        return f"rows of shape {tuple(x.shape)} do not fit a weight of shape {tuple(weight.shape)}"
    return None


def _why_not_bias(bias: Tensor | None, weight: Tensor) -> str | None:
    if bias is None:
        return None
    if type(bias) not in _PLAIN or not bias.is_cpu or bias.dtype is not weight.dtype or not bias.is_contiguous():
        return f"the bias is no plain contiguous tensor in {weight.dtype} on a CPU"
    if bias.shape != weight.shape[:1]:
        return f"a bias of shape {tuple(bias.shape)} does not fit a weight of shape {tuple(weight.shape)}"
    return None


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _better_torch(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> str | None:
    """Why torch is better than the compiled kernel; ``None`` if it is not."""
    loaded = linear_library()
    if isinstance(loaded, str) or dtype not in loaded.dtypes:
        return why_no_linear_library(dtype)
    slow = _why_slow(loaded, dtype, processor(), multiplies(dtype), torch.get_num_threads())
    return slow or _why_not_sizes(rows, outputs, inputs, dtype)


def _why_not_sizes(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> str | None:
    served = skinny_rows(dtype)
    if rows not in served:
        return f"{rows} rows, and {served.start} to {served.stop - 1} are faster compiled"
    if inputs * outputs < LEAST_WEIGHTS:
        return f"{inputs * outputs} weights, fewer than {LEAST_WEIGHTS}"
    return None


def _why_slow(loaded: LinearLibrary, dtype: torch.dtype, kind: Processor, multiplied: bool, threads: int) -> str | None:
    if not loaded.vectors:
        return "it is built without AVX2, with which it was measured"
    if not loaded.threads and threads > 1:
        return f"it is built without torch's OpenMP and would use one of {threads} threads"
    if dtype is not torch.float32 and multiplied and kind is Processor.USUAL:
        return f"the processor multiplies in {dtype}, and on such a one it was not measured"
    return None


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, outputs: int, inputs: int) -> Tensor:
    loaded = linear_library()
    assert isinstance(loaded, LinearLibrary), loaded
    return loaded(x, weight, bias, rows, outputs, inputs)
