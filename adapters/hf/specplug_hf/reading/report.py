"""The survey of policies as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from specplug.commands.plot import short
from specplug_hf.commands.table import table
from specplug_hf.reading.found import BASE, Found
from specplug_hf.reading.share import Difference, Share
from specplug_hf.reading.survey import Plan

TITLES = {
    "context": "acceptance of a draft token by context",
    "generated": "by tokens generated (bins of {bin_tokens}) behind {long_context}",
    "whole": "over all that was generated there",
    "needle": "of tokens that a needle changes, by context",
    "recalled": "of a needle's tokens that the target says right only with the needle, by context",
}


def tables(found: Found, plan: Plan) -> str:
    """By context, by tokens generated, of needles: shares, then differences; and who was left out."""
    lines = [
        f"{plan.prompts} texts; in brackets the 95 % interval, by how texts differ (a row of few texts has none)",
        "",
    ]
    for part, shares in found.parts.items():
        title = TITLES[part].format(bin_tokens=plan.bin_tokens, long_context=short(plan.long_context))
        heading = "from {}" if part == "generated" else "{}"
        lines += [_table(title, "policy", shares, heading, _share), ""]
        gaps = found.differences(shares)
        if gaps:
            lines += [_table("differences, on the same texts", "policies", gaps, heading, _difference), ""]
    if found.target:
        lines += [_table("what the target makes of needles", "tokens", found.target, "{}", _share), ""]
    lines += [f"{name} was left out: {why}" for name, why in found.left_out.items()]
    return "\n".join(lines)


def _table(
    title: str, first: str, rows: Mapping[str, Mapping[int, Any]], heading: str, cell: Callable[[Any], str]
) -> str:
    columns = sorted({at for by in rows.values() for at in by})
    header = [first, *(heading.format(short(at)) for at in columns)]
    lines = [[name, *(cell(by.get(at)) for at in columns)] for name, by in rows.items()]
    trials = _trials(rows.get(BASE, {}), columns)
    return f"{title}\n{table(header, lines + trials, right=range(1, len(header)))}"


def _trials(shares: Mapping[int, Any], columns: list[int]) -> list[list[str]]:
    """A last row: how many trials stand behind a share, the same for all policies."""
    counts = [share.trials if isinstance(share := shares.get(at), Share) else None for at in columns]
    return [] if None in counts or not counts else [["(trials)", *map(str, counts)]]


def _share(share: Share | None) -> str:
    if share is None or not share.trials:
        return ""
    interval = share.interval
    return f"{share.value:.2f}" + (f" [{interval[0]:.2f} {interval[1]:.2f}]" if interval else "")


def _difference(gap: Difference | None) -> str:
    if gap is None:
        return ""
    return f"{gap.mean:+.2f}" + (f" [{gap.interval[0]:+.2f} {gap.interval[1]:+.2f}]" if gap.interval else "")
