"""The pair's figures: `python -m specplug_hf.demo.agreement` prints losses, agreement, step times."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaForCausalLM

from specplug_hf.training.continuations import extend

from .pair import DRAFT_FOLDER, TARGET_FOLDER, load_model, load_tokenizer
from .prompts import count, prompt
from .trainer import next_token_loss


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor, length: int = 1024, most: int = 60) -> float:
    """Nats a token over at most `most` windows of `length` of the stream `tokens` `[T]`."""
    starts = range(0, len(tokens) - length + 1, length)[:most]
    if not starts:
        raise ValueError(f"a stream of {len(tokens)} tokens is too short for windows of {length}")
    windows = (tokens[s : s + length][None].to(model.device) for s in starts)
    return sum(float(next_token_loss(model, w)) for w in windows) / (len(starts) * (length - 1))


@torch.no_grad()
def loss_by_position(model: LlamaForCausalLM, prompts: torch.Tensor, spans: list[tuple[int, int]]) -> list[float]:
    """Nats a token of `prompts` `[B, T]` within each span of positions `[first, last)`, given all that comes before."""
    totals = [0.0] * len(spans)
    for row in prompts:
        logits = model(input_ids=row[None].to(model.device), use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, row[1:].to(model.device), reduction="none")
        for i, (first, last) in enumerate(spans):
            totals[i] += float(losses[first - 1 : last - 1].mean()) / len(prompts)
    return totals


@torch.no_grad()
def agreement(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: torch.Tensor,
    new: int = 96,
    dtype: torch.dtype | None = None,
) -> float:
    """The share of the target's greedy continuations of `prompts` `[B, T]` that the draft's greedy choice predicts.

    The target's products are computed in `dtype`, as in `extend`. Tokens after an end token do not count.
    """
    ids = extend(target, prompts.to(target.device), new, dtype=dtype)
    choice = draft(input_ids=ids[:, :-1], use_cache=False).logits[:, -new:].argmax(-1)
    wanted = ids[:, -new:]
    counts = (wanted == target.config.eos_token_id).cumsum(-1) <= (wanted == target.config.eos_token_id)
    return float((choice == wanted)[counts].float().mean())


@torch.no_grad()
def step_seconds(model: LlamaForCausalLM, ids: torch.Tensor, steps: int = 40) -> float:
    """Median seconds of one decode step after `ids` `[B, T]`."""
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        times.append(time.perf_counter() - begun)
    return sorted(times)[steps // 2]


def main(argv: list[str] | None = None) -> None:
    """Print the shipped pair's figures, or those of the pair in `--target` and `--draft`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET_FOLDER)
    parser.add_argument("--draft", type=Path, default=DRAFT_FOLDER)
    parser.add_argument("--long", type=int, default=4, help="prompts of 8,832 tokens to measure (0 for none)")
    parser.add_argument("--samples", type=int, default=0, help="continuations of 80 tokens to print")
    args = parser.parse_args(argv)
    target, draft = load_model(args.target), load_model(args.draft)
    prompts = torch.cat([prompt(256, i) for i in range(count())])
    stream = torch.cat([prompt(4096, i)[0] for i in range(count())])
    for name, model in (("target", target), ("draft", draft)):
        size = sum(p.numel() for p in model.parameters())
        print(
            f"{name}: {size / 1e6:.3f} M parameters, {held_out_loss(model, stream):.3f} nats a token at context 1024,"
        )
        print(f"    {1e3 * step_seconds(model, prompts[:1]):.2f} ms a decode step, {torch.get_num_threads()} threads")
    for new in (96, 256):
        greedy = agreement(target, draft, prompts, new)
        print(f"greedy agreement on the target's own continuations: {greedy:.3f} ({count()} prompts of 256, {new} new)")
    if args.long:
        spans = [(768, 1024), (3840, 4096), (8064, 8832)]
        long = torch.cat([prompt(8832, i) for i in range(args.long)])
        for name, model in (("target", target), ("draft", draft)):
            losses = loss_by_position(model, long, spans)
            print(
                f"{name} by position: "
                + ", ".join(f"{a}-{b}: {v:.3f}" for (a, b), v in zip(spans, losses, strict=True))
            )
    for i in range(args.samples):
        print(f"--- {i}\n{load_tokenizer().decode(extend(target, prompt(256, i), 80)[0, 176:])}")


if __name__ == "__main__":
    main()
