"""A draft with another tokenizer: it drafts the tokens that both have (token-level intersection, arXiv 2502.05202, section 3.3).

Tokens of the same text are the same token. What the draft proposes is drawn from its law over those alone, and that law goes
to verification, so the output is the target's whatever the draft leaves out. The draft reads the target's tokens one by one:
a token that it does not have is read as the last piece of its text, which costs acceptance and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specplug import UnsupportedError

MIN_SHARE = 0.1  # of the smaller vocabulary: with fewer common tokens a draft says next to nothing


@dataclass(frozen=True, slots=True)
class TranslatedDraft:
    """A draft model with its tokenizer and the target's, for `draft_model=` where they cannot be found by the models' names."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Translation:
    """`to_draft` [V] int64: the draft's token that stands for each of the target's; `from_draft` [V]: the same one, -1 = none."""

    to_draft: Tensor
    from_draft: Tensor

    def tokens(self, tokens: Tensor) -> Tensor:
        """The target's `tokens`, any shape, as the draft reads them."""
        return self.to_draft[tokens]

    def logits(self, logits: Tensor) -> Tensor:
        """The draft's `logits` [..., V_draft] over the target's tokens [..., V]; the lowest number for what it does not have."""
        found = logits.index_select(-1, self.from_draft.clamp(min=0))
        return found.masked_fill_(self.from_draft < 0, torch.finfo(logits.dtype).min)

    def to(self, device: torch.device) -> Translation:
        """The same on `device`."""
        return Translation(self.to_draft.to(device), self.from_draft.to(device))


def translation_between(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, vocab_size: int, draft_size: int
) -> Translation:
    """The tokens that both have. `vocab_size`, `draft_size`: of the models, padding included.

    Raises `UnsupportedError` if they have too little in common.
    """
    known = {_surface(draft, text): token for text, token in draft.get_vocab().items() if token < draft_size}
    from_draft, to_draft = torch.full((vocab_size,), -1), torch.zeros(vocab_size, dtype=torch.int64)
    for text, token in target.get_vocab().items():
        if token >= vocab_size:
            continue
        same = known.get(_surface(target, text), -1)
        from_draft[token] = same
        to_draft[token] = same if same >= 0 else _last_piece(draft, target, token, draft_size)
    _join_ends(target, draft, from_draft, to_draft)
    shared, smaller = int((from_draft >= 0).sum()), min(len(target.get_vocab()), len(known))
    if shared < MIN_SHARE * smaller:
        raise UnsupportedError(
            f"Target and draft share {shared} of {smaller} tokens: with so few a draft cannot say what the target would. "
            "Use a draft with the target's tokenizer."
        )
    return Translation(to_draft, from_draft)


def translation_by_name(target: PreTrainedModel, draft: PreTrainedModel, sizes: tuple[int, int]) -> Translation:
    """`translation_between` with the tokenizers found where the models were loaded from; `UnsupportedError` if there are none."""
    found = []
    for role, model in (("target", target), ("draft", draft)):
        try:
            found.append(AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnsupportedError(
                f"Target and draft have different vocabularies: {sizes[0]} and {sizes[1]} tokens, and the tokenizer of the "
                f"{role} cannot be loaded from {model.name_or_path!r}. Use a draft with the target's tokenizer, or pass "
                "draft_model=specplug_hf.translation.TranslatedDraft(model, tokenizer, target_tokenizer)."
            ) from error
    return translation_between(found[0], found[1], *sizes)


def _surface(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A token's text with its leading space written one way; special tokens are kept apart from text that looks like them."""
    if text in tokenizer.all_special_tokens:
        return f"\0special {text}"
    return text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t")


def _last_piece(draft: Any, target: Any, token: int, draft_size: int) -> int:
    """The last token of the draft's own reading of a target's token."""
    pieces = draft.encode(target.decode([token]), add_special_tokens=False)
    known = [piece for piece in pieces if piece < draft_size]
    if known:
        return int(known[-1])
    return int(draft.unk_token_id or 0)


def _join_ends(target: Any, draft: Any, from_draft: Tensor, to_draft: Tensor) -> None:
    """The tokens that end a text mean the same, whatever they are called."""
    ends = target.eos_token_id, draft.eos_token_id
    if ends[0] is not None and ends[1] is not None and ends[0] < len(from_draft):
        from_draft[ends[0]] = to_draft[ends[0]] = ends[1]
