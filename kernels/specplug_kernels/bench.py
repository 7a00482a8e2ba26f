"""``python -m specplug_kernels.bench``: tree attention against masked SDPA and against reading the KV cache once."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from statistics import quantiles

import torch
import torch.nn.functional as F
from torch import Tensor

from specplug_kernels.dispatch import available_kernels, explain, tree_attention

HEADS = ((8, 2, 32), (8, 8, 64), (32, 8, 128))
TREE_TAIL = 8
"""Columns before the tree that the bias also covers: rows of a batch end at different places."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One point of the benchmark."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    columns: int
    nodes: int
    dtype: str

    def __str__(self) -> str:
        return (
            f"B{self.batch} H{self.heads}/{self.kv_heads} D{self.head_dim} T{self.columns} n{self.nodes} {self.dtype}"
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds: the minimum, and the quartiles of the repeats."""

    minimum: float
    median: float
    spread: float


@dataclass(frozen=True, slots=True)
class Case:
    """Tensors of a shape: several layers of K and V, so that one call does not find them in the cache."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor
    mask: Tensor
    prefix: int
    scale: float


def build(shape: Shape, cache_bytes: float = 96e6) -> Case:
    """Random tensors; K and V are views into buffers with room behind them."""
    dtype = getattr(torch, shape.dtype)
    size = (shape.batch, shape.kv_heads, shape.columns + 64, shape.head_dim)
    one = torch.Size(size).numel() * dtype.itemsize * 2
    layers = max(2, min(8, int(cache_bytes / one)))
    keys = [torch.randn(size).to(dtype)[:, :, : shape.columns] for _ in range(layers)]
    values = [torch.randn(size).to(dtype)[:, :, : shape.columns] for _ in range(layers)]
    query = torch.randn(shape.batch, shape.nodes, shape.heads, shape.head_dim).to(dtype).transpose(1, 2)
    tail = shape.nodes + TREE_TAIL
    hidden = torch.rand(shape.batch, 1, shape.nodes, tail) < 0.3
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf"))
    mask = F.pad(bias, (shape.columns - tail, 0))
    return Case(query, keys, values, bias, mask, shape.columns - tail, shape.head_dim**-0.5)


def contenders(case: Case, kernels: tuple[str, ...]) -> dict[str, Callable[[int], object]]:
    """Name to a call on layer ``i``."""
    layers = len(case.keys)

    def ours(kernel: str) -> Callable[[int], object]:
        return lambda i: tree_attention(
            case.query,
            case.keys[i % layers],
            case.values[i % layers],
            prefix=case.prefix,
            bias=case.bias,
            scale=case.scale,
            kernel=kernel,
        )

    def masked_sdpa(i: int) -> Tensor:
        out = F.scaled_dot_product_attention(
            case.query,
            case.keys[i % layers],
            case.values[i % layers],
            attn_mask=case.mask,
            scale=case.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2).contiguous()

    def floor(i: int) -> tuple[Tensor, Tensor]:
        return case.keys[i % layers].sum(), case.values[i % layers].sum()

    return {"floor": floor, "masked_sdpa": masked_sdpa, **{name: ours(name) for name in kernels}}


def measure(calls: dict[str, Callable[[int], object]], repeats: int, seconds: float) -> dict[str, Timing]:
    """Interleaved single calls: A B C, A B C, ... until ``repeats`` rounds or (after 8 of them) the time is over."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0), call(1)
    deadline = time.perf_counter() + seconds
    for repeat in range(repeats):
        if repeat >= 8 and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call(repeat)
            samples[name].append((time.perf_counter() - start) * 1e6)
    timings = {}
    for name, taken in samples.items():
        low, middle, high = quantiles(taken, n=4)
        timings[name] = Timing(min(taken), middle, high - low)
    return timings


def shapes(args: argparse.Namespace) -> Iterator[Shape]:
    """The product of the lists on the command line, without caches over 2 GiB."""
    for heads, batch, columns, nodes in product(args.heads, args.batch, args.columns, args.nodes):
        query_heads, kv_heads, dim = heads
        shape = Shape(batch, query_heads, kv_heads, dim, columns, nodes, args.dtype)
        if batch * kv_heads * columns * dim * 8 <= 2**31:
            yield shape


def _heads(text: str) -> tuple[int, ...]:
    heads = tuple(int(part) for part in text.split("/"))
    if len(heads) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not query heads/KV heads/head dimension, as in 8/2/32")
    return heads


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m specplug_kernels.bench", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--columns", type=int, nargs="+", default=[256, 2048, 8192])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--heads", type=_heads, nargs="+", default=list(HEADS), metavar="HQ/HKV/D")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--all", action="store_true", help="every backend, not only what auto picks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.5, help="at most, for each shape")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and print: medians, the quartile spread, and ratios of the minima."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    kernels = tuple(k for k in available_kernels() if k != "torch") if args.all else ("auto",)
    columns = ["floor", "masked_sdpa", *kernels]
    header = f"{'shape':36}{'auto is':>8}" + "".join(f"{name:>18}" for name in columns)
    print(header + f"{'auto/floor':>12}{'auto/sdpa':>11}")
    print("times: median us +- quartile spread; ratios: of the minima")
    records = []
    for shape in shapes(args):
        case = build(shape)
        with torch.inference_mode():
            timings = measure(contenders(case, kernels), args.repeats, args.seconds)
        choice = explain(case.query.shape, case.keys[0].shape, dtype=case.query.dtype).split(":")[0]
        cells = "".join(f"{timings[name].median:>10.0f} +-{timings[name].spread:<5.0f}" for name in columns)
        best = {name: timing.minimum for name, timing in timings.items()}
        to_floor, to_sdpa = best["auto"] / best["floor"], best["auto"] / best["masked_sdpa"]
        print(f"{shape!s:36}{choice:>8}{cells}{to_floor:>12.2f}{to_sdpa:>11.2f}", flush=True)
        microseconds = {name: asdict(timing) for name, timing in timings.items()}
        records.append({"shape": asdict(shape), "auto": choice, "microseconds": microseconds})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": args.threads, "cases": records}, file, indent=1)


if __name__ == "__main__":
    main()
