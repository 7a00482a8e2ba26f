"""What is measured against what: transformers' own ways of decoding and ours, each with the options it may choose from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers.generation import BaseStreamer

from specplug import SpecplugError, Speculator
from specplug_hf.commands.models import Models, generation_settings

OURS, THEIRS = "specplug", "transformers"


@dataclass(slots=True)
class Option:
    """One way to call `generate`: its keywords, and the draft's settings while it runs."""

    label: str
    keywords: dict[str, Any] = field(default_factory=dict)
    draft_settings: dict[str, Any] = field(default_factory=dict)
    fresh: Callable[[], Speculator] | None = None  # makes the Speculator anew for every call
    counts_first: bool = False  # the first forward of the target may yield several tokens: let a streamer count them
    tree: str = ""  # what its drafter is asked for, where options of several drafters are to be compared by that

    @property
    def speculator(self) -> Speculator | None:
        """Ours, if this option is one of ours (and has been called, if it is made anew for every call)."""
        given = self.keywords.get("assistant")
        return given if isinstance(given, Speculator) else None

    @contextlib.contextmanager
    def arranged(self, models: Models) -> Iterator[dict[str, Any]]:
        """The keywords to call `generate` with, while the draft is set up for it."""
        if self.fresh is not None:
            self.keywords = {"assistant": self.fresh()}
        draft = models.draft if self.draft_settings else None
        with generation_settings(draft, **self.draft_settings):
            yield self.keywords


@dataclass(slots=True)
class Contender:
    """A named way of decoding. With several options, the best is chosen on other prompts than those measured."""

    name: str
    group: str
    options: list[Option]
    single_row: bool = False  # transformers refuses it for more than one row
    learns: bool = False  # keeps what it has learnt between calls, so it is run on the choosing half as well
    min_context: int = 0  # not worth running below it, and left out there
    chosen: Option | None = None

    @property
    def option(self) -> Option:
        """The chosen option, or the first."""
        return self.chosen or self.options[0]

    def fits(self, rows: int, context: int) -> bool:
        """Whether it can run a batch of `rows` with `context` tokens."""
        return (rows == 1 or not self.single_row) and context >= self.min_context


class FirstCount(BaseStreamer):
    """Counts the tokens of the first block behind the prompt."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def put(self, value: Any) -> None:
        if len(self.blocks) < 2:
            self.blocks.append(int(value.numel()))

    def end(self) -> None:
        """Nothing to do."""

    @property
    def first(self) -> int:
        """Tokens of the first block; the block before it is the prompt."""
        return self.blocks[1] if len(self.blocks) > 1 else 1


def _ours(label: str, **settings: Any) -> Option:
    return Option(label, {"assistant": Speculator(**settings)})


def _fixed(label: str, **settings: Any) -> Option:
    return _ours(label, controller="fixed", **settings)


def plain(_: Models) -> Contender:
    """`generate` as shipped."""
    return Contender("plain", THEIRS, [Option("generate")])


def static(_: Models) -> Contender:
    """`generate` with a preallocated cache, not compiled."""
    return Contender(
        "static", THEIRS, [Option("StaticCache", {"cache_implementation": "static", "disable_compile": True})]
    )


def assistant(models: Models) -> Contender:
    """transformers' assisted decoding with its defaults: 20 tokens, confidence threshold 0.4."""
    return Contender("assistant", THEIRS, [_assisted(models, "defaults", {})], single_row=True)


def assistant_best(models: Models) -> Contender:
    """transformers' assisted decoding without the threshold, at its best constant length."""
    constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    options = [_assisted(models, f"{n} tokens", {"num_assistant_tokens": n, **constant}) for n in (2, 3, 4, 5, 7, 10)]
    return Contender("assistant_best", THEIRS, options, single_row=True)


def _assisted(models: Models, label: str, settings: dict[str, Any]) -> Option:
    return Option(label, {"assistant_model": _draft(models)}, settings, counts_first=True)


