"""`specplug plan --compare magicdec`: published speed-ups beside the roofline's, pure and with fitted overheads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from specplug.commands.tables import aligned
from specplug.cost.magicdec import ACCEPTANCE, BUDGET, LATENCIES, LLAMA_2, LLAMA_3, Published, fit, latency, predict
from specplug.cost.roofline import Overheads

HEADER = ("model", "context", "batch", "acceptance", "gamma", "published", "predicted", "error", "best gamma", "x")


def report() -> tuple[list[str], dict[str, Any]]:
    """The printed lines, and the same as data."""
    pure, fitted = Overheads(), fit()
    lines = [f"MagicDec, self-speculation on 8 A100, budget {BUDGET}", "", "1. Pure roofline"]
    lines += [*_table((*LLAMA_2, *LLAMA_3), pure), "", _fit_line(fitted)]
    lines += ["", "2a. Fitted overheads, the rows they were fitted on", *_table(LLAMA_2, fitted)]
    lines += ["", "2b. Fitted overheads, rows they have not seen", *_table(LLAMA_3, fitted)]
    lines += ["", "3. A step of plain decoding, Llama-2-7B at 8000 tokens, ms; not used for the fit"]
    lines += _latencies(pure, fitted)
    return lines, _data(pure, fitted)


def _fit_line(fitted: Overheads) -> str:
    return (
        f"Fitted on the Llama-2 rows: {fitted.layer * 1e6:.0f} us a layer and forward, "
        f"{fitted.token * 1e6:.2f} us a layer and token of the batch"
    )


def _table(rows: Sequence[Published], overheads: Overheads) -> list[str]:
    cells = []
    for row in rows:
        found = predict(row, overheads)
        cells.append(
            [
                *(row.model, str(row.context), str(row.rows), f"{ACCEPTANCE[row.context]:.2f}", str(row.gamma)),
                *(f"{row.speedup:.2f}", f"{found.speedup:.2f}", f"{found.error:+.0%}"),
                *(str(found.best_gamma), f"{found.best_speedup:.2f}"),
            ]
        )
    return [*aligned(HEADER, cells, left=1), f"mean absolute error {_mean_error(rows, overheads):.0%}"]


def _mean_error(rows: Sequence[Published], overheads: Overheads) -> float:
    return sum(abs(predict(row, overheads).error) for row in rows) / len(rows)


def _latencies(pure: Overheads, fitted: Overheads) -> list[str]:
    header = ("batch", "published", "pure", "error", "fitted", "error")
    cells = []
    for rows, seconds in LATENCIES.items():
        found = [latency(rows, overheads) for overheads in (pure, fitted)]
        pairs = [text for value in found for text in (f"{value * 1e3:.2f}", f"{value / seconds - 1:+.0%}")]
        cells.append([str(rows), f"{seconds * 1e3:.2f}", *pairs])
    return aligned(header, cells)


def _data(pure: Overheads, fitted: Overheads) -> dict[str, Any]:
    def predicted(overheads: Overheads) -> list[dict[str, Any]]:
        found = [predict(row, overheads) for row in (*LLAMA_2, *LLAMA_3)]
        return [dataclasses.asdict(one) | {"error": one.error} for one in found]

    return {
        "overheads": dataclasses.asdict(fitted),
        "fitted_on": [dataclasses.asdict(row) for row in LLAMA_2],
        "pure": predicted(pure),
        "fitted": predicted(fitted),
        "latencies": [
            {"batch": rows, "published": seconds, "pure": latency(rows, pure), "fitted": latency(rows, fitted)}
            for rows, seconds in LATENCIES.items()
        ],
    }
