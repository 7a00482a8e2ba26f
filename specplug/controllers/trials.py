"""Trials: what a planner tries that is not the best for all that is known.

A drafter is worth trying while its potential beats the best: its yield if it were as good as what was seen of it leaves
room for, the more the less was seen or the longer ago. What trying may lose is kept in a purse, so that a useless draft is
given up after a few rounds and looked at again now and then: nothing is for ever, also not plain decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from specplug.controllers.beliefs import Beliefs
from specplug.controllers.memory import Learnt
from specplug.controllers.offers import Offers
from specplug.controllers.option import Option
from specplug.controllers.prices import Prices
from specplug.host import Batch

UNSETTLED = 0.25  # doubt of a plain round's time that only a generation's first rounds spoke of
DRIFTS = 120  # rounds beyond its patience after which all that was seen of a drafter is worth no more than one trial
LEAST_KNOWN = 1e-3  # trials: not none, to divide by
STALE = 0.015  # by how much a round in which plain decoding is not measured adds to the doubt of its time
CHANCE = 0.25  # of what trying may gain at best that it may lose at most
HORIZON = 100  # tokens that are still to be written, at least: by this text or the next one


@dataclass(frozen=True, slots=True)
class Trials:
    """Chooses trials for one generation. `worth`: what options are compared by; `patience`, `gamble`: see `Goodput`.

    `warm`: labels of the arms whose caches have caught up by now.
    """

    learnt: Learnt
    beliefs: Beliefs
    prices: Prices
    offers: Offers
    worth: Callable[[Option], float]
    warm: AbstractSet[str]
    patience: int
    gamble: float

    def choose(self, options: Sequence[Option], best: Option, batch: Batch, situation: Hashable) -> Option | None:
        """The option with the most potential, if it has more than the best and its likely loss can be afforded.

        `options`: plain decoding is the last.
        """
        chosen, most, plain = None, self.worth(best), options[-1]
        for option in options:
            if option.arm is best.arm:
                continue
            loss = self._loss(option, best, plain, batch.room)
            if not self.learnt.purse.affords(loss):
                continue
            waited = self.learnt.waited(situation, option.arm.label)
            hopeful = self._plain_hope(plain, waited) if option is plain else self._hope(option, batch, waited)
            if hopeful is None or self.worth(hopeful) <= most:
                continue
            # what it may gain, should it be that good, for as long as a text goes on
            gain = max(batch.room, HORIZON) / best.rate * (1 - self.worth(best) / self.worth(hopeful))
            if loss <= CHANCE * gain:
                chosen, most = hopeful, self.worth(hopeful)
        return chosen

    def _loss(self, option: Option, best: Option, plain: Option, room: int) -> float:
        """Seconds that a round of `option` will probably lose."""
        if option is plain:
            return max(0.0, plain.seconds * (1 - plain.rate / best.rate))
        little = option.reading <= self.gamble * room / best.rate
        # what it reads is not lost if this generation will pay for it, for all that is believed of it
        read = 0.0 if option.rate > best.rate or (little and not option.samples) else option.reading
        if option.arm.label not in self.warm:
            read += self.learnt.warming.get(option.arm.label, 0.0)
        if option.samples:
            return read + max(0.0, option.seconds * (1 - option.rate / best.rate))
        loss = read + plain.seconds * (1.0 if option.arm.drafter.drafts_with_model else 0.3)
        # once its caches have caught up: do not let that have been for nothing
        return loss - 2 * plain.seconds if option.arm.label in self.warm else loss

    def _hope(self, option: Option, batch: Batch, waited: int) -> Option | None:
        """`option` as good as what was seen of it leaves room for; less room, the more was seen and the more lately."""
        known = max(self.beliefs.known_of(option.arm, batch), LEAST_KNOWN)
        # what is doubted of an estimate grows evenly with time where the truth walks at random
        unsure = 1 / known + max(0, waited - self.patience) / DRIFTS
        return self.offers.option(option.arm, batch, doubt=unsure / (1 + unsure))

    def _plain_hope(self, plain: Option, waited: int) -> Option | None:
        """Plain decoding: only its time is in doubt; all else is measured against it."""
        if not waited:
            return None  # measured just now; whatever else is about as good must get its round, too
        settled = self.prices.plain_settled()
        doubt = (0.1 + STALE * waited) / math.sqrt(max(settled, 1))
        return plain._replace(tokens=1 + min(0.5, doubt if settled else doubt + UNSETTLED))
