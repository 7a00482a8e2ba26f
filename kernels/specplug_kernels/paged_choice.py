"""Which backend serves paged tree attention: names, what speaks for each, and what keeps it from serving."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from specplug_kernels.flashinfer_failure import failed_before
from specplug_kernels.flashinfer_paths import why_not_flashinfer
from specplug_kernels.paged_tiles import tile_sizes, why_not
from specplug_kernels.paging import PagedShape, ScoreRule

PAGED_KERNELS = ("auto", "torch", "triton", "flashinfer", "flashinfer-merge", "flashinfer-mask", "flashinfer-bitmap")
"""What ``kernel=`` accepts. ``"flashinfer"``: its best path for the shape."""

_FLASHINFER_ORDER = (
    (128, ("flashinfer-merge", "flashinfer-bitmap", "flashinfer-mask")),
    (None, ("flashinfer-merge", "flashinfer-mask", "flashinfer-bitmap")),
)
"""FlashInfer's paths, best first, up to so many packed rows. A GUESS until ``bench`` has measured them on a GPU: the merge
reads the committed tokens without a mask by a stock kernel, a bitmap needs a kernel that is built at first use, a mask over
every column halves the speed (FlashInfer, issue 724)."""


@dataclass(frozen=True, slots=True)
class PagedCall:
    """One forward: its sizes, and of each row's n nodes the q that ask."""

    shape: PagedShape
    num_queries: int
    num_nodes: int

    @property
    def packed_rows(self) -> int:
        return self.shape.groups * self.num_queries


def choose(kernel: str, call: PagedCall) -> tuple[str, str]:
    """A backend's name and the reason."""
    if kernel not in PAGED_KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(PAGED_KERNELS)}")
    if kernel == "auto":
        return first_able((*_flashinfer_order(call), "triton", "torch"), call)
    obstacles = []
    for name in _flashinfer_order(call) if kernel == "flashinfer" else (kernel,):
        obstacle = _obstacle(name, call, by_name=True)
        if obstacle is None:
            return name, "asked for by name"
        obstacles.append(obstacle)
    phrases = "; ".join(dict.fromkeys(obstacles))
    raise ValueError(f"kernel={kernel!r} cannot be used: {phrases}; kernel='torch' or 'auto' can")


def first_able(names: Sequence[str], call: PagedCall) -> tuple[str, str]:
    """The first that can serve, what speaks for it, and what kept those before it; torch can always."""
    obstacles: dict[str, None] = {}
    for name in names:
        obstacle = _obstacle(name, call, by_name=False)
        if obstacle is None:
            break
        obstacles[obstacle] = None
    return name, "; ".join([*_merit(name, call), *obstacles])


def _merit(name: str, call: PagedCall) -> list[str]:
    """What speaks for a backend, as phrases."""
    rows = call.packed_rows
    if name == "torch":
        return []
    if name == "triton":
        tile = tile_sizes(rows, call.shape.head_dim, call.shape.dtype.itemsize)[0]
        return [f"{rows} packed rows (queries times query heads a KV head), the cache read {-(-rows // tile)} times"]
    return [f"the fastest for {rows} packed rows, by a guess that no measurement has confirmed"]


def _flashinfer_order(call: PagedCall) -> tuple[str, ...]:
    return next(names for most, names in _FLASHINFER_ORDER if most is None or call.packed_rows <= most)


def _obstacle(name: str, call: PagedCall, *, by_name: bool) -> str | None:
    """Why a backend cannot serve, as a phrase; None if it can. Only by name Triton's interpreter serves a CPU, and a FlashInfer
    that has failed is tried again."""
    if name == "torch":
        return None
    if name == "triton":
        return _no_triton(call, by_name=by_name)
    obstacle = why_not_flashinfer(call.shape, call.num_nodes, flashinfer_path(name), num_queries=call.num_queries)
    return obstacle if obstacle is not None or by_name else failed_before(call.shape)


def _no_triton(call: PagedCall, *, by_name: bool) -> str | None:
    device = call.shape.device.type
    if device not in ("cuda", "cpu"):
        return f"the Triton kernel was written for CUDA devices, not {device}"
    if device == "cpu" and not by_name:
        return "Triton compiles for GPUs, and the query is on a CPU"
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed (pip install 'specplug[triton]' brings it)"
    from specplug_kernels.paged_tree_attention_triton import interpreted  # noqa: PLC0415  (optional)

    if device == "cpu" and not interpreted():
        return "Triton compiles for GPUs, and the query is on a CPU (TRITON_INTERPRET=1, set before triton is imported, interprets)"
    return why_not(call.shape.dtype, call.shape.head_dim)


def flashinfer_path(name: str) -> str:
    """What :func:`~specplug_kernels.paged_tree_attention_flashinfer.plan_flashinfer` calls a backend's path."""
    return name.removeprefix("flashinfer-")


def beyond_flashinfer(rule: ScoreRule) -> str | None:
    """What keeps FlashInfer's paths from serving a layer, as a phrase; None if nothing does."""
    return None if rule.sinks is None else "FlashInfer's paths take no sinks"
