"""The recipe of the pair: `python -m specplug_hf.demo.train all --out DIR` trains the target, then the draft.

Seeded; shows its progress; goes on where it stopped when it is started again with the same arguments. It takes the GPU
where there is one, in mixed precision; `--context 16k` trains beyond what the shipped pair was shown (docs/gpu.md). The budget
is wall-clock minutes, or `--tokens`: then two runs on one machine give equal weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from specplug.commands.plan_options import whole
from specplug.errors import OptionError
from specplug_hf.training.continuations import Continuations, write_continuations
from specplug_hf.training.hardware import keep_memory

from .agreement import agreement, held_out_loss
from .corpus import library_files, load_tokenizer, save_tokenizer, split, stream
from .distil import distillation_loss
from .prompts import write_prompts
from .resize import mean, narrow
from .shapes import DRAFT, TARGET, Shape
from .trainer import Phase, Recipe, Trainer

CONTEXT = 8704  # tokens of the longest sequences; `--context` says otherwise
DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Most of the time short, the last part beyond 8.3k tokens. The target starts with half its layers, which is faster.
TARGET_PHASES = (
    Phase(until=0.35, length=512, layers=4),
    Phase(until=0.79, length=512, layers=8),
    Phase(until=0.88, length=4096, layers=8),
    Phase(until=1.00, length=CONTEXT, layers=8),
)
# For a target that goes on from trained weights (`--start`).
REFINING_PHASES = (
    Phase(until=0.72, length=512, layers=8),
    Phase(until=0.80, length=2048, layers=8),
    Phase(until=1.00, length=CONTEXT, layers=8),
)
REFINING_RATE, REFINING_DECAY_FROM = 0.3, 0.2
OWN_TEXT_RATE = 0.5
DRAFT_PHASES = (Phase(until=0.6, length=512, layers=2), Phase(until=1.00, length=CONTEXT, layers=2))
TARGET_SHARE = 0.56  # of the budget; the draft has the rest
CORPUS_SHARE = 0.12  # of the draft's; the rest writes and learns the target's own texts


@dataclass(frozen=True, slots=True)
class OwnTexts:
    """Texts of the target's that the draft learns from: their size, and the shares of the draft's time."""

    name: str
    texts: Continuations
    writing: float
    learning: float
    remembered: int  # rows whose answers are kept: 6 kB a token


# Short texts, longer ones, long ones: a draft attends no further than it has been shown. Long texts make it forget how the
# short ones go on, so the draft is the mean of what it was before and after them.
OWN_TEXTS = (
    OwnTexts("own", Continuations(rows=48, prompt=160, new=160), writing=0.10, learning=0.28, remembered=4000),
    OwnTexts("own-mid", Continuations(rows=32, prompt=256, new=512), writing=0.13, learning=0.20, remembered=1600),
    OwnTexts("own-long", Continuations(rows=8, prompt=1792, new=256), writing=0.05, learning=0.12, remembered=300),
)


@dataclass(frozen=True, slots=True)
class Job:
    """What the stages share: budget (minutes, or tokens where not 0), seed, folder, device, and the data."""

    minutes: float
    tokens: int
    seed: int
    out: Path
    start: Path | None
    device: torch.device
    tokenizer: Tokenizer
    data: torch.Tensor
    held: torch.Tensor
    context: int = CONTEXT
    dtype: torch.dtype | None = None

    def recipe(self, phases: tuple[Phase, ...], share: float, rate: float = 1.0) -> Recipe:
        """The recipe for `share` of the budget, learning rates times `rate`; bigger batches on a GPU."""
        recipe = Recipe(phases, self.minutes * share, int(self.tokens * share), seed=self.seed, dtype=self.dtype)
        recipe = replace(recipe, matrix_rate=recipe.matrix_rate * rate, vector_rate=recipe.vector_rate * rate)
        return replace(recipe, batch_tokens=16384, micro_tokens=32768) if self.device.type == "cuda" else recipe

    def phases(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """`phases` with sequences of `context` tokens in the last one, and none longer in those before it."""
        if self.context == CONTEXT:
            return phases
        earlier = (replace(phase, length=min(phase.length, self.context)) for phase in phases[:-1])
        return (*earlier, replace(phases[-1], length=self.context))

    def shape(self, shape: Shape) -> Shape:
        """`shape` with a position for every token of `context`."""
        return replace(shape, positions=max(shape.positions, self.context))

    def start_from(self, name: str) -> LlamaForCausalLM:
        """The model to go on from, with as many positions."""
        assert self.start is not None
        model = load(self.start / name)
        model.config.max_position_embeddings = max(model.config.max_position_embeddings, self.context)
        return model

    def writing(self, plan: Continuations, share: float) -> Continuations:
        """`plan` for `share` of the budget."""
        if self.tokens:
            return replace(plan, batches=-(-int(self.tokens * share) // (plan.rows * plan.new)))
        return replace(plan, minutes=self.minutes * share)


def train_target(job: Job) -> LlamaForCausalLM:
    """Train the target on the corpus, from `job.start / "target"` where given; save it in `job.out / "target"`."""
    recipe, model = job.recipe(job.phases(TARGET_PHASES), TARGET_SHARE), None
    if job.start:
        recipe = job.recipe(job.phases(REFINING_PHASES), TARGET_SHARE, REFINING_RATE)
        recipe, model = replace(recipe, decay_from=REFINING_DECAY_FROM), job.start_from("target")
    trainer = Trainer(job.shape(TARGET), recipe, job.data, job.out / "target-state", job.device, start=model)
    model = trainer.run()
    _report(job, "target", model, [trainer])
    return model


def train_draft(job: Job, target: LlamaForCausalLM) -> LlamaForCausalLM:
    """Distil the draft from `target` and save it in `job.out / "draft"`: the corpus, then the target's texts."""
    share, loss, shape = 1 - TARGET_SHARE, distillation_loss(target), job.shape(DRAFT)
    recipe = job.recipe(job.phases(DRAFT_PHASES), share * CORPUS_SHARE, REFINING_RATE if job.start else 1.0)
    start = narrow(job.start_from("draft"), shape) if job.start else None
    first = Trainer(shape, recipe, job.data, job.out / "draft-state", job.device, loss, start)
    draft, runs = first.run(), [first]
    for own in OWN_TEXTS:
        before = copy.deepcopy(draft)  # training is in place
        plan = job.writing(own.texts, share * own.writing)
        rows = write_continuations(target, job.data, plan, job.out / own.name, job.seed, job.dtype)
        phase = Phase(until=1.0, length=rows.shape[1], layers=shape.layers)
        recipe = job.recipe((phase,), share * own.learning, OWN_TEXT_RATE)
        loss = distillation_loss(target, remembered_rows=own.remembered)
        runs.append(Trainer(shape, recipe, rows, job.out / f"draft-{own.name}-state", job.device, loss, start=draft))
        draft = runs[-1].run()
    draft = mean(before, draft)
    _report(job, "draft", draft, runs)
    prompts = torch.stack(list(job.held[: len(job.held) // 256 * 256].view(-1, 256)[:48]))
    agreed = agreement(target, draft, prompts, dtype=job.dtype)
    print(f"greedy agreement on the target's own continuations: {agreed:.3f}", flush=True)
    return draft


def load(folder: Path) -> LlamaForCausalLM:
    """The model in `folder`, float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def _report(job: Job, name: str, model: LlamaForCausalLM, runs: list[Trainer]) -> None:
    """Print and save: figures, fp16 weights, tokenizer."""
    loss = held_out_loss(model.float(), job.held)
    size, seen = sum(p.numel() for p in model.parameters()), sum(run.progress.seen for run in runs)
    print(f"{name}: {size / 1e6:.3f} M parameters, {seen / 1e6:.2f} M tokens, held-out loss {loss:.4f} nats a token")
    save_model(model, job.tokenizer, job.out / name)


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Save fp16 safetensors, configuration and tokenizer in Hugging Face format; `model` stays as it is."""
    weights = {name: p.detach().to("cpu", torch.float16) for name, p in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.float16)
    copy.load_state_dict(weights)
    copy.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
    path = folder / "tokenizer_config.json"  # a class name that transformers 4 knows too
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", default="all", choices=["all", "target", "draft", "prompts"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the models and the state to resume from")
    parser.add_argument("--start", type=Path, help="folder with a trained target/ and draft/ to go on from")
    parser.add_argument("--minutes", type=float, default=180.0, help="for target and draft together (default: 180)")
    parser.add_argument("--tokens", type=int, default=0, help="budget in training tokens, in place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, ...")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=list(DTYPES),
        help="that products are computed in, weights in float32: auto is bfloat16 on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--context",
        type=_tokens,
        default=CONTEXT,
        metavar="N",
        help="the longest sequences, 16k = 16384 (default: 8704)",
    )
    return parser.parse_args(argv)


def _tokens(text: str) -> int:
    """`16k` as a number, for argparse."""
    try:
        tokens = whole("--context", text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if tokens < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: a sequence has two tokens or more")
    return tokens


def main(argv: list[str] | None = None) -> None:
    """Run the stages that were asked for; `draft` takes the target that is in `--out`."""
    args = parse(argv)
    keep_memory()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    files = library_files()
    training, held_out = split(files)
    if args.start and not (args.out / "tokenizer.json").exists():
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.start / "target" / "tokenizer.json", args.out / "tokenizer.json")
    tokenizer = load_tokenizer(args.out, training)
    data, held = stream(tokenizer, training), stream(tokenizer, held_out)
    print(f"{len(data)} training tokens, {len(held)} held out, on {name}", flush=True)
    job = Job(
        args.minutes, args.tokens, args.seed, args.out, args.start, torch.device(name), tokenizer, data, held,
        args.context, DTYPES[args.dtype],
    )  # fmt: skip
    if args.stage in ("all", "prompts"):
        write_prompts(files, tokenizer, args.out / "prompts")
    if args.stage in ("all", "target"):
        train_target(job)
    if args.stage in ("all", "draft"):
        train_draft(job, load(args.out / "target").to(job.device).eval())


if __name__ == "__main__":
    main()
