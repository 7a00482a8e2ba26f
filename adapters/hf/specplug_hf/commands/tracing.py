"""What `specplug trace` does: refuse what cannot be, generate while recording, write the page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from specplug import OptionError, Speculator, trace
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models, load_as_saved
from specplug_hf.commands.options import ModelOptions

WARM_UP = 2  # tokens of plain decoding beforehand: a process's first forwards are no others' measure
TITLE = "specplug trace"


class Tracing:
    """One invocation of the command. What can be refused is refused before the model is loaded."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self._check_sampling()
        self.text = _text_of(arguments.prompt)
        self._check_files()
        speculator(arguments, arguments.draft or ("built-in" if arguments.model is None else None))
        self.models = load_as_saved(ModelOptions.of(arguments))
        self.models.target.generation_config = _settings(self.models)
        self.prompt = Prompts(self.models, arguments.model is None).encode(self.text)

    def run(self) -> int:
        """Generate, write, say what was written; 0."""
        self._generate(max_new_tokens=WARM_UP, do_sample=False)
        spec = speculator(self.arguments, self.models.draft)
        with trace.recording() as recording:
            self._generate(assistant=spec, max_new_tokens=self.arguments.max_new_tokens, **self._law())
        described = trace.describe(recording, self._decode, self._about())
        print(summary(described["totals"]))
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps(described, indent=1) + "\n")
            print(f"data: {self.arguments.json}")
        if self.arguments.html:
            self.arguments.html.write_text(trace.render(described, TITLE), encoding="utf-8")
            print(f"page: {self.arguments.html} (open it in a browser)")
        return 0

    def _generate(self, **keywords: Any) -> None:
        self.models.target.generate(**self.prompt.inputs(), **keywords)

    def _law(self) -> dict[str, Any]:
        if not self.arguments.sample:
            return {"do_sample": False}
        temperature = 1.0 if self.arguments.temperature is None else self.arguments.temperature
        return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}

    def _decode(self, tokens: Sequence[int]) -> str:
        """Special tokens stay visible, and no space is tidied away: a text must begin as its beginning does."""
        text: str = self.models.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _about(self) -> dict[str, str]:
        asked, law = self.arguments, self._law()
        draft = asked.draft or ("built-in" if self.models.draft is not None else "none")
        return {
            "Model": self.models.name,
            "Draft": draft,
            "Drafter": asked.drafter,
            "Tree": asked.tree,
            "Controller": asked.controller,
            "Decoding": f"sampled, temperature {law['temperature']:g}, seed {_seed(asked)}"
            if asked.sample
            else "greedy",
        }

    def _check_sampling(self) -> None:
        asked = self.arguments
        if not asked.sample and (asked.temperature is not None or asked.seed is not None):
            raise OptionError("--temperature and --seed are of samples; add --sample.")
        if asked.temperature is not None and not asked.temperature > 0:
            raise OptionError(f"--temperature {asked.temperature:g} must be positive; without --sample it is as if 0.")

    def _check_files(self) -> None:
        asked = self.arguments
        if not asked.html and not asked.json:
            raise OptionError("Nothing to write: give --html FILE for the page, or --json FILE for what it shows.")
        if asked.html and asked.json and asked.html.resolve() == asked.json.resolve():
            raise OptionError(f"--html and --json are the same file, {asked.html}; give two.")
        for option, file in (("--html", asked.html), ("--json", asked.json)):
            if file:
                _check_writable(option, file)


def speculator(arguments: argparse.Namespace, draft: Any) -> Speculator:
    """What the options ask for. `draft`: the loaded draft, or any name for it to have the options checked."""
    drafter = str(arguments.drafter).partition(":")[0]
    if drafter == "model" and draft is None:
        raise OptionError("--drafter model needs a draft: give --draft PATH.")
    uses_draft = drafter in ("auto", "model") or arguments.draft is not None
    return Speculator(
        drafter=arguments.drafter,
        draft_model=draft if uses_draft else None,
        kv_policy=arguments.kv_policy,
        tree=arguments.tree,
        controller=arguments.controller,
        seed=_seed(arguments),
    )


def summary(totals: dict[str, Any]) -> str:
    """What a recording came to, in a line."""
    count = max(1, totals["tokens"])
    shares = ", ".join(f"{totals[name]} {name} ({totals[name] / count:.0%})" for name in ("accepted", "bonus", "plain"))
    return (
        f"{totals['tokens']} tokens in {totals['rounds']} rounds: {shares}; "
        f"{totals['accepted_length']:.2f} tokens a round, {totals['tokens_per_second']:.0f} tokens/s while recorded"
    )


def _seed(arguments: argparse.Namespace) -> int:
    return arguments.seed or 0


def _text_of(prompt: str) -> str:
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        source = "Standard input" if prompt == "-" else "The prompt"
        raise OptionError(f"{source} is empty: give at least one character to go on with.")
    return text


def _check_writable(option: str, file: Path) -> None:
    """By writing: permissions alone do not tell."""
    existed = file.exists()
    try:
        with file.open("ab"):
            pass
    except OSError as error:
        raise OptionError(f"{option} {file} cannot be written: {error.strerror}.") from error
    if not existed:
        file.unlink()


def _settings(models: Models) -> GenerationConfig:
    """Only the model's own special tokens: what else it would do by default is not asked for here."""
    own = models.target.generation_config
    end = own.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else (end[0] if isinstance(end, list) else end)
    return GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=end, pad_token_id=0 if pad is None else pad, do_sample=False
    )
