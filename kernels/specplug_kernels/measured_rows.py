"""Up to how many rows the compiled kernels take less time than torch's, by processor, as measured on one of each."""

from __future__ import annotations

import torch

from specplug_kernels.processor import Processor

ATTENTION_ROWS = {
    Processor.USUAL: {torch.float32: 64, torch.bfloat16: 64, torch.float16: 256},
    Processor.AMX: {torch.float32: 256, torch.bfloat16: 256, torch.float16: 256},
    Processor.INTEL: {torch.float32: 64, torch.bfloat16: 64, torch.float16: 256},
    Processor.OLDER_INTEL: {torch.float32: 128, torch.bfloat16: 64, torch.float16: 256},
    Processor.AMD: {torch.float32: 256, torch.bfloat16: 256, torch.float16: 256},
}
"""Packed rows of tree attention, beside the best of torch's ways. ``USUAL`` (AVX2, one thread): half to nine tenths of its time in fp32 and
bf16, less in fp16; at twice as many fp32 and bf16 are the same. ``AMX`` (Emerald Rapids, two threads): fp32 0.5 to 0.8 from 1 to 128 rows, 0.75
to 0.9 at 256; bf16 0.4 to 0.75 up to 16, 0.7 to 0.8 at 24 and 32, 0.5 to 1.0 at 128 and 256 with heads of 32 to 128, which are multiplied in
blocks (without: 0.65 to 1.0 at 16, 1.0 to 1.65 at 32); fp16 0.45 to 0.9 from 1 to 256. ``INTEL`` has not been measured for more. ``OLDER_INTEL`` (Ice Lake, two
threads): fp32 0.45 to 0.7 from 16 to 128 rows, 1.1 at 256; bf16 0.55 to 1.0 from 16 to 64, 0.75 to 1.05 at 128. ``AMD`` (Zen 5, two threads):
0.3 to 0.6 in fp32 and bf16 for 64 to 256 rows, in bf16 0.1 to 0.55 for fewer; no more were tried."""

NUMBERS_BESIDE_BLOCKS = 2048
"""Numbers of packed rows of bf16 up to which ours is the better one on a processor with AMX although it does not multiply in blocks."""


def attention_rows(kind: Processor, dtype: torch.dtype, dim: int, in_blocks: bool) -> int:
    """Up to how many packed rows of heads of `dim` the compiled kernel serves on a processor of `kind`; `in_blocks`: it multiplies them so."""
    most = ATTENTION_ROWS[kind][dtype]
    if kind is Processor.AMX and dtype is torch.bfloat16 and not in_blocks:
        return min(most, NUMBERS_BESIDE_BLOCKS // dim)
    return most


LINEAR_ROWS = {
    Processor.USUAL: {torch.float32: range(2, 65), torch.bfloat16: range(2, 257), torch.float16: range(2, 257)},
    Processor.AMX: {torch.float32: range(4, 33), torch.bfloat16: range(1, 9), torch.float16: range(1, 33)},
    Processor.INTEL: {torch.float32: range(4, 21), torch.bfloat16: range(2, 25), torch.float16: range(2, 21)},
    Processor.OLDER_INTEL: {torch.float32: range(4, 49), torch.bfloat16: range(1, 257), torch.float16: range(1, 257)},
    Processor.AMD: {torch.float32: range(1, 129), torch.bfloat16: range(1, 9), torch.float16: range(1, 257)},
}
"""Rows of a linear layer, medians of pairs over weights that come from the third level of the cache or from memory, of torch's time.

``USUAL`` (a shared AMD EPYC, AVX2, one thread): fp32, 256 x 256 to 2048 x 2048: 0.45 to 0.7 for 2 rows, 0.3 to 0.65 for 4, 0.55 to 0.8 for
16, 0.6 to 0.9 for 32, 0.7 to 1.05 for 64, the same for 128; with two threads less still. bf16 and fp16: 0.45 to 0.7 for 2, 0.2 to 0.3 from
16 on, and no more were tried. One row is torch's: its time is that of reading the weights.

``AMX`` (Emerald Rapids, two threads), 256 x 256 to 2048 x 2048: fp32 1.05 to 1.35 for 2 and 3 rows, 0.6 to 1.05 for 4 to 8, 0.45 to 1.0 for 12 to
24, 0.85 to 1.15 for 32, more from there on. bf16: 0.35 to 0.45 for 1, 0.45 to 0.65 for 4, 0.55 to 1.1 for 8, 0.75 to 1.35 for 12, more from
there on. fp16: 0.6 to 1.0 for 1, 0.35 to 0.45 for 2 to 4, 0.6 to 0.8 for 16, 0.7 to 0.95 for 24, 0.8 to 1.2 for 32. In whole verifies of the
built-in target, whose weights are 256 x 256 to 256 x 3072: fp32 0.9 to 1.0 for 5 to 40 rows, 1.0 to 1.05 for 48 and more; bf16 0.6 to 0.9 for up
to 36; fp16 0.55 to 0.9 for up to 48.

``INTEL`` (Emerald Rapids without AMX; its torch calls MKL at its best): fp32, 256 x 256 to 3072 x 256, 1.1 to 1.3 for 2 and 3 rows, 0.7 to
1.05 for 4 to 20, 1.1 to 1.5 from 24 to 96. bf16: 0.4 to 0.6 for 2, 0.7 to 0.9 for 16, 0.9 for 24, more from 32 on. fp16: 0.2 to 0.4 for 2,
0.6 to 1.0 for 16, more from 24 on.

``OLDER_INTEL`` (Ice Lake, two threads): fp32, 256 x 256 to 2048 x 2048, 1.05 to 1.7 for 2 and 3 rows, 0.55 to 1.25 for 4, 0.45 to 0.85 for 16,
0.55 to 0.9 for 24, 0.8 to 1.05 for 48, 1.05 to 1.5 for 64. bf16: 0.6 to 1.1 for 1, 0.25 to 0.6 from 4 to 64, 0.3 to 0.7 for 128. fp16: 0.65
to 1.0 for 1, 0.15 to 0.5 from 4 to 128.

``AMD`` (Zen 5, two threads), 256 x 256 to 4096 x 4096: fp32 0.2 to 0.8 for 2, 0.3 to 0.5 for 8 but 0.67 of the smallest, 0.5 to 0.65 from 24 to
128. bf16: 0.45 to 0.75 for 2, 0.6 to 1.0 for 8, 0.7 to 1.3 for 12, more from 16 on. fp16: 0.35 to 0.75 for 2, 0.15 to 0.3 from 8 to 128."""

_ICE_LAKES = {torch.float32: 2**20, torch.bfloat16: 2**15, torch.float16: 2**17}
NORM_NUMBERS = dict.fromkeys(Processor, _ICE_LAKES) | {Processor.AMX: _ICE_LAKES | {torch.float16: 2**15}}
"""Numbers of all rows of a norm, widths of 64 to 8192, two threads, of torch's time.

Ice Lake, and every other that was not measured: 0.2 to 0.3 for 1 row, fp32 0.2 to 0.3 for 8 and 0.25 to 0.6 for 32 to 512; bf16 0.2 to 0.75 for
up to 32768 numbers, 1.1 to 1.6 from there on; fp16 0.2 to 0.7 for up to 131072, 0.9 to 1.2 for twice as many. ``AMX`` (Emerald Rapids): fp32
0.15 to 0.8 up to 1048576; bf16 0.15 to 0.8 and fp16 0.15 to 0.65 for up to 32768, 1.05 to 1.4 for twice as many."""
