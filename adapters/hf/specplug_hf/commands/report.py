"""The tables that `specplug bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specplug_hf.commands.cases import Result
from specplug_hf.commands.equality import Difference
from specplug_hf.commands.goals import OVERHEAD_GOAL, Outcome
from specplug_hf.commands.overhead import Overhead
from specplug_hf.commands.summary import Spread, paired
from specplug_hf.commands.table import table


def header(environment: dict[str, Any]) -> str:
    """Model, machine and versions."""
    e = environment
    draft = f", draft {e['draft_parameters']:,}" if e["draft_parameters"] else ""
    return (
        f"{e['model']}: target {e['target_parameters']:,} parameters{draft}; {e['dtype']} on {e['device']}\n"
        f"{e['processor'] or e['machine']}, {e['cores']} cores, {e['threads']} threads; specplug {e['specplug']}, "
        f"torch {e['torch']}, transformers {e['transformers']}"
    )


def case(result: Result) -> str:
    """One line a contender. Tokens a second over all rows; ratios are paired; brackets are quartiles."""
    rows = []
    for line in result.rows():
        bad = [d for d in result.differences if d.contender.split(" ")[0] == line.contender]
        rows.append(
            [
                line.contender,
                line.option,
                line.rate.text(0),
                _ratio(paired(result.samples, line.contender, "plain")),
                _ratio(paired(result.samples, line.contender, "none")),
                f"{line.prefill_seconds.median:.3f}",
                f"{line.accepted_length:.2f}" if line.accepted_length is not None else "",
                _identical(bad),
            ]
        )
    n = len(result.samples) // max(1, len(rows))
    title = f"{result.case.title} (n = {n} each; median [quartiles])"
    names = ["set-up", "option", "tokens/s", "x plain", "x none", "prefill s", "accepted length", "output"]
    return f"{title}\n{table(names, rows, right=(2, 3, 4, 5, 6))}"


def _ratio(spread: Spread | None) -> str:
    return "" if spread is None else spread.text()


def _identical(found: Sequence[Difference]) -> str:
    if any(not d.is_rounding for d in found):
        return "DIFFERENT"
    return "identical" if not found else f"identical up to rounding ({len(found)})"


def overhead(measured: Overhead) -> str:
    """One paragraph."""
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in measured.parts_ms.items())
    return (
        f"A round of {measured.contender} ({measured.option}): {measured.round_ms.text()} ms besides model forwards; "
        f"one target forward {measured.target_ms.text()} ms (over the tree {measured.verify_ms.text()} ms): "
        f"{100 * measured.share.median:.0f} % [{100 * measured.share.low:.0f}-{100 * measured.share.high:.0f} %]\n"
        f"milliseconds a round by the statistics' clocks, forwards included: {parts}"
    )


def goals(outcomes: Sequence[Outcome], overheads: Sequence[Overhead]) -> str:
    """Goal beside measured."""
    rows = [
        [
            o.case,
            o.goal.what,
            o.against,
            f"{o.goal.factor:.2f}x",
            _ratio(o.ratio) or "not measured",
            str(o.ratio.n) if o.ratio else "",
            "yes" if o.reached else "no",
        ]
        for o in outcomes
    ]
    for o in overheads:
        share = f"{100 * o.share.median:.0f} % [{100 * o.share.low:.0f}-{100 * o.share.high:.0f}]"
        reached = "yes" if o.share.median < OVERHEAD_GOAL else "no"
        cost = ["a round's own cost", o.contender, "one target forward", f"< {100 * OVERHEAD_GOAL:.0f} %"]
        rows.append([*cost, share, str(o.share.n), reached])
    return table(["case", "ours", "against", "goal", "measured", "n", "reached"], rows, right=(3, 4, 5))


def equality(calls: int, found: Sequence[Difference]) -> str:
    """What was compared, and every difference."""
    if not found:
        return f"{calls} calls: every output identical to plain generate."
    bad = sum(not d.is_rounding for d in found)
    verdict = f"{bad} rows DIFFERENT" if bad else "no difference beyond rounding"
    return "\n".join([f"{calls} calls: {verdict}, {len(found) - bad} rows with a rounding tie.", *map(str, found)])
