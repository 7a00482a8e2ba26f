"""Which drafters `specplug bench --all-drafters` compares: one table, and what each of them needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from specplug import OptionError, SpecplugError, Speculator, TreeShape
from specplug.plugins import plugins
from specplug.trees import TreeBuilder
from specplug.trees.base import DEFAULT_ACCEPTANCE
from specplug_hf.commands.models import Models
from specplug_hf.commands.setups import OURS, Contender, Option
from specplug_hf.demo.pair import HEADS_FOLDER, LAYERS_FILE

CORPUS_CHARACTERS = 1_000_000  # of the user's files that a retrieval index is made of
FILE_CHARACTERS = 40_000  # of the files of a corpus, each


@dataclass(frozen=True, slots=True)
class Entry:
    """A drafter to compare. `{corpus}`, `{heads}` and `{layers}` in a specification are files (`Resources`).

    It has the trees to choose from that suit it (`Drafter.shapes`), with each of `specifications` and `policies`.
    `learns`: from one call to the next, so it is made anew for every call: it would know the text from its last turn.
    `parts`: the entries whose drafters it unites.
    """

    name: str
    specifications: tuple[str, ...]
    policies: tuple[str, ...] = ("auto",)
    takes_draft: bool = False
    learns: bool = False
    parts: tuple[str, ...] = ()


# At a few hundred tokens of prompt only a narrow view leaves anything out.
BUDGETS = (64, 128)


def _windows(policy: str) -> Entry:
    """`self` over a window, of whose budget four positions are the first ones."""
    return Entry(f"self ({policy})", ("self",), tuple(f"{policy}:sink=4,window={budget - 4}" for budget in BUDGETS))


def _chosen(policy: str) -> Entry:
    """`self` over the last positions and as many that are chosen."""
    views = tuple(f"{policy}:budget={budget},window={budget // 2}" for budget in BUDGETS)
    return Entry(f"self ({policy})", ("self",), views)


ENTRIES = (
    Entry("none", ("none",)),
    Entry("prompt_lookup", ("prompt_lookup", "prompt_lookup:ngram=2")),
    Entry("suffix", ("suffix",), learns=True),
    Entry("retrieval_corpus", ("retrieval_corpus:path={corpus}",)),
    Entry(
        "lookahead",
        ("lookahead:window=3,ngram=3,guesses=2", "lookahead:window=4,ngram=4,guesses=3", "lookahead"),
    ),
    _windows("streaming"),
    _windows("lambda"),
    _chosen("snapkv"),
    _chosen("retrieval"),
    _chosen("squeezed"),
    Entry("layer_skip (spread)", ("layer_skip",)),
    Entry("layer_skip (searched)", ("layer_skip:layers={layers}",)),
    Entry("model", ("model",), takes_draft=True),
    Entry("mlp_speculator", ("mlp_speculator:path={heads}",)),
    Entry("merged", ("merged:parts=suffix+prompt_lookup",), learns=True, parts=("suffix", "prompt_lookup")),
    Entry("merged (model)", ("merged:parts=model+suffix",), takes_draft=True, learns=True, parts=("model", "suffix")),
)


@dataclass(frozen=True, slots=True)
class Given(TreeBuilder):
    """A tree that is there already."""

    shape: TreeShape

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        return self.shape


class Resources(Mapping[str, str]):
    """Files that specifications name, made or looked for when one does. `folder`: where they may be made."""

    def __init__(self, builtin: bool, folder: Path) -> None:
        self._builtin, self._folder = builtin, folder
        self._known = {"corpus": self._corpus, "heads": self._heads, "layers": self._layers}

    def __getitem__(self, name: str) -> str:
        return str(self._known[name]())

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _heads(self) -> Path:
        """Those that ship for the built-in target."""
        if not self._builtin:
            raise OptionError("none that was trained for this target ships; see `specplug train mlp-speculator`.")
        return HEADS_FOLDER

    def _layers(self) -> Path:
        """Those that a search found for the built-in target."""
        if not self._builtin:
            raise OptionError("no search for this target ships; see `specplug train layer-skip`.")
        return LAYERS_FILE

    def _corpus(self) -> Path:
        """Modules of the standard library that are not held out, as one would point to a project's own sources."""
        from specplug_hf.demo.corpus import is_held_out, library_files  # noqa: PLC0415

        path = self._folder / "corpus"
        if path.exists():
            return path
        path.mkdir()
        shown = [(name, text.strip()) for name, text in library_files() if not is_held_out(name)]
        files = [(name, text[:FILE_CHARACTERS]) for name, text in shown if text]
        taken = 0
        for name, text in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).hexdigest()):
            if taken + len(text) > CORPUS_CHARACTERS:
                break
            taken += len(text)
            (path / f"{name.replace('/', '.')}.txt").write_text(text, encoding="utf-8")
        return path


def contender(entry: Entry, models: Models, resources: Resources) -> Contender:
    """The entry's options. A `SpecplugError` says why it cannot take part."""
    for text in entry.specifications:
        plugins().get("drafters", text.partition(":")[0])
    if entry.takes_draft and models.draft is None:
        raise OptionError("needs a draft model: give --draft, or use the built-in pair.")
    draft = {"draft_model": models.draft} if entry.takes_draft else {}
    settings = [
        {"drafter": text.format_map(resources), "kv_policy": policy, "controller": "fixed", **draft}
        for text in entry.specifications
        for policy in entry.policies
    ]
    return Contender(
        entry.name, OURS, [option for each in settings for option in _options(entry, each)], learns=entry.learns
    )


def _options(entry: Entry, settings: dict[str, Any]) -> Iterator[Option]:
    """One with each of the trees that suit the drafter."""
    for shape in Speculator(**settings).drafters[0].shapes():
        make: Callable[[], Speculator] = partial(Speculator, **settings, tree=Given(shape))
        tree = _tree(shape)
        label = _label(settings, tree)
        if entry.learns:
            yield Option(label, fresh=make, tree=tree)
        else:
            yield Option(label, {"assistant": make()}, tree=tree)


def _tree(shape: TreeShape) -> str:
    if not shape.size:
        return ""
    return f"chain {shape.size}" if shape.is_chain else f"tree {shape.size}x{shape.depth}"


def _label(settings: dict[str, Any], tree: str) -> str:
    given = [str(settings[name]).partition(":")[2] for name in ("drafter", "kv_policy")]
    options = [option for text in given for option in text.split(",") if "/" not in option]  # no paths
    return ", ".join(filter(None, [*options, tree])) or settings["drafter"]


@dataclass(frozen=True, slots=True)
class Absent:
    """A drafter that cannot take part, and why."""

    name: str
    why: str


def cast(models: Models, resources: Resources) -> tuple[list[Contender], list[Absent]]:
    """Every entry of the table: who can take part, and who cannot."""
    present, absent = [], []
    for entry in ENTRIES:
        try:
            present.append(contender(entry, models, resources))
        except SpecplugError as error:
            absent.append(Absent(entry.name, str(error)))
    return present, absent
