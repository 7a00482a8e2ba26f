"""What a copy in the device's memory reaches: bytes read and written a second."""

from __future__ import annotations

from time import perf_counter

import torch

COPIES = 10  # in a row, so that waiting for the device counts little
TURNS = 3  # the fastest counts


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes/s of copying `size` bytes (1 GiB; on a CPU 64 MiB), each byte counted twice: it is read and written."""
    size = size or (2**30 if device.type == "cuda" else 2**26)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(1 + TURNS):
        wait(device)
        start = perf_counter()
        for _ in range(COPIES):
            target.copy_(source)
        wait(device)
        seconds.append(perf_counter() - start)
    return 2 * size * COPIES / min(seconds[1:])


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
