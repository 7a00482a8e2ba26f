"""The survey of policies as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from specplug import OptionError
from specplug.commands.plot import need_matplotlib, short
from specplug_hf.commands.table import table
from specplug_hf.reading.survey import Found, Share

Shares = Mapping[str, Mapping[int, Share]]


def tables(found: Found, bin_tokens: int) -> str:
    """Three tables: by context, by tokens generated, of needles; and who was left out."""
    parts = [
        ("acceptance of the first draft token by context", found.context, "{}"),
        (f"by tokens generated (bins of {bin_tokens})", found.generated, "from {}"),
        ("of a needle's tokens, a passage of another text, by context", found.needle, "{}"),
    ]
    lines = []
    for title, shares, heading in parts:
        columns = sorted({at for by in shares.values() for at in by})
        rows = [[name, *(_cell(by.get(at)) for at in columns)] for name, by in shares.items()]
        header = ["policy", *(heading.format(short(at)) for at in columns)]
        lines += [title, table(header, rows, right=range(1, len(header))), ""]
    lines += [f"{name} was left out: {why}" for name, why in found.left_out.items()]
    return "\n".join(lines)


def _cell(share: Share | None) -> str:
    return "" if share is None or not share.rounds else f"{share.value:.2f} ({share.rounds})"


def draw(found: Found, title: str, path: Path) -> None:
    """Acceptance over context, over what was generated, and of needles, one line a policy."""
    figure = need_matplotlib().Figure(figsize=(12, 4), dpi=90, layout="constrained")
    figure.suptitle(title)
    panels: list[tuple[str, Shares, bool]] = [
        ("context (tokens)", found.context, True),
        ("tokens generated", found.generated, False),
        ("context, needle's tokens", found.needle, True),
    ]
    for place, (label, shares, doubling) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, place)
        for name, by in shares.items():
            at = sorted(by)
            axes.plot(at, [by[x].value for x in at], marker="o", markersize=3, label=name)
        if doubling:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: short(int(value)))
        axes.set(xlabel=label, ylabel="acceptance of the first draft token" if place == 1 else "")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the picture {path}: {error}") from error
