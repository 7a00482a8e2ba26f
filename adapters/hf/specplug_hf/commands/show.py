"""Text as it is written: plain, and with the accepted draft tokens coloured."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers.generation import BaseStreamer

from specplug import Round, Speculator
from specplug.hookspecs import hookimpl
from specplug.plugins import plugins
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.measure import call
from specplug_hf.commands.models import Models
from specplug_hf.commands.setups import Option

GREEN, DIM, BOLD, RESET = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
TAIL_LINES = 4


def styled(text: str, style: str) -> str:
    """`text` in `style` on a terminal; as it is in a file or with NO_COLOR set."""
    if not text or not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")) or os.environ.get("NO_COLOR"):
        return text
    return f"{style}{text}{RESET}"


@dataclass
class TextPrinter:
    """Writes tokens as text as soon as they make whole characters."""

    tokenizer: Any
    ids: list[int] = field(default_factory=list)
    printed: int = 0

    def put(self, token: int, style: str = "") -> None:
        """One more token."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if text.endswith("�"):
            return  # an unfinished character
        piece, self.printed = text[self.printed :], len(text)
        sys.stdout.write(styled(piece, style) if style else piece)
        sys.stdout.flush()


class PlainStreamer(BaseStreamer):
    """Prints what plain `generate` puts, the prompt left out."""

    def __init__(self, printer: TextPrinter) -> None:
        self._printer, self._prompt_seen = printer, False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._printer.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to do."""


class RoundPrinter:
    """A plugin that listens to rounds and prints the first row: accepted draft tokens green, the target's own plain."""

    def __init__(self, printer: TextPrinter) -> None:
        self._printer, self._started = printer, False

    @hookimpl
    def specplug_round_finished(self, event: Round) -> None:
        """Print what the round added."""
        if not self._started:  # the token that came with the prompt
            self._printer.put(int(event.batch.roots[0]))
            self._started = True
        accepted, kept = int(event.verdict.num_accepted[0]), int(event.commit.num_new[0])
        for place, token in enumerate(event.verdict.tokens(event.trees)[0, :kept].tolist()):
            self._printer.put(token, GREEN if place < accepted else "")


def show_plain(models: Models, batch: PromptBatch, new_tokens: int) -> Tensor:
    """Print the end of the prompt, then plain `generate` streaming; the new tokens."""
    prompt = models.tokenizer.decode(batch.input_ids[0][batch.attention_mask[0].bool()])
    print(styled("\n".join(["...", *prompt.split("\n")[-TAIL_LINES:]]), DIM) + styled("\n--- plain generate", BOLD))
    streamer = PlainStreamer(TextPrinter(models.tokenizer))
    start = perf_counter()
    output = call(models, Option("plain"), batch, new_tokens, streamer=streamer)
    return _finish(output, batch, perf_counter() - start, "")


def show_speculation(models: Models, option: Option, what: str, batch: PromptBatch, new_tokens: int) -> Tensor:
    """The same with specplug, round by round; the new tokens."""
    legend = f"{styled('green', GREEN)}: drafted and accepted"
    print(styled(f"--- specplug: {what}", BOLD) + f"  ({legend})")
    listener = RoundPrinter(TextPrinter(models.tokenizer))
    manager = plugins().manager
    manager.register(listener)
    try:
        start = perf_counter()
        output = call(models, option, batch, new_tokens)
        seconds = perf_counter() - start
    finally:
        manager.unregister(listener)
    speculator = option.speculator
    assert isinstance(speculator, Speculator)
    return _finish(output, batch, seconds, f", {speculator.stats.accepted_length:.2f} tokens a round")


def _finish(output: Tensor, batch: PromptBatch, seconds: float, more: str) -> Tensor:
    new = output[:, batch.input_ids.shape[1] :]
    tokens = new.shape[1]
    print(styled(f"\n--- {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s{more}\n", BOLD))
    return new
