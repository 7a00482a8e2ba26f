"""What a user configures: drafter, KV policy, tree, controller, kernel; each by name, with options, or as an object."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from specplug.controllers import Arm, Controller, Goodput, Memory
from specplug.controllers.trees import SIZES
from specplug.cost.profile import Profile, read_profile
from specplug.drafters import Drafter, ModelDraft, NoDraft, PromptLookup, SelfDraft
from specplug.errors import OptionError, UnsupportedError
from specplug.host import Host
from specplug.kv_policies import Full, KVPolicy, Streaming
from specplug.needs import Need
from specplug.plugins import plugins
from specplug.session import Session
from specplug.specification import build
from specplug.stats import SpecStats
from specplug.tree import ROOT_ONLY, TreeShape, child_counts
from specplug.trees import TreeBuilder

AUTO = "auto"
BUDGETS = (256, 512, 1024)  # KV entries that the target drafting for itself may read: which pays depends on the context


@dataclass
class Speculator:
    """One set-up for speculative decoding; any field left at `"auto"` is chosen from what is there.

    `drafter`: a name (`"self"`, `"model"`, `"prompt_lookup"`, `"none"`, a plugin's), with options
    (`"prompt_lookup:ngram=4"`), or a `Drafter`. `draft_model`: the draft, as the adapter takes it (a loaded model, a
    path). `kv_policy`, `tree`, `controller`: names, with options, or objects. `kernel`: attention kernel. `seed`: seed
    of the sampled draws, or one for each row of the batch; None draws one from the framework's generator. `profile`: what
    `specplug calibrate` measured of this model and device (its file, or a `Profile`), for planning to start from. May be
    used by several threads at once.

    Raises `SpecplugError` here, at construction, for whatever can be known to be wrong.
    """

    drafter: str | Drafter = AUTO
    draft_model: Any = None
    kv_policy: str | KVPolicy = AUTO
    tree: str | TreeBuilder = AUTO
    controller: str | Controller = AUTO
    kernel: str = AUTO
    seed: int | Sequence[int] | None = None
    profile: str | os.PathLike[str] | Profile | None = None
    stats: SpecStats = field(default_factory=SpecStats, init=False, repr=False, compare=False)
    _memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        policy = _resolve("kv_policies", self.kv_policy, KVPolicy)
        tree = _resolve("trees", self.tree, TreeBuilder)
        drafter = _resolve("drafters", self.drafter, Drafter, **_given(model=self.draft_model, kv_policy=policy))
        self._controller: Controller = _resolve("controllers", self.controller, Controller) or Goodput()
        self._memory = Memory(_read(self.profile))
        self._shapes: list[TreeShape] | None = None if tree is None else [tree.build()]
        self._grown: bool = tree is not None and tree.grown
        self._candidates: list[Drafter] = [drafter] if drafter is not None else self._default_drafters(policy)
        if isinstance(drafter, ModelDraft) and drafter.model is None:
            raise OptionError("drafter='model' needs a draft: pass draft_model=... (a loaded model or a path).")
        unused = drafter is not None and getattr(drafter, "model", None) is not self.draft_model
        if self.draft_model is not None and unused:
            raise OptionError(
                f"draft_model is given, but drafter={self.drafter!r} does not use it; use drafter='model'."
            )
        if not isinstance(self.kernel, str):
            raise OptionError(f"kernel: expected a name, got {self.kernel!r} of type {type(self.kernel).__name__}.")
        if self.kernel != AUTO:
            plugins().get("kernels", self.kernel)  # an unknown name is refused here, with the known ones

    def _default_drafters(self, policy: KVPolicy | None) -> list[Drafter]:
        drafters: list[Drafter] = []
        if self.draft_model is not None:
            drafters.append(ModelDraft(self.draft_model, policy or Full()))
        drafters.append(PromptLookup())
        if policy is None:
            drafters += [SelfDraft(Streaming.within(budget)) for budget in BUDGETS]
        elif not isinstance(policy, Full):
            drafters.append(SelfDraft(policy))
        return drafters

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters that may be chosen, the preferred first."""
        return tuple(self._candidates)

    @property
    def max_nodes(self) -> int:
        """Most nodes, the root included, of any tree that may be chosen: what a server reserves for a round."""
        return max(shape.num_nodes for drafter in self._candidates for shape in self._shapes_of(drafter))

    @property
    def max_tokens(self) -> int:
        """Most tokens that a round may yield for one row, the bonus included."""
        return 1 + max(shape.depth for drafter in self._candidates for shape in self._shapes_of(drafter))

    @property
    def shapes(self) -> tuple[TreeShape, ...]:
        """Every tree that may be chosen, each once, the root alone last: any controller may stop speculating.

        A round may use a part of one (`TreeShape.cut`), at a row's end for instance.
        """
        chosen = [shape for drafter in self._candidates for shape in self._shapes_of(drafter)]
        return tuple(dict.fromkeys([*(shape for shape in chosen if shape != ROOT_ONLY), ROOT_ONLY]))

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes a row, the root included, that a verify may have, ascending: what a server captures graphs for."""
        fixed = {shape.num_nodes for shape in self.shapes}
        smaller = {size + 1 for size in SIZES if size < self.max_nodes} if self._controller.resizes else set()
        return tuple(sorted(fixed | smaller))

    def remembering(self, memory: Memory) -> Speculator:
        """This Speculator, learning into `memory` (so that what was learnt outlives it)."""
        self._memory = memory
        return self

    def open(self, host: Host) -> Session:
        """The working state of one generation on `host`. Raises `OptionError` if the profile is of something else."""
        if self._memory.profile is not None:
            self._memory.profile.check(*host.identity)
        return Session(host, list(self._arms(host)), self._controller, self._memory)

    def required(self, capabilities: frozenset[Need], host_name: str) -> frozenset[Need]:
        """What the drafters that may be chosen ask of a host with `capabilities`: what it has to gather for them."""
        return frozenset().union(*(drafter.required for drafter in self._usable(capabilities, host_name)))

    def finish(self, session: Session) -> None:
        """Keep the statistics of a finished generation as `stats`."""
        with self._lock:
            self.stats = session.stats

    def check(
        self,
        capabilities: frozenset[Need],
        vocab_size: int,
        host_name: str,
        identity: tuple[str, str, str] | None = None,
    ) -> None:
        """Raise what `open` would raise, before there is a host. `identity`: the host's, if it is known."""
        if identity is not None and self._memory.profile is not None:
            self._memory.profile.check(*identity)
        for drafter in self._usable(capabilities, host_name):
            for shape in self._shapes_of(drafter):
                _check_branching(shape, vocab_size)

    def _usable(self, capabilities: frozenset[Need], host_name: str) -> Iterator[Drafter]:
        for drafter in self._candidates:
            if self.drafter == AUTO and not drafter.required <= capabilities:
                continue  # one of ours that nobody asked for
            _check_needs(drafter, capabilities, host_name, self.drafter)
            yield drafter

    def _shapes_of(self, drafter: Drafter) -> list[TreeShape]:
        if self._shapes is None:
            return list(drafter.shapes())
        return [drafter.fitted(shape) for shape in self._shapes]

    def _arms(self, host: Host) -> Iterator[Arm]:
        served = 0
        for drafter in self._usable(host.capabilities, type(host).__name__):
            served += 1
            opened = drafter.open(host)
            for shape in self._shapes_of(drafter):
                _check_branching(shape, host.vocab_size)
                grown = self._grown and drafter.drafts_with_model
                yield Arm(self._label(drafter, shape, grown), opened, shape, drafter.min_context, grown)
        if not served or (self._controller.needs_baseline and not isinstance(self._candidates[-1], NoDraft)):
            yield Arm("none", NoDraft().open(host), ROOT_ONLY)

    def _label(self, drafter: Drafter, shape: TreeShape, grown: bool) -> str:
        several = sum(type(other) is type(drafter) for other in self._candidates) > 1
        name = type(drafter).__name__ + (f"[{drafter.budget}]" if several else "")
        kind = "grown" if grown else "chain" if shape.is_chain else "tree"
        return f"{name}/{kind}:{shape.size}" + ("" if kind == "chain" else f"x{shape.depth}")


def _check_needs(drafter: Drafter, capabilities: frozenset[Need], host_name: str, asked: object) -> None:
    missing = sorted(need.value for need in drafter.required if need not in capabilities)
    if missing:
        name = asked if isinstance(asked, str) and asked != AUTO else type(drafter).__name__
        raise UnsupportedError(
            f"Drafter {name!r} needs {', '.join(missing)}, which {host_name} cannot give; choose another drafter or KV policy."
        )


def _check_branching(shape: TreeShape, vocab_size: int) -> None:
    if max(child_counts(shape)) > vocab_size:
        raise OptionError(
            f"The tree has a node with {max(child_counts(shape))} children, the vocabulary {vocab_size} tokens; "
            "choose a narrower tree."
        )


def _read(profile: object) -> Profile | None:
    if profile is None or isinstance(profile, Profile):
        return profile
    if isinstance(profile, str | os.PathLike):
        return read_profile(os.fspath(profile))
    raise OptionError(f"profile: expected a file or a Profile, got {profile!r} of type {type(profile).__name__}.")


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _resolve(kind: str, value: Any, base: type, **extra: Any) -> Any:
    """The object meant by `value`: itself, or what its specification string names; None for "auto"."""
    if isinstance(value, str):
        if value == AUTO:
            return None
        value = build(kind, value, **extra)
    if isinstance(value, base):
        return value
    raise OptionError(f"{kind}: expected a name or a {base.__name__}, got {value!r} of type {type(value).__name__}.")
