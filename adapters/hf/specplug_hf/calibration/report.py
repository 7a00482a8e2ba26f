"""The tables that `specplug calibrate` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from specplug.cost.fitted import OVERHEAD, TARGET, Sample
from specplug.cost.profile import Profile
from specplug_hf.calibration.grid import Cell
from specplug_hf.commands.table import table

SHOWN = 6  # ranks or depths


def short(key: str) -> str:
    """A drafter's name without its model: `ModelDraft full`."""
    name, _, inside = key.rstrip("]").partition("[")
    return f"{name} {inside.rpartition(', ')[2]}".strip()


def times(measured: Mapping[Cell, Sequence[Sample]]) -> str:
    """Milliseconds: the target by nodes a row, a draft's level, and the rest of a round, by batch and context."""
    everything = [sample for listed in measured.values() for sample in listed]
    nodes = sorted({s.load.tokens // s.load.rows for s in everything if s.part == TARGET})
    drafts = sorted({s.part for s in everything} - {TARGET, OVERHEAD})
    lines = []
    for cell, listed in sorted(measured.items(), key=lambda item: (item[0].rows, item[0].context)):
        target = [[s for s in listed if s.part == TARGET and s.load.tokens // s.load.rows == n] for n in nodes]
        level = [[s for s in listed if s.part == part] for part in drafts]
        own = [s for s in listed if s.part == OVERHEAD]
        lines.append([str(cell.rows), str(cell.context), *map(_milliseconds, [*target, *level, own])])
    names = ["batch", "context", *(f"{n} node{'s' * (n > 1)}" for n in nodes), *map(short, drafts), "overhead"]
    title = "milliseconds: the target by nodes a row; a level of each draft; what a round takes besides"
    return f"{title}\n{table(names, lines, right=range(len(names)))}"


def _milliseconds(listed: Sequence[Sample]) -> str:
    return f"{1e3 * median(s.seconds for s in listed):.2f}" if listed else "-"


def errors(profile: Profile) -> str:
    """How far predictions are off for loads that were left out of the fit."""
    lines = []
    for part, error in profile.errors.items():
        count = sum(sample.part == part for sample in profile.samples)
        lines.append([short(part), str(count), f"{100 * error.median:.1f} %", f"{100 * error.worst:.1f} %"])
    names = ["held-out error of", "samples", "median", "worst"]
    return table(names, lines, right=(1, 2, 3)) if lines else "held-out errors need two loads or more"


def acceptance(profile: Profile, where: Mapping[tuple[str, str], int]) -> str:
    """By rank; by depth for a drafter of chains."""
    lines = []
    for key, laws in profile.acceptance.items():
        for law, seen in laws.items():
            rates = seen.depths or seen.ranks
            shown = [f"{rate:.3f}" for rate in rates[:SHOWN]]
            by = "depth" if seen.depths else "rank"
            about = [short(key), law, str(where.get((key, law), "")), str(seen.trials), f"{seen.proposing:.2f}", by]
            lines.append([*about, *shown, *[""] * (SHOWN - len(shown))])
    names = ["acceptance of", "law", "context", "trials", "proposing", "by", *map(str, range(1, SHOWN + 1))]
    return table(names, lines, right=(2, 3, 4, *range(6, 6 + SHOWN))) if lines else "no acceptance was measured"
