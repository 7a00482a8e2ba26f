"""``python -m specplug_kernels.compile_check``: compile every Triton kernel for a GPU, without one.

Prints registers, stack (spilled registers) and shared memory of each variant as ptxas gave them. Needs the ``triton`` package,
which brings ptxas and cuobjdump; ``TRITON_INTERPRET`` must not be set.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specplug_kernels import (
    commit_kv_triton,
    paged_kernel_triton,
    paged_tiles,
    tree_greedy_triton,
    tree_sampling_triton,
)

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may ask for, by compute capability (CUDA programming guide, table 27)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with the types of its arguments and what it is compiled with."""

    name: str
    function: Any  # a triton.JITFunction
    types: dict[str, str]  # of the arguments that are no i32, as Triton writes them: "*bf16", "fp32"
    options: dict[str, Any]  # constants, num_warps, num_stages
    strides: tuple[str, ...] = ()  # integers that are multiples of 16


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came out. ``stack`` counts bytes a thread that did not fit its registers; None = no cuobjdump to ask."""

    name: str
    cubin_bytes: int
    shared_bytes: int
    registers: int | None
    stack: int | None


def variants() -> Iterator[Variant]:
    """Every kernel in the combinations of options and the shapes that models have."""
    yield from _attention_variants()
    yield from _sampling_variants()
    for word, moves, words in (("i64", 4, 256), ("i32", 17, 512), ("i16", 129, 40), ("i8", 1, 576)):
        yield Variant(
            f"commit {word} {moves} moves of {words}",
            commit_kv_triton._commit,
            {"addresses": "*i64", "word": f"*{word}", "source": "*i64", "target": "*i64"},
            dict(commit_kv_triton.commit_launch_options(moves, words)),
            ("stride",),
        )


_SHAPES = (  # dtype, head dimension, value dimension, page, query heads a KV head, queries
    ("bf16", 128, 128, 16, 4, 2),
    ("bf16", 128, 128, 1, 4, 17),
    ("bf16", 128, 128, 64, 8, 33),
    ("fp16", 64, 64, 16, 8, 1),
    ("bf16", 64, 64, 1, 7, 129),
    ("fp16", 80, 80, 16, 1, 9),
    ("bf16", 96, 96, 16, 1, 33),
    ("bf16", 192, 128, 64, 8, 17),
    ("bf16", 256, 256, 16, 2, 9),
    ("bf16", 256, 256, 16, 4, 65),
    ("fp32", 64, 64, 16, 4, 5),
    ("fp32", 128, 128, 16, 4, 33),
    ("fp32", 256, 256, 1, 2, 17),
)
_RULES = ({}, {"has_cap": True}, {"has_window": True}, {"has_cap": True, "has_window": True, "has_sinks": True})


def _attention_variants() -> Iterator[Variant]:
    module = paged_kernel_triton
    strides = ("query_row", "query_node", "query_head", "key_page", "key_slot", "key_head")
    strides += ("value_page", "value_slot", "value_head")
    for index, (dtype, dim, value_dim, page, groups, queries) in enumerate(_SHAPES):
        for rule in _RULES if index < 2 else _RULES[:: len(_RULES) - 1]:
            for splits in (1, 8) if index < 2 else (8,):
                out = dtype if splits == 1 else "fp32"
                types = dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
                types |= dict.fromkeys(("page_indptr", "page_indices", "lengths", "bitmap", "depths"), "*i32")
                types |= {"sinks": "*fp32", "out": f"*{out}", "lse_out": "*fp32", "score_scale": "fp32", "cap": "fp32"}
                options = paged_tiles.launch_options(
                    groups=groups,
                    queries=queries,
                    dim=dim,
                    value_dim=value_dim,
                    page=page,
                    element_size=4 if dtype == "fp32" else 2,
                    splits=splits,
                    **rule,
                )
                extras = "".join(f" {name.removeprefix('has_')}" for name in rule)
                name = f"attend {dtype} D{dim}/{value_dim} page {page} G{groups} q{queries} splits {splits}{extras}"
                yield Variant(name, module.attend, types, options, strides)
    for dtype, value_dim, has_sinks in (("bf16", 128, False), ("fp32", 80, True), ("fp16", 256, True)):
        types = {"parts": "*fp32", "part_lse": "*fp32", "sinks": "*fp32", "out": f"*{dtype}", "lse_out": "*fp32"}
        options = paged_tiles.merge_launch_options(value_dim, 8, has_sinks)
        yield Variant(f"merge {dtype} D{value_dim}{' sinks' * has_sinks}", module.merge, types, options)


def _sampling_variants() -> Iterator[Variant]:
    module = tree_sampling_triton
    for has_valid in (False, True):
        valid = "*u8" if has_valid else "*i64"
        for has_laws in (False, True):
            types = dict.fromkeys(("tokens", "children", "law_index", "path", "num_accepted", "bonus_out"), "*i64")
            types |= dict.fromkeys(("probs", "laws", "p_space", "q_space"), "*fp32")
            types |= {"accept": "*fp64", "bonus": "*fp64", "valid": valid}
            options = module.sampled_launch_options(16, has_valid=has_valid, has_laws=has_laws)
            name = f"verify_sampled{' valid' * has_valid}{' laws' * has_laws}"
            yield Variant(
                name, module._verify_sampled, types, options, ("probs_row", "probs_node", "laws_row", "laws_law")
            )
        types = dict.fromkeys(("tokens", "parents", "depths", "targets", "path", "num_accepted", "bonus"), "*i64")
        types |= {"bitmap": "*i32", "valid": valid}
        for nodes in (5, 129):
            options = tree_greedy_triton.greedy_launch_options(nodes, has_valid=has_valid)
            yield Variant(
                f"verify_greedy n{nodes}{' valid' * has_valid}", tree_greedy_triton._verify_greedy, types, options
            )


_LAUNCH = ("num_warps", "num_stages", "enable_fp_fusion")


def compile_variant(variant: Variant, capability: int = 90) -> Compiled:
    """Compile to machine code. Raises what Triton raises; RuntimeError under the interpreter."""
    function = variant.function
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError("nothing is compiled while TRITON_INTERPRET is set; unset it before triton is imported")
    constants = dict(variant.options)
    launch = {name: constants.pop(name) for name in _LAUNCH if name in constants}
    signature = {
        name: "constexpr" if name in constants else variant.types.get(name, "i32") for name in function.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in variant.strides
    }
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    cubin = kernel.asm["cubin"]
    return Compiled(variant.name, len(cubin), kernel.metadata.shared, *_resources(cubin))


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and bytes of stack a thread, as cuobjdump tells them; (None, None) if Triton brought none."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        told = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=False).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (None, None)


def main(arguments: list[str] | None = None) -> None:
    """Compile everything and print a table."""
    parser = argparse.ArgumentParser(prog="python -m specplug_kernels.compile_check", description=__doc__)
    parser.add_argument(
        "--capability", type=int, default=90, help="compute capability times ten (default: 90, H100 and H200)"
    )
    parser.add_argument("--only", default="", help="compile the variants whose name contains this")
    chosen = parser.parse_args(arguments)
    print(f"{'variant':<72} {'cubin':>8} {'shared':>8} {'registers':>9} {'stack':>6}")
    for variant in variants():
        if chosen.only in variant.name:
            c = compile_variant(variant, chosen.capability)
            print(f"{c.name:<72} {c.cubin_bytes:>8} {c.shared_bytes:>8} {c.registers!s:>9} {c.stack!s:>6}", flush=True)


if __name__ == "__main__":
    main()
