"""What the tests of `generate` share: tiny models, prompts with padding, set-ups, and comparison with plain generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specplug import Drafter, DraftRequest, Speculator, TreeBatch, fill_shape
from specplug_conformance.llama.tiny import disturbed, tiny

VOCAB, PAD = 97, 0


@dataclass(repr=False)
class Models:
    """`target`; `draft`: a disturbed copy of it; `stranger`: unrelated to it."""

    target: Any
    draft: Any
    stranger: Any
    expected: dict[Any, Tensor] = field(default_factory=dict)  # what plain generation said, by call


def make_models(dtype: str) -> Models:
    target = tiny(dtype="float64")
    return Models(
        *(m.to(getattr(torch, dtype)) for m in (target, disturbed(target, 0.05), tiny(seed=5, dtype="float64")))
    )


def prompt(rows: int, padding: str = "none", length: int = 11, seed: int = 3, vocab: int = VOCAB) -> dict[str, Tensor]:
    """`input_ids` [rows, length] and `attention_mask`; row r is masked in r + 1 places: left, right, or in holes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab, (rows, length), generator=generator)
    ids[:, length // 2 :] = ids[:, : length - length // 2].clone()  # something to look up
    mask = torch.ones_like(ids)
    for row in range(rows):
        count = row + 1
        if padding == "left":
            mask[row, :count] = 0
        elif padding == "right":
            mask[row, length - count :] = 0
        elif padding == "holes":
            mask[row, 1 + row : 7 : 2] = 0
            mask[row, :row] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


class Hostile(Drafter):
    """Proposes noise, and sometimes the right tokens in the wrong places."""

    checked = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def setup(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        tokens = torch.randint(0, self.host.vocab_size, (batch.num_rows, shape.num_nodes), generator=self._generator)
        tokens[:, 0] = batch.roots
        valid = torch.rand(tokens.shape, generator=self._generator) > 0.2
        valid[:, 0] = True
        parents = torch.tensor(shape.parents)
        for node in range(1, shape.num_nodes):  # nothing hangs on a node that is not there
            valid[:, node] &= valid[:, parents[node]]
        return fill_shape(shape, tokens, valid=valid)


class Oracle(Drafter):
    """Proposes `answers` [B0, T], the tokens that follow the prompts, with some of them spoilt."""

    checked = True

    def __init__(self, answers: Tensor, prompt_length: int, spoil: float = 0.0) -> None:
        self.answers, self.prompt_length, self.spoil = answers, prompt_length, spoil

    def setup(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        tokens = torch.zeros((batch.num_rows, shape.num_nodes), dtype=torch.int64)
        tokens[:, 0] = batch.roots
        assert batch.history_ends is not None
        for place, row in enumerate(batch.rows):
            done = int(batch.history_ends[place]) - self.prompt_length
            answer = self.answers[row, done : done + shape.depth]
            for depth, (start, stop) in enumerate(shape.levels[1:]):
                if depth < len(answer):
                    tokens[place, start:stop] = answer[depth]
                    tokens[place, start + 1 : stop] += 1  # siblings that are wrong
        wrong = torch.rand(tokens.shape, generator=self._generator) < self.spoil
        wrong[:, 0] = False
        return fill_shape(shape, torch.where(wrong, tokens + 1, tokens) % self.host.vocab_size)


TREES = {"chain": "chain:length=4", "kary": "kary:branch=2,depth=3", "sequoia": "sequoia:size=9,depth=4"}
DRAFTERS = ("none", "self", "self-streaming", "model", "model-streaming", "stranger", "prompt_lookup", "hostile")


def speculator(drafter: str, models: Models, tree: str = "sequoia", **more: Any) -> Speculator:
    """One of `DRAFTERS` with one of `TREES`, doing what it is told."""
    shape = TREES.get(tree, tree)
    name, _, policy = drafter.partition("-")
    options: dict[str, Any] = {"controller": "fixed", "tree": shape} | more
    if name in ("self", "model", "stranger"):
        options.setdefault("kv_policy", "streaming:sink=2,window=5" if policy else "full")
    if name == "hostile":
        return Speculator(drafter=Hostile(), **options)
    if name in ("model", "stranger"):
        return Speculator(drafter="model", draft_model=models.draft if name == "model" else models.stranger, **options)
    return Speculator(drafter=name, **options)


def same(ours: Any, plain: Any) -> None:
    """`ours` is what plain generation returned: type, shape, dtype and every token."""
    assert type(ours) is type(plain)
    assert ours.dtype == plain.dtype and ours.device == plain.device
    assert ours.tolist() == plain.tolist()


def same_fields(ours: Any, plain: Any, tolerance: float = 1e-9) -> None:
    """Two dict outputs agree field by field, step by step, layer by layer, in shape and dtype and number."""
    assert type(ours) is type(plain)
    assert list(ours.keys()) == list(plain.keys())
    same(ours.sequences, plain.sequences)
    for name in ("scores", "logits", "hidden_states", "attentions"):
        same_nested(getattr(ours, name), getattr(plain, name), name, tolerance)
    same_cache(ours.past_key_values, plain.past_key_values, None, tolerance)


def same_nested(ours: Any, plain: Any, where: str, tolerance: float = 1e-9) -> None:
    """Nested tuples of tensors agree."""
    assert type(ours) is type(plain), where
    if isinstance(plain, tuple):
        assert len(ours) == len(plain), where
        for index, (a, b) in enumerate(zip(ours, plain, strict=True)):
            same_nested(a, b, f"{where}[{index}]", tolerance)
    elif isinstance(plain, Tensor):
        assert ours.shape == plain.shape, (where, ours.shape, plain.shape)
        assert ours.dtype == plain.dtype, (where, ours.dtype, plain.dtype)
        torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance, msg=lambda text: f"{where}: {text}")
    else:
        assert ours == plain, where


def same_cache(ours: Any, plain: Any, mask: Tensor | None, tolerance: float = 1e-9) -> None:
    """Two caches agree in type, length and content (where `mask` [B, L] says that a column counts)."""
    assert type(ours) is type(plain)
    if plain is None:
        return
    assert ours.get_seq_length() == plain.get_seq_length()
    assert len(ours.layers) == len(plain.layers)
    for index, (a, b) in enumerate(zip(ours.layers, plain.layers, strict=True)):
        assert type(a) is type(b)
        for name in ("keys", "values"):
            x, y = getattr(a, name), getattr(b, name)
            assert x.shape == y.shape and x.dtype == y.dtype, (index, name, x.shape, y.shape)
            if mask is None:
                mask = torch.ones(x.shape[0], x.shape[2])
            seen = torch.nn.functional.pad(mask, (0, x.shape[2] - mask.shape[1]), value=1).bool()
            torch.testing.assert_close(x.transpose(1, 2)[seen], y.transpose(1, 2)[seen], atol=tolerance, rtol=tolerance)


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of `VOCAB` tokens: padding, start, the blank and the 94 printable characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "\u0120", *(chr(code) for code in range(33, 127))]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>")


class Calls:
    """Counts a model's forwards while it is a context manager."""

    def __init__(self, *models: Any) -> None:
        self.models, self.count = models, 0

    def __enter__(self) -> Calls:
        def count(*_: Any, **__: Any) -> None:
            self.count += 1

        self._hooks = [model.register_forward_pre_hook(count) for model in self.models]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