def lookup_hf(_: Models) -> Contender:
    """transformers' prompt lookup at its best length and n-gram."""
    options = [
        Option(
            f"{n} tokens, n-gram {gram}",
            {"prompt_lookup_num_tokens": n, "max_matching_ngram_size": gram},
            counts_first=True,
        )
        for n in (3, 5, 10)
        for gram in (2, 3)
    ]
    return Contender("lookup_hf", THEIRS, options, single_row=True)


def none(_: Models) -> Contender:
    """Plain decoding through our cache and attention."""
    return Contender("none", OURS, [_fixed("none", drafter="none")])


def model(models: Models) -> Contender:
    """A draft model, with trees and chains to choose from."""
    trees = ("chain:length=3", "chain:length=6", "chain:length=12", "sequoia:size=8,depth=4", "sequoia:size=12,depth=6")
    options = [_fixed(tree, drafter="model", draft_model=_draft(models), tree=tree) for tree in trees]
    return Contender("model", OURS, options)


def self_streaming(_: Models) -> Contender:
    """The target over a sink and a window of its own cache."""
    options = [
        _fixed(
            f"window {window}, chain {length}",
            drafter="self",
            kv_policy=f"streaming:sink=4,window={window}",
            tree=f"chain:length={length}",
        )
        for window, length in ((508, 3), (252, 3), (252, 5))
    ]
    return Contender("self", OURS, options, min_context=1024)


def lookup(_: Models) -> Contender:
    """Prompt lookup of ours."""
    options = [
        _fixed(f"chain {n}, n-gram {gram}", drafter=f"prompt_lookup:ngram={gram}", tree=f"chain:length={n}")
        for n in (3, 5, 10)
        for gram in (2, 3)
    ]
    return Contender("lookup", OURS, options)


def best_fixed(models: Models) -> Contender:
    """The best of what could be fixed: every drafter with a small and a large tree, and none."""
    lengths = [_fixed(f"lookup chain {n}", drafter="prompt_lookup", tree=f"chain:length={n}") for n in (3, 6, 10)]
    trees = ("chain:length=2", "chain:length=3", "sequoia:size=8,depth=4", "sequoia:size=16,depth=6")
    drafts = [] if models.draft is None else trees
    options = [_fixed(f"model {tree}", drafter="model", draft_model=models.draft, tree=tree) for tree in drafts]
    own = _fixed(
        "self window 252, chain 3", drafter="self", kv_policy="streaming:sink=4,window=252", tree="chain:length=3"
    )
    return Contender("best_fixed", OURS, [_fixed("none", drafter="none"), *lengths, *options, own])


def auto(models: Models) -> Contender:
    """Everything chosen by measured rounds, those of earlier calls included; with the draft if there is one."""
    return Contender("auto", OURS, [_ours("auto", draft_model=models.draft)], learns=True)


def auto_first(models: Models) -> Contender:
    """The same, knowing nothing at the start of each call."""
    return Contender(
        "auto_first", OURS, [Option("auto, first call", fresh=lambda: Speculator(draft_model=models.draft))]
    )


def auto_useless(models: Models) -> Contender:
    """`auto` with a draft that has learnt nothing."""
    if models.useless is None:
        raise SpecplugError("Set-up 'auto_useless' needs a draft: give --draft, or use the built-in pair.")
    return Contender("auto_useless", OURS, [_ours("auto, random draft", draft_model=models.useless)], learns=True)


REGISTRY: dict[str, Callable[[Models], Contender]] = {
    "plain": plain,
    "static": static,
    "assistant": assistant,
    "assistant_best": assistant_best,
    "lookup_hf": lookup_hf,
    "none": none,
    "model": model,
    "self": self_streaming,
    "lookup": lookup,
    "best_fixed": best_fixed,
    "auto": auto,
    "auto_first": auto_first,
    "auto_useless": auto_useless,
}
NEEDS_DRAFT = frozenset({"assistant", "assistant_best", "model", "auto_useless"})


def contenders(names: list[str], models: Models) -> list[Contender]:
    """The named contenders, fresh: nothing chosen or learnt yet."""
    return [REGISTRY[name](models) for name in names]


def _draft(models: Models) -> Any:
    if models.draft is None:
        raise SpecplugError("This set-up needs a draft: give --draft, or use the built-in pair.")
    return models.draft
