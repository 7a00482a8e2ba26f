"""The report as one self-contained page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape

from specplug_conformance.check import all_checks
from specplug_conformance.engine import FALSE_ALARM, Result, Status
from specplug_conformance.report import Report, failure_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1c2024; }
table { border-collapse: collapse; } th, td { padding: .3rem .55rem; border: 1px solid #d8dce0; }
th { background: #f3f5f7; text-align: left; font-weight: 600; } thead th { writing-mode: vertical-rl; }
thead th.name { writing-mode: horizontal-tb; } td { text-align: center; }
.passed { background: #e4f5e7; } .failed { background: #f9d2d0; font-weight: 700; } .skipped { color: #889; }
.expected { background: #fdf1cf; } pre { background: #f3f5f7; padding: .8rem; overflow-x: auto; }
.verdict { font-size: 1.2rem; font-weight: 700; } .scroll { overflow-x: auto; }
"""
MARKS = {Status.PASSED: "ok", Status.FAILED: "FAIL", Status.SKIPPED: "-", Status.EXPECTED: "xfail"}
CLASSES = {Status.PASSED: "passed", Status.FAILED: "failed", Status.SKIPPED: "skipped", Status.EXPECTED: "expected"}


def page(report: Report) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>specplug conformance</title><style>{STYLE}</style></head><body>",
        "<h1>specplug conformance</h1>",
        f"<p class='verdict {'passed' if report.ok else 'failed'}'>{escape(report.summary())}</p>",
        f"<p>{escape(report.began)}; {escape(versions)}; seed {report.seed}.</p>",
        f"<div class='scroll'>{_matrix(report)}</div>",
        _failures(report),
        _checks(report),
        f"<p>Chi-square tests fail below p = {report.alarm:.1e} each.",
        f"A run in which nothing is wrong fails with a probability of at most {FALSE_ALARM:g}.</p></body></html>",
    ]
    return "\n".join(parts)


def _matrix(report: Report) -> str:
    columns, cells = report.columns(), report.cells()
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [f"<table><thead><tr><th class='name'>plugin</th><th class='name'>adapter</th>{head}</tr></thead><tbody>"]
    for kind, case, adapter in report.rows():
        row = "".join(_cell(cells.get((kind, case, adapter, name))) for name in columns)
        lines.append(f"<tr><th>{escape(kind)} <b>{escape(case)}</b></th><th>{escape(adapter)}</th>{row}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _cell(result: Result | None) -> str:
    if result is None:
        return "<td></td>"
    title = escape("; ".join(filter(None, [result.message, *result.notes])) or f"{result.seconds:.2f} s", quote=True)
    return f"<td class='{CLASSES[result.status]}' title='{title}'>{MARKS[result.status]}<br><small>{result.seconds:.1f} s</small></td>"


def _failures(report: Report) -> str:
    if not report.failed:
        return ""
    return "<h2>Failures</h2>" + "".join(f"<pre>{escape(failure_text(result))}</pre>" for result in report.failed)


def _checks(report: Report) -> str:
    present = set(report.columns())
    items = "".join(
        f"<li><b>{escape(check.name)}</b>: {escape(check.proves)}</li>"
        for check in all_checks()
        if check.name in present
    )
    return f"<h2>What each check proves</h2><ul>{items}</ul>"
