"""Reading a corpus: text files, or one file of tokens. Whatever cannot be read is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specplug.errors import OptionError

TOKENS = ".safetensors"  # the suffix of a file of tokens
DRAFTER = "retrieval_corpus"


def corpus_files(path: str, pattern: str) -> tuple[Path, ...]:
    """The files that `path` names: itself, or all below it that match `pattern`, in order; hidden ones are passed over.

    Raises `OptionError` if there are none, or if one cannot be opened or is empty.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise OptionError(f"{DRAFTER}: there is no file or folder {path!r}.")
    files = [root] if root.is_file() else [file for file in sorted(root.glob(pattern)) if _counts(file, root)]
    if not files:
        raise OptionError(f"{DRAFTER}: no file in {path!r} matches pattern={pattern}.")
    for file in files:
        try:
            with file.open("rb") as opened:
                empty = not opened.read(1)
        except OSError as error:
            raise OptionError(f"{DRAFTER}: cannot read {str(file)!r}: {error.strerror}.") from error
        if empty:
            raise OptionError(f"{DRAFTER}: {str(file)!r} is empty{_remedy(root)}")
    return tuple(files)


def _counts(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _remedy(root: Path) -> str:
    return "; choose others with pattern=, such as pattern=**/*.py." if root.is_dir() else "."


def read_text(file: Path, root: Path) -> str:
    """The text of `file`, which must be UTF-8. `root`: the corpus it is part of."""
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise OptionError(f"{DRAFTER}: cannot read {str(file)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{DRAFTER}: {str(file)!r} is not text in UTF-8 (byte {error.start}){_remedy(root)}"
        ) from error
    if "\0" in text:
        raise OptionError(f"{DRAFTER}: {str(file)!r} is not text: it holds a zero byte{_remedy(root)}")
    return text


def read_tokens(file: Path) -> tuple[Tensor, Tensor]:
    """`tokens` [T] int32 of a token file, and `ends` [D] int64: where its documents end, the last at T."""
    try:
        from safetensors.torch import load_file  # noqa: PLC0415  (only a corpus of tokens needs it)
    except ImportError as error:
        raise OptionError(f"{DRAFTER}: reading {str(file)!r} needs safetensors: pip install safetensors.") from error
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises its own kinds, and the system's
        raise OptionError(f"{DRAFTER}: {str(file)!r} is no safetensors file: {error}") from error
    tokens = tensors.get("tokens")
    if tokens is None or tokens.dtype != torch.int32 or tokens.ndim != 1 or not len(tokens):
        found = "nothing of that name" if tokens is None else f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        raise OptionError(f"{DRAFTER}: {str(file)!r} must hold int32 'tokens' in one dimension, and holds {found}.")
    ends = tensors.get("ends", torch.tensor([len(tokens)]))
    rising = ends.ndim == 1 and ends.dtype == torch.int64 and len(ends) > 0 and bool((ends.diff() > 0).all())
    if not rising or int(ends[0]) < 1 or int(ends[-1]) != len(tokens):
        raise OptionError(
            f"{DRAFTER}: 'ends' of {str(file)!r} must be int64, rise, and end at its {len(tokens)} tokens."
        )
    return tokens, ends


def write_tokens(file: str, documents: Sequence[Tensor]) -> None:
    """Write `documents`, each [n] of token ids, n >= 1, as a corpus that needs no tokenizer any more."""
    from safetensors.torch import save_file  # noqa: PLC0415  (only a corpus of tokens needs it)

    if not documents or any(document.ndim != 1 or not len(document) for document in documents):
        raise OptionError(f"{file!r}: a corpus needs a document, and every document a token.")
    tensors: dict[str, Any] = {
        "tokens": torch.cat([document.to(torch.int32) for document in documents]),
        "ends": torch.tensor([len(document) for document in documents]).cumsum(0),
    }
    save_file(tensors, file)
