"""A case: an operation at a shape, ready to be called by every backend that can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specplug_kernels.bench.timing import Call
from specplug_kernels.bench.work import Work


@dataclass(frozen=True, slots=True)
class Case:
    """``label`` says the shape as far as it matters to the operation.

    ``work``: ``None`` for a case that was not built. ``calls``: by backend; those in ``by_name_only`` are too slow or large to be
    timed unasked. ``absent``: backends that cannot run here, with the reason. ``chosen``: what ``"auto"`` picks,
    ``None`` where there is no choice. ``reading``: reads once what the operation has to read, for comparison; ``None``
    where that says nothing.
    """

    operation: str
    label: str
    work: Work | None
    calls: Mapping[str, Call]
    absent: Mapping[str, str] = field(default_factory=dict)
    chosen: str | None = None
    reading: Call | None = None
    by_name_only: frozenset[str] = frozenset()
