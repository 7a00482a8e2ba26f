"""The chi-square test of samples against an exact law."""

from __future__ import annotations

import torch
from scipy.stats import chi2  # type: ignore[import-untyped]
from torch import Tensor

LEAST = 5.0  # cells that expect fewer samples are put together


def p_value(counts: Tensor, law: Tensor) -> float:
    """How probable counts at least as far from `law` are if it is the true one; both [cells]. 0 for the impossible."""
    expected = law.double() * float(counts.sum())
    seen = counts.double()
    if bool((seen[expected == 0] > 0).any()):
        return 0.0
    big = expected >= LEAST
    seen = torch.cat([seen[big], seen[~big].sum()[None]])
    expected = torch.cat([expected[big], expected[~big].sum()[None]])
    if float(expected[-1]) < LEAST and len(expected) > 1:
        seen[-2] += seen[-1]
        expected[-2] += expected[-1]
        seen, expected = seen[:-1], expected[:-1]
    if len(seen) < 2:
        return 1.0
    return float(chi2.sf(float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1))
