"""Who is compared: plain decoding, fixed chains, and any controller by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specplug.controllers import Arm, Controller, Fixed, Memory
from specplug.cost.roofline import NO_MODEL
from specplug.drafters.none import NoDraft
from specplug.errors import OptionError
from specplug.session import Session
from specplug.simulation.host import Draft, Lookup, SelfSpeculation, SimulatedHost
from specplug.simulation.world import Ledger
from specplug.specification import build
from specplug.tree import ROOT_ONLY, TreeShape
from specplug.trees import Chain

PLAIN, STANDBY, FIXED = "plain", "standby", "fixed"
LONGEST = 32


@dataclass(frozen=True, slots=True)
class Contestant:
    """`length`: of a fixed chain, 0 for plain decoding; None: the controller that `name` specifies decides.

    `plain` has no draft at all; `standby` has one that reads the prompts and is never asked.
    """

    name: str
    length: int | None = None

    def open(self, drafter: str, tree: TreeShape, host: SimulatedHost, ledger: Ledger, min_context: int = 0) -> Session:
        """A session as a `Speculator` opens one, knowing nothing yet. `tree`: what a controller may choose from, or a part."""
        controller = self.controller()
        arms = []
        if self.length != 0:
            shape = tree if self.length is None else Chain(self.length).build()
            arms.append(Arm(f"{drafter}/{shape.size}", stand_in(drafter, ledger).open(host), shape, min_context))
        if self.length == 0 or controller.needs_baseline:
            arms.append(Arm("none", NoDraft().open(host), ROOT_ONLY))
        return Session(host, arms, controller, Memory())

    def controller(self) -> Controller:
        """The controller, not yet opened. Raises `OptionError` or `UnknownNameError`."""
        if self.length is not None:
            return Fixed()
        found = build("controllers", self.name)
        if not isinstance(found, Controller):
            raise OptionError(f"--controllers: {self.name!r} is no controller.")
        return found

    @property
    def simple(self) -> bool:
        """Plain decoding or a fixed length: what a controller must not be worse than."""
        return self.length is not None and self.name != STANDBY


def stand_in(drafter: str, ledger: Ledger) -> Lookup:
    """What a controller is shown as the drafter."""
    if drafter == "prompt_lookup":
        return Lookup()
    return Draft(ledger) if has_cache(drafter) else SelfSpeculation(ledger)


def has_cache(drafter: str) -> bool:
    """Whether it has to read what it drafts for. A profile calls a self-speculating drafter by its class."""
    return drafter not in NO_MODEL and drafter != "self" and not drafter.startswith("SelfDraft")


def contestants(text: str) -> list[Contestant]:
    """Read `plain,fixed:1..6,goodput:margin=1.05`. Raises `OptionError`."""
    found = [contestant for piece in _pieces(text) for contestant in _contestants(piece)]
    names = [contestant.name for contestant in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"--controllers {text!r} names {twice!r} twice.")
    for contestant in found:
        contestant.controller()
    return found


def _pieces(text: str) -> Iterator[str]:
    """Split at commas, but not between a controller's options."""
    held = ""
    for piece in (piece.strip() for piece in text.split(",")):
        if held and "=" in piece and ":" not in piece:
            held += f",{piece}"
            continue
        if held:
            yield held
        held = piece
    yield held


def _contestants(piece: str) -> Sequence[Contestant]:
    if piece in (PLAIN, STANDBY):
        return [Contestant(piece, 0)]
    if piece != FIXED and not piece.startswith(f"{FIXED}:"):
        return [Contestant(piece)]
    span = re.fullmatch(r"fixed:(\d{1,3})(?:\.\.(\d{1,3}))?", piece)
    first, last = (int(span[1]), int(span[2] or span[1])) if span else (0, 0)
    if not 1 <= first <= last <= LONGEST:
        raise OptionError(f"--controllers {piece!r}: write fixed:4 or fixed:1..6, lengths from 1 to {LONGEST}.")
    return [Contestant(f"{FIXED}:{length}", length) for length in range(first, last + 1)]
