"""Text to train on: files, the stream of their tokens, and windows of it in an order that the seed alone decides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specplug.errors import OptionError

BUILTIN = (
    "builtin"  # in place of a file: the sources of the standard library, as the pair that ships was trained on them
)
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Corpus:
    """Streams of token ids, int64: `training` [T], and `held_out` [H], which nothing learns from."""

    training: Tensor
    held_out: Tensor

    @property
    def digest(self) -> str:
        """A name for these very tokens, which a resumed run compares."""
        hashed = hashlib.sha256()
        for stream in (self.training, self.held_out):
            hashed.update(len(stream).to_bytes(8, "little"))
            hashed.update(stream.numpy().tobytes())
        return hashed.hexdigest()[:16]


def read_corpus(names: Sequence[str], tokenizer: Any) -> Corpus:
    """The tokens of the UTF-8 text files `names` by a Hugging Face `tokenizer`; `"builtin"` stands for the built-in corpus.

    Held out: of files the last twentieth of each, of the built-in corpus one file in twenty, by its name. `OptionError`
    names a file that cannot be read.
    """
    training: list[Tensor] = []
    held_out: list[Tensor] = []
    for name in names:
        if name == BUILTIN:
            from specplug_hf.demo.corpus import library_files, split  # noqa: PLC0415  (imports this package)

            shown, hidden = split(library_files())
            training.append(token_stream(tokenizer, shown))
            held_out.append(token_stream(tokenizer, hidden))
        else:
            tokens = token_stream(tokenizer, [read_text(Path(name))])
            shown_tokens = len(tokens) - int(len(tokens) * HELD_OUT_SHARE)
            training.append(tokens[:shown_tokens])
            held_out.append(tokens[shown_tokens:])
    return Corpus(torch.cat(training), torch.cat(held_out))


def read_text(path: Path) -> str:
    """The text of `path`; `OptionError` names what cannot be read."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise OptionError(f"--data {path}: this is a folder; name the files in it, such as {path}/*.txt.") from error
    except OSError as error:
        raise OptionError(f"--data {path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"--data {path}: not UTF-8 text: byte {error.start} cannot be read.") from error
    if not text.strip():
        raise OptionError(f"--data {path}: there is no text in it.")
    return text


def token_stream(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """`texts` as one stream [T] int64, each followed by the tokenizer's end token where it has one."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return torch.tensor([token for ids in encoded for token in (*ids, *end)], dtype=torch.int64)


def window_starts(total: int, length: int, seed: int) -> Tensor:
    """Starts of the windows of one pass over a stream of `total` tokens: disjoint, shifted and shuffled by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    if total <= length:
        raise ValueError(f"a stream of {total} tokens is too short for windows of {length}")
    shift = int(torch.randint(0, min(length, total - length), (1,), generator=generator))
    starts = torch.arange(shift, total - length + 1, length)
    return starts[torch.randperm(len(starts), generator=generator)]


def windows(data: Tensor, length: int, first: int, count: int, seed: int) -> Tensor:
    """Windows `first`, ..., `first + count - 1` of the passes over `data`, each pass shuffled anew: [count, length].

    `data`: a stream [T], each pass of which is cut at other places too, or rows [N, length]. What a window is depends on its
    number and `seed` alone, so an interrupted run goes on with the next. A stream too short is a `ValueError`.
    """
    in_rows = data.ndim == 2
    per_pass = len(data) if in_rows else len(data) // length - 1
    if per_pass < 1:
        raise ValueError(f"a stream of {len(data)} tokens is too short for windows of {length}")
    rows: list[Tensor] = []
    for number in range(first, first + count):
        own = seed * 10007 + number // per_pass
        if in_rows:
            order = torch.randperm(per_pass, generator=torch.Generator().manual_seed(own))
            rows.append(data[order[number % per_pass]])
        else:
            start = int(window_starts(len(data), length, own)[number % per_pass])
            rows.append(data[start : start + length])
    return torch.stack(rows)
