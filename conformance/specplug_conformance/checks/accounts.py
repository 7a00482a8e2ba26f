"""Statistics add up."""

from __future__ import annotations

from specplug import Round
from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.scene import speculator
from specplug_conformance.search import Scene, scenes, search


@check(
    "statistics",
    "SpecStats says what happened: rounds, proposed, accepted and emitted tokens, by row, depth and arm",
    EVERY,
)
def statistics(trial: Trial) -> None:
    world = trial.world()

    def test(scene: Scene) -> None:
        rounds: list[Round] = []
        used = speculator(trial, world, scene)
        texts = world.speculated(scene.request, used, lambda finished, _: rounds.append(finished))
        stats, emitted = used.stats, sum(sum(r.commit.counts) for r in rounds)
        taken = [
            min(a, n)  # the host may have cut it: what is kept of an accepted path are draft tokens
            for r in rounds
            for a, n in zip(r.verdict.accepted, r.commit.counts, strict=True)
        ]
        proposed = sum(
            r.trees.num_rows * (r.trees.num_nodes - 1) if r.trees.valid is None else int(r.trees.valid[:, 1:].sum())
            for r in rounds
        )
        padded = sum(0 if r.trees.valid is None else int((~r.trees.valid[:, 1:]).sum()) for r in rounds)
        claims = {
            "rounds": (stats.rounds, len(rounds)),
            "target forwards": (stats.target_forwards, len(rounds)),
            "rounds by arm": (sum(stats.rounds_by_arm.values()), len(rounds)),
            "tree sizes": (sum(stats.tree_sizes.values()), len(rounds)),
            "rounds of rows": (sum(stats.rounds_by_row.values()), sum(r.batch.num_rows for r in rounds)),
            "emitted": (stats.emitted, emitted),
            "emitted by row": (sum(stats.emitted_by_row.values()), emitted),
            "accepted": (stats.accepted, sum(taken)),
            "accepted by depth": (sum(stats.accepted_by_depth.values()), stats.accepted),
            "proposed": (stats.proposed, proposed),
            "padded": (stats.padded, padded),
            "proposed by depth": (sum(stats.proposed_by_depth.values()), proposed),
        }
        for what, (said, counted) in claims.items():
            if said != counted:
                raise faulty(world, scene.request, f"{what}: the statistics say {said}, there were {counted}")
        outside = sum(len(text) for text in texts) - stats.emitted
        if not 0 <= outside <= scene.request.num_rows:  # a row's first token may come with its prompt
            raise faulty(world, scene.request, f"{outside} tokens came from no round, in {len(texts)} rows")

    search(trial, scenes(world.vocab), test, (Scene(Request(((1, 2, 3, 1, 2, 3),), 14), "chain:length=4"),), share=0.6)
