"""One cell after another: every part measured that fits, and what the parts make of speculation."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from specplug import SpecplugError, TreeShape
from specplug.cost import Roofline
from specplug.cost.choice import MAX_GAMMA
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.rounds import FEWEST, Rounds
from specplug_hf.calibration.sweep import attempt
from specplug_hf.commands.models import Models
from specplug_hf.commands.summary import Spread
from specplug_hf.roofline.limits import Limits, Measured
from specplug_hf.roofline.memory import obstacle, release
from specplug_hf.roofline.plain import plain_steps
from specplug_hf.roofline.prompts import borrowed, owned
from specplug_hf.roofline.result import NONE, STEP, TRANSFORMERS, CellResult, Part, SpeedUp, Whole, verify_name
from specplug_hf.roofline.rounds import Cast, timed

CHECKED = 0.8  # the acceptance whose best chain is run whole
TRIED = Cell(1, 256)  # everything once on it before anything is timed
Keep = Callable[[CellResult], None]


@dataclass(frozen=True, slots=True)
class Questions:
    """What every cell is asked. `nodes`: of the verifies, each above 1; `budget`: KV entries that the draft reads."""

    nodes: tuple[int, ...]
    acceptances: tuple[float, ...]
    budget: int


class Survey:
    """Measures cells. `figures`: the roofline of the device's figures; `copied`: of a measured copy's bandwidth."""

    def __init__(
        self, models: Models, cast: Cast, questions: Questions, figures: Roofline, copied: Roofline, clock: Clock
    ) -> None:
        self.models, self.cast, self.questions = models, cast, questions
        self.figures, self.copied, self.clock = figures, copied, clock
        self.failed = False  # whether anything did that neither memory nor time explains

    def warm_up(self) -> str | None:
        """Run everything once, untimed: kernels are built and loaded by their first call. Why not, if it was not possible."""
        model, clock = self.models.target, Clock(0.0)  # the fewest rounds and steps

        def everything() -> None:
            plain_steps(model, owned(model, TRIED), clock)
            for shape in self._shapes():
                timed(self.cast, borrowed(model, TRIED), shape, clock, parts=True)

        return obstacle(model, TRIED, growing=True) or self._run(everything)

    def measure(self, cell: Cell, keep: Keep) -> CellResult:
        """All parts of `cell`, our own first; `keep` sees the result after each."""
        start, result = perf_counter(), self._empty(cell)
        rounds: dict[int, Rounds] = {}
        for shape in self._shapes():
            found = self._rounds(result, shape)
            if found is not None:
                rounds[shape.num_nodes] = found
                self._add_parts(result, shape.num_nodes, found)
                keep(result)
        self._none(result)
        keep(result)
        self._plain(result)
        keep(result)
        self._conclude(result, rounds)
        result.seconds = perf_counter() - start
        return result

    def _empty(self, cell: Cell) -> CellResult:
        shape, device = self.figures.target_shape, self.figures.device
        return CellResult(cell, shape.step_bytes / device.bandwidth)

    def _shapes(self) -> list[TreeShape]:
        return [ROOT_ONLY, *(Chain(nodes - 1).build() for nodes in self.questions.nodes)]

    def _limits(self, cell: Cell) -> tuple[Limits, Limits]:
        budget = self.questions.budget
        return Limits(self.figures, cell, budget), Limits(self.copied, cell, budget)

    def _rounds(self, result: CellResult, shape: TreeShape, parts: bool = True) -> Rounds | None:
        """Timed rounds; why there are none goes into `result.left_out`."""
        what = f"{shape.num_nodes} node{'s' * (shape.num_nodes > 1)}{'' if parts else ', whole rounds'}"
        found: list[Rounds] = []
        model = self.models.target

        def run() -> None:
            found.append(timed(self.cast, borrowed(model, result.cell), shape, self.clock, parts))

        if self._attempt(result, what, obstacle(model, result.cell, growing=False), run):
            if len(found[0]) >= FEWEST:
                return found[0]
            result.left_out.append(f"{what}: only {len(found[0])} rounds could be timed")
        return None

    def _attempt(self, result: CellResult, what: str, reason: str | None, run: Callable[[], None]) -> bool:
        """Whether `run` could be run: not if there is a `reason` against it, the time is over, or the memory is."""
        if reason is None and self.clock.over:
            reason = "the time was over"
        if reason is None:
            reason = self._run(run)
        if reason is not None:
            result.left_out.append(f"{what}: {reason}")
        return reason is None

    def _run(self, run: Callable[[], None]) -> str | None:
        """`run`, and nothing of it left in memory; what went wrong, if anything. A fault ends one part, not the others."""
        try:
            return attempt(self.models, lambda: None, lambda _: run())  # type: ignore[arg-type, return-value]
        except SpecplugError:  # nothing is served: no other part would be either
            raise
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            return f"FAILED, {type(error).__name__}: {error}".partition("\n")[0]
        finally:
            release(self.models.target.device)

    def _none(self, result: CellResult) -> None:
        """Plain rounds as they really run: what a user compares with."""
        whole = self._rounds(result, ROOT_ONLY, parts=False)
        if whole is not None:
            limit, copied = self._limits(result.cell)
            result.parts[NONE] = Part(NONE, Spread.of(whole.whole), limit.plain, copied.plain)

    def _plain(self, result: CellResult) -> None:
        model, seconds = self.models.target, list[float]()

        def run() -> None:
            seconds.extend(plain_steps(model, owned(model, result.cell), self.clock))

        reason = obstacle(model, result.cell, growing=True)
        if self._attempt(result, TRANSFORMERS, reason, run):
            limit, copied = self._limits(result.cell)
            result.parts[TRANSFORMERS] = Part(TRANSFORMERS, Spread.of(seconds), limit.plain, copied.plain)

    def _add_parts(self, result: CellResult, nodes: int, rounds: Rounds) -> None:
        limit, copied = self._limits(result.cell)
        if nodes > 1 and STEP not in result.parts:  # the shortest chain's, which comes first
            result.parts[STEP] = Part(STEP, Spread.of(rounds.steps), limit.draft, copied.draft)
        name = verify_name(nodes)
        result.parts[name] = Part(name, Spread.of(rounds.verify), limit.verify(nodes), copied.verify(nodes))

    def _conclude(self, result: CellResult, rounds: dict[int, Rounds]) -> None:
        """Speed-ups from the parts, where plain rounds and a chain were measured; then the best chain's rounds as they are."""
        if 1 not in rounds or len(rounds) < 2:
            result.left_out.append("speed-ups: they need rounds of one node and of a chain")
            return
        measured = _measured(rounds, result.parts[STEP].seconds.median)
        most = min(MAX_GAMMA, max(rounds) - 1)
        for acceptance in self.questions.acceptances:
            result.speedups.append(self._speedup(result, measured, acceptance, most))
        best = Limits(measured, result.cell, self.questions.budget).best(CHECKED, most)
        whole = self._rounds(result, Chain(best.size).build(), parts=False)
        if whole is not None:
            result.whole = Whole(best.size, Spread.of(whole.whole), best.seconds)

    def _speedup(self, result: CellResult, measured: Measured, acceptance: float, most: int) -> SpeedUp:
        theory = self._limits(result.cell)[0].best(acceptance, MAX_GAMMA)
        ours = Limits(measured, result.cell, self.questions.budget).best(acceptance, most)
        over = {
            name: ours.tokens * result.parts[name].seconds.median / ours.seconds if name in result.parts else None
            for name in (TRANSFORMERS, NONE)
        }
        return SpeedUp(
            acceptance, theory.size, theory.speedup, ours.size, ours.tokens, ours.seconds,
            over[TRANSFORMERS], over[NONE],
        )  # fmt: skip


def _measured(rounds: dict[int, Rounds], step: float) -> Measured:
    own = Spread.of(rounds[1].own).median
    return Measured({nodes: max(0.0, found.rest - own) for nodes, found in rounds.items()}, step, own)
