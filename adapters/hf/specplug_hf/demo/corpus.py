"""The corpus: the Python standard library's sources that ship with the interpreter."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB = 3072
END = "<|end|>"
HELD_OUT_ONE_IN = 20
GENERATED = ('""" Python Character Mapping Codec', "# This file is generated")
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idle_test"})


def is_held_out(name: str) -> bool:
    """Whether the file `name` (posix path below the library's root) is held out: one in twenty, by hash."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def library_files(root: Path | None = None) -> list[tuple[str, str]]:
    """Names (relative, posix) and texts of the library's modules in path order: a package's files are neighbours.

    Its tests are left out, and so are the character tables that scripts generated (a seventh of the tokens).
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS & set(p.relative_to(root).parts)]
    files = [(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8", errors="ignore")) for p in paths]
    return [(name, text) for name, text in files if not text.startswith(GENERATED)]


def split(files: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The texts of `files` as (training, held out)."""
    return [t for n, t in files if not is_held_out(n)], [t for n, t in files if is_held_out(n)]


def train_tokenizer(texts: list[str], vocab: int = VOCAB) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab` tokens; id 0 ends a text. Any text round-trips exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """Write the tokenizer to `folder` in Hugging Face format."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        bos_token=END,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """`texts` as one int64 stream `[T]`, each followed by the end token 0."""
    return torch.tensor([i for e in tokenizer.encode_batch(texts, add_special_tokens=False) for i in (*e.ids, 0)])


def load_tokenizer(folder: Path, texts: list[str]) -> Tokenizer:
    """The tokenizer in `folder`, trained on `texts` and saved there where it is not yet."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer(texts).save(str(path))
    return Tokenizer.from_file(str(path))
