"""Times over the grid, as far as the clock and the memory allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch

from specplug import OptionError
from specplug.cost.fitted import Sample
from specplug.drafters import Drafter
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.room import kv_bytes, too_large
from specplug_hf.calibration.stage import Stage, perform
from specplug_hf.calibration.times import PASSES, ROUNDS, Job, measure, samples
from specplug_hf.commands.batches import PromptBatch, Prompts
from specplug_hf.commands.models import Models, synchronize

SLOWER = 1.5  # how much more a prompt's token may take in a longer prompt, and with the draft reading it
PATIENCE = 0.4  # a cell that needs more than this share of the time left waits until the others are done
LEAST = 16  # new tokens that a row must have room for

Tell = Callable[[str], None]


class Sweep:
    """Measures cells one after another. `left_out`: what was not, and why. `samples`: by cell."""

    def __init__(self, models: Models, prompts: Prompts, cast: Sequence[Drafter], todo: Sequence[Job]) -> None:
        self.models, self.prompts, self.cast, self.todo = models, prompts, cast, todo
        self.samples: dict[Cell, list[Sample]] = {}
        self.left_out: list[str] = []
        self.seconds_a_token: list[float] = []  # what each cell's prompts took
        self.seconds_a_pass: list[float] = []  # over all jobs, by the square root of the cell's tokens
        drafts = [] if models.draft is None else [models.draft]
        self._kv_bytes = sum(kv_bytes(model) for model in (models.target, *drafts))

    def warm_up(self) -> None:
        """A few rounds of everybody, so that nobody's first one is timed."""

        def play(stage: Stage) -> None:
            for job in self.todo:
                stage.round(job.place, job.shape)

        cell = Cell(1, LEAST)
        attempt(
            self.models,
            lambda: self.prompts.batch(cell.context, cell.rows, 0, half=0),
            lambda batch: perform(self.models, batch, self.cast, self.room(cell, 8 * len(self.todo)), play),
        )

    def run(self, cells: Sequence[Cell], clock: Clock, tell: Tell) -> None:
        """Measure `cells` in this order; each may take its share of what is left. The first is measured in any case."""
        waiting = list(cells)
        for share in (PATIENCE, 1.0):
            later = []
            for number, cell in enumerate(waiting):
                reason = self.obstacle(cell, None)
                if reason is None and self.samples and self.needed(cell) > share * clock.left:
                    later.append(cell)
                    continue
                tell(str(cell))
                if reason is None:
                    reason = self._measure(cell, clock, clock.left / (len(waiting) - number))
                if reason is not None:
                    self.left_out.append(f"{cell}: {reason}")
            waiting = later
        for cell in waiting:
            self.left_out.append(
                f"{cell}: takes about {max(1.0, self.needed(cell)):.0f} s, {clock.left:.0f} s were left"
            )

    def needed(self, cell: Cell) -> float:
        """Seconds that `cell` will take at least: its prompts, and every job once."""
        reading = SLOWER * median(self.seconds_a_token or [0.0]) * cell.tokens
        return reading + median(self.seconds_a_pass or [0.0]) * math.sqrt(cell.tokens)

    def obstacle(self, cell: Cell, clock: Clock | None) -> str | None:
        """Why prompts of `cell` cannot be run, in what is left on `clock` if it is given; None if they can."""
        if cell.context + LEAST > self.models.max_positions:
            return f"the model has {self.models.max_positions} positions"
        large = too_large(cell.tokens, self._kv_bytes, self.models.target.device)
        if large is not None or clock is None:
            return large
        needed = SLOWER * median(self.seconds_a_token or [0.0]) * cell.tokens
        if clock.over or needed > clock.left:
            return f"its prompts take about {max(1.0, needed):.0f} s, {clock.left:.0f} s were left"
        return None

    def room(self, cell: Cell, wanted: int) -> int:
        """New tokens a row: as many as wanted, if there are positions for them."""
        return min(wanted, self.models.max_positions - cell.context)

    def _measure(self, cell: Cell, clock: Clock, share: float) -> str | None:
        """Add the cell's samples; what is missing of it, if anything is."""
        passes = 0

        def play(stage: Stage) -> None:
            nonlocal passes
            start = clock.spent
            found, passes = measure(stage, self.todo, clock, share)
            self.seconds_a_token.append(stage.seconds_start / cell.tokens)
            if passes:
                self.seconds_a_pass.append(
                    (clock.spent - start - stage.seconds_start) / passes / math.sqrt(cell.tokens)
                )
            listed = samples(found, cell.rows, [arm.label for arm in stage.arms])
            if listed:
                self.samples[cell] = listed

        deepest = 1 + max(job.shape.depth for job in self.todo)
        wanted = PASSES * len(self.todo) * (1 + ROUNDS) * deepest
        reason = attempt(
            self.models,
            lambda: self.prompts.batch(cell.context, cell.rows, 0, half=0),
            lambda batch: perform(self.models, batch, self.cast, self.room(cell, wanted), play),
        )
        if reason is not None or passes:
            return reason
        return "the time was over before every tree was measured" if clock.over else "too few positions for every tree"


def attempt(models: Models, batch: Callable[[], PromptBatch], run: Callable[[PromptBatch], None]) -> str | None:
    """Make the batch and run it; why that was not possible, if it was not."""
    try:
        synchronize(models.target)
        run(batch())
    except OptionError as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
    else:
        return None
    if models.target.device.type == "cuda":
        torch.cuda.empty_cache()
    return "out of memory"
