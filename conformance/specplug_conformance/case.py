"""A case: one plugin to be checked. Built-ins and strangers give theirs through `specplug_conformance_cases()`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from specplug import Drafter, Need, OptionError, Speculator
from specplug.drafters import ModelDraft, SelfDraft
from specplug.errors import unknown_name
from specplug.plugins import plugins
from specplug_conformance.subject import World

KINDS = ("drafter", "kv_policy", "tree", "controller", "adapter")
REGISTERED = {"drafters": "drafter", "kv_policies": "kv_policy", "trees": "tree", "controllers": "controller"}
TREE = "sequoia:size=6,depth=3"


@dataclass(frozen=True, slots=True)
class Case:
    """A plugin and how to make it.

    `factory` makes the object; it gets a draft model as `draft=` or `model=` and `vocab=` if it takes arguments of these
    names.
    For kind "adapter" it makes a `Subject`. `expected_failures` maps a check's name to the reason why this plugin fails
    it: strict, so a check that passes after all is reported. `tree`: what a drafter is asked to fill.
    """

    name: str
    kind: str
    factory: Callable[..., Any]
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    tree: str = TREE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of case", self.kind, KINDS)

    def make(self, world: World) -> Any:
        """The plugin's object, for `world`."""
        known = inspect.signature(self.factory).parameters
        offered = {"draft": world.draft, "model": world.draft, "vocab": world.vocab}
        return self.factory(**{name: value for name, value in offered.items() if name in known})

    def required(self, world: World) -> frozenset[Need]:
        """What the plugin needs of a host; whatever a speculator of ours would need besides is offered everywhere."""
        if self.kind not in ("drafter", "kv_policy"):
            return frozenset()
        made = self.make(world)
        return made.required if isinstance(made, Drafter) else getattr(made, "needs", frozenset())

    def speculator(self, world: World, **more: Any) -> Speculator:
        """A Speculator in which this plugin does its part, and the built-in ones do the rest."""
        settings: dict[str, Any] = {"controller": "fixed", "tree": self.tree}
        if self.kind == "drafter":
            settings["drafter"] = self.make(world)
        elif self.kind == "kv_policy":
            settings["drafter"] = SelfDraft(self.make(world))
        elif self.kind == "tree":
            settings |= {"drafter": ModelDraft(world.draft), "tree": self.make(world)}
        elif self.kind == "controller":
            settings = {"draft_model": world.draft, "controller": self.make(world)}
        else:
            settings["drafter"] = ModelDraft(world.draft)
        return Speculator(**(settings | more))


def known_cases() -> list[Case]:
    """Every case that an installed plugin contributes, and one for each registered plugin that has none.

    Raises `OptionError` for two of one kind and name.
    """
    cases: dict[tuple[str, str], Case] = {}
    for given in reversed(plugins().manager.hook.specplug_conformance_cases()):  # pluggy calls the last one first
        for case in given:
            _take(case, cases)
    for plugin in plugins().all():
        kind = REGISTERED.get(plugin.kind)
        if kind is not None and (kind, plugin.name) not in cases:
            cases[kind, plugin.name] = Case(plugin.name, kind, plugin.factory)
    return list(cases.values())


def _take(case: Any, cases: dict[tuple[str, str], Case]) -> None:
    if not isinstance(case, Case):
        raise OptionError(f"specplug_conformance_cases gave {case!r}; expected a specplug_conformance.Case.")
    if (case.kind, case.name) in cases:
        raise OptionError(f"Two conformance cases for the {case.kind} {case.name!r}; give one of them another name.")
    cases[case.kind, case.name] = case


def select(cases: Iterable[Case], names: Iterable[str]) -> list[Case]:
    """The cases called `names` (all if there are none), adapters left out. Raises for an unknown name."""
    listed, wanted = [case for case in cases if case.kind != "adapter"], list(names)
    known = {case.name for case in listed}
    for name in wanted:
        if name not in known:
            raise unknown_name("plugin with conformance cases", name, known)
    return [case for case in listed if not wanted or case.name in wanted]
