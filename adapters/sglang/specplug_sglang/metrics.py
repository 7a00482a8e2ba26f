"""Prometheus counters beside SGLang's own speculative ones, when the server runs with --enable-metrics."""

from __future__ import annotations

from typing import Any

from specplug import Round


class RoundMetrics:
    """Counts by drafter: rounds, proposed and accepted tokens; and rounds whose draft failed."""

    def __init__(self, enabled: bool) -> None:
        self._rounds: Any = None
        if not enabled:
            return
        from prometheus_client import Counter  # noqa: PLC0415  (SGLang sets its multi-process folder before)

        self._rounds = Counter("specplug:rounds", "Rounds run, by what drafted them.", ["arm"])
        self._proposed = Counter("specplug:proposed_tokens", "Draft tokens proposed.", ["arm"])
        self._padded = Counter("specplug:padded_tokens", "Tree nodes verified only to fill a batch's width.", ["arm"])
        self._accepted = Counter("specplug:accepted_tokens", "Draft tokens accepted.", ["arm"])
        self._failed = Counter(
            "specplug:failed_drafts", "Rounds that went on without speculation since drafting failed."
        )

    def observe(self, finished: Round) -> None:
        """Count a finished round whose results are on the CPU."""
        if self._rounds is None:
            return
        arm, trees = finished.plan.arm.label, finished.trees
        nodes = trees.num_rows * (trees.num_nodes - 1)
        proposed = nodes if trees.valid is None else int(trees.valid[:, 1:].sum())
        self._rounds.labels(arm).inc()
        self._proposed.labels(arm).inc(proposed)
        self._padded.labels(arm).inc(nodes - proposed)
        self._accepted.labels(arm).inc(sum(finished.verdict.accepted))

    def failed(self) -> None:
        """A draft has failed."""
        if self._rounds is not None:
            self._failed.inc()
