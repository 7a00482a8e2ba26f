"""``python -m specplug_kernels.bench``: what every operation costs, beside what the memory or the arithmetic alone would cost.

A case is an operation at a shape. Its bytes and operations are counted by a formula (``work``); over the bandwidth and the
matmul rate that the command measures first (``machine``) they give a floor; every backend is timed (``timing``), and what
cannot run here is listed with its reason (``report``).
"""

from specplug_kernels.bench.command import main, parse

__all__ = ["main", "parse"]
