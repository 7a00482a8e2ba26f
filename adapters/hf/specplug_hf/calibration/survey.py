"""Acceptance of every drafter, greedy and sampled, on the prompts."""

from __future__ import annotations

from collections.abc import Sequence

from specplug.cost.profile import GREEDY, SAMPLED, Seen
from specplug.drafters import Drafter
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.report import short
from specplug_hf.calibration.stage import NOBODY, Stage, perform
from specplug_hf.calibration.sweep import Sweep, Tell, attempt
from specplug_hf.calibration.tally import Tally, shape_for

TRIALS = 512  # rows and rounds of one drafter and law: a share of a half is known within 2 %
FEWEST = 16  # with less than that nothing is said
ROUNDS = 48  # on one batch
ROWS, TOKENS = 4, 8192  # of a batch, at most
READING = 0.5  # share of a task's time that a batch's prompts may take


class Survey:
    """Counts what is accepted. `seen`: by drafter and law; `left_out`: what was not looked at, and why."""

    def __init__(self, sweep: Sweep, contexts: Sequence[int]) -> None:
        self.sweep, self.models = sweep, sweep.models
        self.contexts = sorted(contexts)
        self.seen: dict[str, dict[str, Seen]] = {}
        self.where: dict[tuple[str, str], int] = {}  # by drafter and law, the prompts' length
        self.left_out: list[str] = []

    def run(self, clock: Clock, tell: Tell) -> None:
        """Every drafter under both laws, each with its share of what is left."""
        tasks = [(drafter, law) for drafter in self.sweep.cast for law in (GREEDY, SAMPLED)]
        for number, (drafter, law) in enumerate(tasks):
            tell(f"{short(drafter.key)}, {law}")
            reason = self._task(drafter, law, clock.part(1 / (len(tasks) - number)))
            if reason is not None:
                self.left_out.append(f"acceptance of {short(drafter.key)}, {law}: {reason}")

    def _task(self, drafter: Drafter, law: str, clock: Clock) -> str | None:
        cells = self.cells(drafter)
        if not cells:
            return f"it reads all of every context up to {self.contexts[-1]}; give a longer one"
        allowed = clock.part(READING)
        cell = next((cell for cell in cells if self.sweep.obstacle(cell, allowed) is None), None)
        if cell is None:
            return self.sweep.obstacle(cells[-1], allowed)
        tally, number, key, reason = Tally(), 0, "", None
        while reason is None and tally.trials < TRIALS:
            key, reason = self._batch(drafter, law, cell, number, tally, clock)
            number += 1
            reason = reason or self.sweep.obstacle(cell, clock)
        if tally.trials < FEWEST:
            return reason or f"only {tally.trials} rows and rounds were seen"
        shape = shape_for(drafter, self._vocabulary)
        seen = tally.by_rank(shape.size) if drafter.drafts_with_model else tally.by_depth()
        self.seen.setdefault(key, {})[law] = seen
        self.where[key, law] = cell.context
        return None

    def cells(self, drafter: Drafter) -> list[Cell]:
        """Where to look, the best first: several rows rather than one, the middle context; for a drafter that leaves something
        out of what it reads, the longest context of which it does."""
        policy = getattr(drafter, "kv_policy", None)
        budget = None if policy is None else policy.budget
        middle = (len(self.contexts) - 1) // 2
        if budget is None:
            contexts = self.contexts[middle::-1]
        else:
            contexts = [context for context in reversed(self.contexts) if context > budget]
        cells = [(Cell(max(1, min(ROWS, TOKENS // context)), context), Cell(1, context)) for context in contexts]
        return [cell for pair in cells for cell in pair]

    @property
    def _vocabulary(self) -> int:
        return int(self.models.target.config.get_text_config(decoder=True).vocab_size)

    def _batch(
        self, drafter: Drafter, law: str, cell: Cell, number: int, tally: Tally, clock: Clock
    ) -> tuple[str, str | None]:
        """Count on one batch of prompts: the drafter's key, and what went wrong."""
        shape, key = shape_for(drafter, self._vocabulary), ""

        def play(stage: Stage) -> None:
            nonlocal key
            for turn in range(ROUNDS):
                finished = None if clock.over and turn else stage.round(NOBODY + 1, shape)
                if finished is None:
                    break
                tally.add(finished)
            key = stage.arms[NOBODY + 1].label

        new_tokens = self.sweep.room(cell, ROUNDS * (1 + shape.depth))
        reason = attempt(
            self.models,
            lambda: self.sweep.prompts.batch(cell.context, cell.rows, number, half=0),
            lambda batch: perform(self.models, batch, [drafter], new_tokens, play, sampling=law == SAMPLED),
        )
        return key, reason
