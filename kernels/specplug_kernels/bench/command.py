"""The command line: which operations, backends and shapes, on which device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.machine import measured_machine
from specplug_kernels.bench.operations import OPERATIONS
from specplug_kernels.bench.report import READING, Report, records
from specplug_kernels.bench.shapes import PRESETS, Model, Shape, preset_of
from specplug_kernels.bench.timing import Stopwatch, Timing, first_failure, measure

DTYPES = ("float32", "float64", "bfloat16", "float16")
MEMORY_SHARE = 8
"""A case's tensors may take this part of the memory: the slower backends write K and V out several times in float32."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; wrong ones end the program with an explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m specplug_kernels.bench", description="Every operation's time beside its floor."
    )
    names = ", ".join(OPERATIONS)
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME", help=f"of {names}"
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="only these, as triton or masked-sdpa")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="shapes; the lists below replace its parts")
    parser.add_argument("--heads", type=_model, nargs="+", metavar="HQ/HKV/D")
    parser.add_argument("--batch", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--context", type=int, nargs="+", metavar="TOKENS", help="committed tokens a row")
    parser.add_argument("--nodes", type=int, nargs="+", help="of a tree, the root included")
    parser.add_argument("--vocab", type=int, help="default: the model's")
    parser.add_argument("--page", type=int, default=16, help="slots a page")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5, help="at most, for a case, after five repeats")
    parser.add_argument("--warm", action="store_true", help="leave the operands in the cache between calls")
    parser.add_argument("--memory", type=float, metavar="GIB", help="a case may take; default: an eighth of the memory")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there, whole after every case")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure and print; with ``--json`` write too."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    with torch.inference_mode():
        machine = measured_machine(device, dtype)
        report = Report(machine, args.json)
        report.begin()
        watch = Stopwatch(machine, flush=not args.warm)
        for case in _cases(args, device, dtype):
            timings, absent = _timed(case, args, watch)
            report.add(records(case, machine, timings, absent))
    report.finish()


def _cases(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Every operation at every shape that it has not been measured at; one that is too large, without calls."""
    memory = args.memory * 2**30 if args.memory is not None else _memory_bytes(device) / MEMORY_SHARE
    preset = preset_of(args.preset, models=args.heads, batches=args.batch, contexts=args.context, nodes=args.nodes)
    shapes = [_with_vocab(shape, args.vocab) for shape in preset.shapes(dtype, args.page)]
    for name in args.operations:
        operation, seen = OPERATIONS[name], set()
        for shape in shapes:
            if operation.depends_on(shape) in seen:
                continue
            seen.add(operation.depends_on(shape))
            footprint = operation.footprint(shape)
            if footprint <= memory:
                yield operation.build(shape, device)
            else:
                reason = f"its tensors take {footprint / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} of --memory"
                yield Case(name, str(shape), None, {}, {"any": reason})


def _timed(case: Case, args: argparse.Namespace, watch: Stopwatch) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings by backend, and why the others have none: one that raises when first called is one of them."""
    wanted = args.backends
    absent = {name: reason for name, reason in case.absent.items() if wanted is None or name in (*wanted, "any")}
    calls = {} if case.reading is None else {READING: case.reading}
    for name, call in case.calls.items():
        if wanted is not None and name not in wanted:
            continue
        by_name_only = "timed only where --backends names it" if wanted is None and name in case.by_name_only else None
        reason = by_name_only or first_failure(call)
        if reason is None:
            calls[name] = call
        else:
            absent[name] = reason
    return measure(calls, watch, repeats=args.repeats, seconds=args.seconds), absent


def _with_vocab(shape: Shape, vocab: int | None) -> Shape:
    return shape if vocab is None else replace(shape, model=replace(shape.model, vocab=vocab))


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _model(text: str) -> Model:
    """``8/2/32``: as many layers and tokens of vocabulary as the model of these heads has, the built-in pair's if none has."""
    heads = tuple(int(part) for part in text.split("/"))
    if len(heads) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not query heads/KV heads/head dimension, as in 8/2/32")
    models = [model for preset in PRESETS.values() for model in preset.models]
    alike = [model for model in models if (model.heads, model.kv_heads, model.head_dim) == heads]
    return alike[0] if alike else replace(models[0], heads=heads[0], kv_heads=heads[1], head_dim=heads[2])
