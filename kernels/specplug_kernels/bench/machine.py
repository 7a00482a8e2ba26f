"""What this machine can do: how fast it moves bytes and multiplies matrices, measured; and the floor that follows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specplug_kernels.bench.work import Work

REPEATS = 9
"""Of each rate; the fastest counts, since a floor is what the machine can do undisturbed."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A device with its measured rates. ``bandwidth`` bytes a second, ``arithmetic`` operations a second."""

    device: torch.device
    name: str
    bandwidth: float
    bandwidth_how: str
    arithmetic: float
    arithmetic_how: str
    cache_bytes: int

    def floor(self, work: Work) -> tuple[float, str]:
        """The least time in seconds, and what sets it: ``"bytes"`` or ``"operations"``."""
        moving, computing = work.bytes / self.bandwidth, work.operations / self.arithmetic
        return (moving, "bytes") if moving >= computing else (computing, "operations")


def measured_machine(
    device: torch.device, dtype: torch.dtype, megabytes: int = 256, side: int | None = None
) -> Machine:
    """Measure bandwidth (``megabytes`` of float32) and the matmul rate (``side`` cubed) of a device.

    A CPU's bandwidth is that of reading (a sum): attention hardly writes. A GPU's is that of a copy, reading and writing
    counted. The arithmetic rate is the better of ``dtype`` and float32: a backend may widen.
    """
    cuda = device.type == "cuda"
    side = side or (8192 if cuda else 512)
    numbers = torch.ones(megabytes * 2**18, device=device)
    if cuda:
        target = torch.empty_like(numbers)
        bandwidth = 2 * numbers.nbytes / fastest(lambda: target.copy_(numbers), device)
    else:
        bandwidth = numbers.nbytes / fastest(numbers.sum, device)
    rates = {}
    for kind in dict.fromkeys((dtype, torch.float32)):
        left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        rates[kind] = 2 * side**3 / fastest(lambda left=left, right=right: left @ right, device)
    best = max(rates, key=rates.__getitem__)
    return Machine(
        device,
        torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        bandwidth,
        f"{'copy' if cuda else 'sum'} of {megabytes} MiB",
        rates[best],
        f"matmul of {side} cubed in {str(best)[6:]}",
        cache_bytes(device),
    )


def fastest(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest of some repeats."""
    times = []
    for _ in range(REPEATS + 1):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory: a GPU's L2, a CPU's largest (64 MiB where it does not tell)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [_kibibytes(file) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=64 * 1024) * 1024


def _kibibytes(file: Path) -> int:
    found = re.fullmatch(r"(\d+)([KMG])", file.read_text().strip())
    return 0 if found is None else int(found[1]) * {"K": 1, "M": 1024, "G": 1024**2}[found[2]]
