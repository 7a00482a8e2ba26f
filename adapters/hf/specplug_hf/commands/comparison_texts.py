"""Three kinds of text to compare drafters on. The rules look at the text and at what the target writes, at no drafter.

Code: places of the held-out texts that ship, at ends of lines, more than two thirds of whose prompt stand outside comments
and strings of several lines. The target goes on greedily; of the n-grams of four tokens that end in its continuation, some
share stood earlier in prompt or continuation. "repeating code" has the places with the largest share, "other code" those
with the smallest. Prose: docstrings of the held-out modules of this Python's standard library, an opening quote before them.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from specplug import OptionError
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.measure import call
from specplug_hf.commands.models import Models
from specplug_hf.commands.setups import plain

REPEATING, OTHER, PROSE = "repeating code", "other code", "prose"
KINDS = (REPEATING, OTHER, PROSE)
GRAM = 4  # tokens of an n-gram
PLACES = tuple(eighths / 8 for eighths in range(1, 8))  # of a text, where prompts end
MOST_PROSE = 1 / 3  # of the characters of a prompt that counts as code
TOGETHER = 8  # rows that the target continues at a time


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and the share of the n-grams of the target's continuation that stood before."""

    name: str
    ids: tuple[int, ...]
    share: float

    def batch(self, device: torch.device) -> PromptBatch:
        """As a batch of one row."""
        ids = torch.tensor([self.ids], device=device)
        return PromptBatch(ids, torch.ones_like(ids), self.name)


def texts(models: Models, context: int, new_tokens: int, count: int, quiet: bool = False) -> dict[str, list[Text]]:
    """`count` prompts of `context` tokens of every kind, each kind's clearest first. `OptionError` if there are too few."""
    prompts = {kind: list(found(models, context)) for kind, found in (("code", code), (PROSE, prose))}
    if len(prompts["code"]) < 2 * count or len(prompts[PROSE]) < count:
        raise OptionError(
            f"There are {len(prompts['code'])} places in code and {len(prompts[PROSE])} texts of prose with {context} "
            f"tokens; {2 * count} and {count} are needed: ask for fewer --prompts or a shorter --context."
        )
    prompts[PROSE] = prompts[PROSE][:count]
    written = _continued(models, prompts["code"] + prompts[PROSE], new_tokens, quiet)
    by_share = sorted(written[: len(prompts["code"])], key=lambda text: (-text.share, text.name))
    return {REPEATING: by_share[:count], OTHER: by_share[::-1][:count], PROSE: written[len(prompts["code"]) :]}


def code(models: Models, context: int) -> Iterator[tuple[str, list[int]]]:
    """Name and `context` tokens of every place of the texts that ship which counts as code."""
    from specplug_hf.demo import prompts  # noqa: PLC0415  (its texts are read when they are asked for)

    for index in range(prompts.count()):
        text = prompts.prompt_text(prompts.TEXT_TOKENS, index)
        spans = prose_spans(text)
        for place in PLACES:
            end = text.find("\n", int(place * len(text)))
            ids = _encode(models, text[:end])[-context:]
            start = end - len(models.tokenizer.decode(ids))
            inside = sum(max(0, min(stop, end) - max(first, start)) for first, stop in spans)
            unfinished = any(first < end < stop for first, stop in spans)
            if len(ids) == context and not unfinished and inside < MOST_PROSE * (end - start):
                yield f"text {index} at {place:g}", ids


def prose(models: Models, context: int) -> Iterator[tuple[str, list[int]]]:
    """Name and first `context` tokens of the docstrings of every held-out module that has as many, in order of a hash."""
    from specplug_hf.demo.corpus import is_held_out, library_files  # noqa: PLC0415

    held = [(name, text) for name, text in library_files() if is_held_out(name)]
    for name, text in sorted(held, key=lambda file: hashlib.sha256(file[0].encode()).hexdigest()):
        ids = _encode(models, '"""' + "\n\n".join(docstrings(text)))
        if len(ids) >= context:
            yield f"docstrings of {name}", ids[:context]


def docstrings(source: str) -> list[str]:
    """The docstrings of a module, its classes and functions, without indentation; none of what cannot be parsed."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    except SyntaxError:
        return []
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [found for node in nodes if (found := ast.get_docstring(node))]


def prose_spans(source: str) -> list[tuple[int, int]]:
    """Characters [first, last) of comments and of strings of several lines, as far as `source` can be read."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            several = token.type == tokenize.STRING and token.end[0] > token.start[0]
            if several or token.type == tokenize.COMMENT:
                first, last = (starts[line - 1] + column for line, column in (token.start, token.end))
                spans.append((first, last))
    except (tokenize.TokenError, SyntaxError):
        pass  # the texts that ship are cut at their end
    return spans


def repeated_share(prompt: Sequence[int], continuation: Sequence[int], gram: int = GRAM) -> float:
    """The share of the n-grams ending in `continuation` that stood earlier in the text. 0 without any n-gram."""
    text = [*prompt, *continuation]
    grams = [tuple(text[end - gram : end]) for end in range(gram, len(text) + 1)]
    fresh = max(0, len(prompt) - gram + 1)  # the first n-gram that ends in the continuation
    seen, repeated = set(grams[:fresh]), 0
    for one in grams[fresh:]:
        repeated += one in seen
        seen.add(one)
    return repeated / len(grams[fresh:]) if grams[fresh:] else 0.0


def _encode(models: Models, text: str) -> list[int]:
    ids: list[int] = models.tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def _continued(models: Models, prompts: list[tuple[str, list[int]]], new_tokens: int, quiet: bool) -> list[Text]:
    """The prompts with the shares of what plain `generate` goes on with."""
    written = []
    option, device = plain(models).option, models.target.device
    blocks = [prompts[start : start + TOGETHER] for start in range(0, len(prompts), TOGETHER)]
    for block in tqdm(blocks, desc="choosing texts", disable=quiet or None, leave=False):
        ids = torch.tensor([ids for _, ids in block], device=device)
        output = call(models, option, PromptBatch(ids, torch.ones_like(ids), "texts"), new_tokens).tolist()
        for (name, prompt), row in zip(block, output, strict=True):
            share = repeated_share(prompt, row[len(prompt) :])
            written.append(Text(name, tuple(prompt), share))
    return written
