"""Held-out prompts: texts of the standard library that neither model was trained on."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer

from specplug.errors import OptionError

from .corpus import is_held_out
from .pair import load_tokenizer

FOLDER = Path(__file__).parent / "prompts"
COUNT = 24
TEXT_TOKENS = 9000
SHORTEST_START_TOKENS = 600


def count() -> int:
    """How many prompts ship."""
    return len(_names())


def prompt(tokens: int, index: int = 0) -> torch.Tensor:
    """Prompt number `index`, exactly `tokens` long: int64 ids `[1, tokens]`. `OptionError` if it cannot be."""
    ids = _ids(_checked_index(index))
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= len(ids):
        raise OptionError(f"tokens={tokens!r}: prompt {index} holds 1 to {len(ids)} tokens")
    return torch.tensor([ids[:tokens]])


def prompt_text(tokens: int, index: int = 0) -> str:
    """The text of `prompt(tokens, index)`."""
    return str(load_tokenizer().decode(prompt(tokens, index)[0]))


def sources(index: int) -> list[str]:
    """Names of the held-out files that prompt `index` is made of, in order, relative to the standard library's root."""
    listed: dict[str, list[str]] = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
    return listed[_names()[_checked_index(index)]]


def _checked_index(index: int) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count():
        raise OptionError(f"index={index!r}: there are prompts 0 to {count() - 1}")
    return index


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    return tuple(sorted(p.name for p in FOLDER.glob("*.txt") if p.name[:2].isdigit()))


@lru_cache(maxsize=COUNT)
def _ids(index: int) -> tuple[int, ...]:
    text = (FOLDER / _names()[index]).read_text(encoding="utf-8")
    return tuple(load_tokenizer()(text, add_special_tokens=False)["input_ids"])


def write_prompts(files: list[tuple[str, str]], tokenizer: Tokenizer, folder: Path = FOLDER) -> None:
    """Write `COUNT` texts of `TEXT_TOKENS` tokens to `folder` from the held-out ones of `files` (name, text).

    A text starts with a held-out file of some length, in order of the hash of its name, and goes on with the held-out
    files that follow it in path order.
    """
    held = [(name, text) for name, text in files if is_held_out(name)]
    lengths = [len(tokenizer.encode(text).ids) for _, text in held]
    starts = [i for i, length in enumerate(lengths) if length >= SHORTEST_START_TOKENS]
    starts.sort(key=lambda i: hashlib.sha256(held[i][0].encode()).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number, start in enumerate(starts[:COUNT]):
        text, names = _joined(held[start:] + held[:start], tokenizer)
        file = f"{number:02d}_{held[start][0].removesuffix('.py').replace('/', '.')}.txt"
        (folder / file).write_text(text, encoding="utf-8")
        listed[file] = names
    (folder / "sources.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _joined(files: list[tuple[str, str]], tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """The text of the first `TEXT_TOKENS` tokens of `files`, joined by an empty line, and the names that it took."""
    text, names = "", []
    for name, more in files:
        text, names = text + more.rstrip() + "\n\n\n", [*names, name]
        encoded = tokenizer.encode(text)
        if len(encoded.ids) >= TEXT_TOKENS:
            return text[: encoded.offsets[TEXT_TOKENS - 1][1]], names
    return text, names
