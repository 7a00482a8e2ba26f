"""Plain generation by transformers: what a speculated one is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from specplug_conformance.llama.tiny import disturbed, tiny
from specplug_conformance.request import Request, Rule

PAD = 0


class RuleProcessor(LogitsProcessor):
    """A `Rule` as transformers takes processors."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + torch.stack([self.rule(row) for row in input_ids.tolist()]).to(scores)


class LlamaWorld:
    """A tiny Llama and a disturbed copy of it. A subject's world adds `speculated`."""

    def __init__(self, seed: int, vocab: int, dtype: str) -> None:
        self.seed, self.vocab, self.dtype = seed, vocab, dtype
        sizes: dict[str, Any] = dict(
            hidden_size=32, intermediate_size=48, bos_token_id=None, max_position_embeddings=128
        )
        self.model: Any = tiny(seed, "float64", vocab=vocab, scale=0.3, **sizes)
        self.draft: Any = disturbed(self.model, 0.1, seed + 1).to(getattr(torch, dtype))
        self.model.to(getattr(torch, dtype))

    def plain(self, request: Request) -> list[list[int]]:
        return self.rows(self.model.generate(**self.call(request)), request)

    def scores(self, tokens: Sequence[int], request: Request, prompt_length: int) -> Tensor:
        padding = max(map(len, request.prompts)) + request.padding - prompt_length
        call = self.call(Request((tuple(tokens),), 1)) | self._options(request)
        ids = torch.nn.functional.pad(call["input_ids"], (padding, 0), value=PAD)
        mask = torch.nn.functional.pad(call["attention_mask"], (padding, 0), value=0)
        call |= {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 1}
        found: Tensor = self.model.generate(**call, return_dict_in_generate=True, output_scores=True).scores[0][0]
        return found

    @torch.no_grad()
    def fresh(self, tokens: Sequence[int]) -> list[Tensor]:
        cache: Any = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
        return [by_token(part[0]) for layer in cache.layers for part in (layer.keys, layer.values)]

    def fingerprint(self) -> Hashable:
        """Weights, settings and hooks of both models."""
        weights = [p.detach().numpy().tobytes() for m in (self.model, self.draft) for p in m.parameters()]
        settings = [str(m.config.to_dict()) + str(m.generation_config.to_dict()) for m in (self.model, self.draft)]
        hooks = sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for m in (self.model, self.draft)
            for module in m.modules()
        )
        return hashlib.sha256(b"".join(weights)).hexdigest(), tuple(settings), hooks

    def call(self, request: Request) -> dict[str, Any]:
        """Keywords for `generate`: prompts padded on the left."""
        width = max(map(len, request.prompts)) + request.padding
        ids = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in request.prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in request.prompts]
        call = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return call | {"max_new_tokens": request.new_tokens} | self._options(request)

    def _options(self, request: Request) -> dict[str, Any]:
        options: dict[str, Any] = {"do_sample": request.seeds is not None, "pad_token_id": PAD}
        if request.seeds is not None:
            options |= {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}
        if request.repetition_penalty != 1.0:
            options["repetition_penalty"] = request.repetition_penalty
        if request.rule is not None:
            options["logits_processor"] = LogitsProcessorList([RuleProcessor(request.rule)])
        if request.end_tokens:
            options["eos_token_id"] = list(request.end_tokens)
        return options

    def rows(self, output: Tensor, request: Request) -> list[list[int]]:
        """New tokens of each row, its end token the last; all of them if anything but padding follows it."""
        width = max(map(len, request.prompts)) + request.padding
        return [_until_end(text, request.end_tokens) for text in output[:, width:].tolist()]


def _until_end(text: list[int], end_tokens: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(text) if token in end_tokens), len(text))
    return text if any(token != PAD for token in text[end + 1 :]) else text[: end + 1]


def by_token(part: Tensor) -> Tensor:
    """Keys or values [H, n, D] as [n, H * D], a copy."""
    return part.transpose(0, 1).flatten(1).clone()
