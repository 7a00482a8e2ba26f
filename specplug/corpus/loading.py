"""A corpus made ready to be looked up in, once for all who ask for the same."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from specplug.corpus.contexts import Contexts
from specplug.corpus.files import DRAFTER, TOKENS, read_text, read_tokens
from specplug.corpus.text import in_pieces
from specplug.errors import OptionError

KEPT = 4  # corpora in memory, the ones that were asked for last

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_ready: OrderedDict[Hashable, Contexts] = OrderedDict()


def load_corpus(
    files: Sequence[Path],
    root: Path,
    tokenize: Callable[[str], Tensor] | None,
    tokenizer: str,
    vocab_size: int,
    max_tokens: int,
    most: int,
) -> Contexts:
    """At most `max_tokens` of `files`, in the order of their contexts; from memory if it is there and no file has changed.

    `tokenize`: text -> [n] token ids, called `tokenizer`; None if there are only files of tokens. Raises `OptionError`, naming
    the file, if one cannot be read or has nothing or foreign tokens in it.
    """
    key = tuple(_stamp(file) for file in files), None if tokenize is None else tokenizer, vocab_size, max_tokens, most
    with _lock:  # whoever else wants it waits, rather than making it too
        if key not in _ready:
            _ready[key] = Contexts.of(_read(files, root, tokenize, vocab_size, max_tokens), most)
            logger.info("specplug: %d tokens of %s are ready to be looked up in.", len(_ready[key].text), root)
        _ready.move_to_end(key)
        while len(_ready) > KEPT:
            _ready.popitem(last=False)
        return _ready[key]


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        stat = file.stat()
    except OSError as error:
        raise OptionError(f"{DRAFTER}: cannot read {str(file)!r}: {error.strerror}.") from error
    return str(file), stat.st_mtime_ns, stat.st_size


def _read(
    files: Sequence[Path], root: Path, tokenize: Callable[[str], Tensor] | None, vocab_size: int, max_tokens: int
) -> Tensor:
    documents: list[Tensor] = []
    left = max_tokens
    for file in files:
        for document in _documents(file, root, tokenize, vocab_size):
            documents.append(document[:left])
            left -= len(documents[-1])
        if left <= 0:
            logger.warning(
                "specplug: %s has more than max_tokens=%d tokens; what follows is left out.", root, max_tokens
            )
            break
    if max_tokens - left < 2:  # nothing goes on behind a single token
        raise OptionError(f"{DRAFTER}: {str(root)!r} has {max_tokens - left} tokens; two are the least.")
    return in_pieces(documents)


def _documents(file: Path, root: Path, tokenize: Callable[[str], Tensor] | None, vocab_size: int) -> Sequence[Tensor]:
    if file.suffix == TOKENS:
        tokens, ends = read_tokens(file)
    else:
        assert tokenize is not None  # Need.TOKENIZER
        tokens = tokenize(read_text(file, root)).cpu()
        ends = torch.tensor([len(tokens)])
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(wrong):
        raise OptionError(
            f"{DRAFTER}: {str(file)!r} holds token {int(wrong[0])}; the target's vocabulary has {vocab_size} tokens."
        )
    return list(torch.split(tokens, ends.diff(prepend=ends.new_zeros(1)).tolist()))
