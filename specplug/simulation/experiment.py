"""Contestants at rising rates, each serving the same requests on the same machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specplug.cost.choice import Budget
from specplug.simulation.contestants import PLAIN, Contestant, has_cache
from specplug.simulation.host import SimulatedHost
from specplug.simulation.machine import Machine
from specplug.simulation.metrics import Comparison, Metrics, compare
from specplug.simulation.server import Server
from specplug.simulation.workload import Mix, Request
from specplug.simulation.world import Ledger, World
from specplug.tree import TreeShape

Runs = dict[str, list[Metrics]]  # by contestant, one for each seed


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same. `machine`: by seed. `tree`: what controllers may choose from. `host`: what they see of it."""

    machine: Callable[[int], Machine]
    mix: Mix
    drafter: str
    budget: Budget
    tree: TreeShape
    host: SimulatedHost
    max_batch: int
    eager: bool = False

    def world(self, seed: int) -> World:
        """The times of one seed."""
        return World(self.machine(seed), self.drafter, self.budget, seed)

    def run(self, contestant: Contestant, requests: Sequence[Request], world: World) -> Metrics:
        """Serve `requests`. `world` must be fresh, but for its grids."""
        ledger = Ledger()
        least = 4 * (self.budget or 0) if self.drafter == "self" else 0  # as a Speculator has it
        session = contestant.open(self.drafter, self.tree, self.host, ledger, least)
        drafts = contestant.name != PLAIN and has_cache(self.drafter)
        outcome = Server(world, session, ledger, self.max_batch, drafts, drafts and self.eager).serve(requests)
        return Metrics.of(outcome)


@dataclass(frozen=True, slots=True)
class Level:
    """All runs at one rate, requests a second."""

    rate: float
    runs: Runs

    def comparisons(self, field: Sequence[Contestant]) -> dict[str, Comparison]:
        """Every controller that chooses, beside those that do not."""
        simple = [contestant.name for contestant in field if contestant.simple]
        return {
            contestant.name: compare(contestant.name, self.runs, PLAIN, simple)
            for contestant in field
            if contestant.length is None
        }


def simulate(
    setting: Setting,
    field: Sequence[Contestant],
    rates: Sequence[float],
    requests: int,
    seeds: int,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Level]:
    """Every contestant at every rate with every seed. `progress` hears what comes next, and how much is done."""
    levels = [Level(rate, {contestant.name: [] for contestant in field}) for rate in rates]
    total, done = len(rates) * seeds * len(field), 0
    for seed in range(seeds):
        grids = setting.world(seed).grids
        for level in levels:
            arriving = setting.mix.requests(requests, level.rate, seed)
            for contestant in field:
                progress(done, total, f"{level.rate:g}/s {contestant.name}")
                world = setting.world(seed)
                world.grids = grids
                level.runs[contestant.name].append(setting.run(contestant, arriving, world))
                done += 1
    progress(done, total, "")
    return levels
