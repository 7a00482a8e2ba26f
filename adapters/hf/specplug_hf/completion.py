"""Past a row's end: plain generation goes on feeding padding to rows that have ended while others run.

What it returns (scores, hidden states, the cache) has those steps too, so they are computed here, once, when all is done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from specplug.tree import TreeShape, fill_shape
from specplug_hf.host import HFHost
from specplug_hf.prefill import keeps_nothing
from specplug_hf.store import KVStore
from specplug_hf.views import FullView

BLOCK = 256  # tokens forwarded at once


def complete(host: HFHost) -> None:
    """Bring every row's record to the call's last step; its KV then covers all tokens but the last."""
    for row, record in enumerate(host.records.rows):
        record.cut(host.progress.final_end(row) - host.prompt_columns)
        length = host.prompt_lengths[row] + host.progress.final_end(row) - host.prompt_columns - 1
        assert record.kv is not None
        record.kv = [(keys[:, :length], values[:, :length]) for keys, values in record.kv]
        missing = host.prompt_columns + host.progress.steps - host.progress.final_end(row)
        if missing:
            _complete_row(host, row, length, missing)


def _complete_row(host: HFHost, row: int, length: int, missing: int) -> None:
    """Forward the row's last token and the padding behind it, all but the last of it: `missing` tokens."""
    record = host.records.rows[row]
    assert record.kv is not None
    store = KVStore([(k[None], v[None]) for k, v in record.kv], length + min(missing, BLOCK))
    for layer, (keys, values) in enumerate(record.kv):
        store.load(layer, keys[None], values[None], None, 0)
    end = host.progress.final_end(row)
    sequence = host.progress.sequences()[row]
    while missing:
        count = min(missing, BLOCK)
        _forward_block(host, row, store, length, sequence[None, end - 1 : end - 1 + count], end)
        length, end, missing = length + count, end + count, missing - count
    record.kv = [(keys[:, :length], values[:, :length]) for keys, values in store.row(0)]


def _forward_block(host: HFHost, row: int, store: KVStore, length: int, tokens: Tensor, end: int) -> None:
    """Record what the target says at `tokens` [1, n], the first of which stands at column `end - 1` of the row."""
    shape = TreeShape(tuple(range(-1, tokens.shape[1] - 1)))
    trees = fill_shape(shape, tokens)
    step = store.step(
        FullView(), [length], trees.ancestors, trees.depths, 0, trees.num_nodes,
        shape=shape, full_width=host.forward.full_width, shifts=host.shifts_of(row),
    )  # fmt: skip
    positions = host.prompt_offsets[..., row : row + 1, None] + length + trees.depths
    extras = host.extras.for_nodes([row], trees.num_nodes)
    output = host.forward(store, step, tokens, positions, **extras, **host.records.forward_flags)
    logits = output.logits.to(device=host.device, dtype=torch.float32)
    scores = host.processors.scores(logits, host.progress.ids, [end], [row], trees) if host.records.scores else logits
    host.records.keep_forward(output, host.attention_columns([row], [length], trees))
    host.records.keep_scores(logits, scores)
    host.records.add([row], torch.arange(trees.num_nodes)[None], [trees.num_nodes])


def export_cache(host: HFHost, cache: DynamicCache) -> None:
    """Put all rows' KV into `cache` as plain generation leaves it: column by column, masked columns zero."""
    generated = host.progress.steps - 1
    columns = host.cache_columns
    for index, layer in enumerate(cache.layers):
        if keeps_nothing(layer):
            continue
        keys, values = _rectangle(host, index, columns + generated)
        if isinstance(layer, DynamicSlidingWindowLayer):
            keys, values = keys[:, :, -layer.sliding_window + 1 :], values[:, :, -layer.sliding_window + 1 :]
            layer.cumulative_length = columns + generated
        layer.keys, layer.values = keys, values


def _rectangle(host: HFHost, layer: int, width: int) -> tuple[Tensor, Tensor]:
    rows: list[Any] = [record.kv[layer] for record in host.records.rows]  # type: ignore[index]
    out = []
    for part in (0, 1):
        like = rows[0][part]
        full = like.new_zeros((len(rows), like.shape[0], width, like.shape[2]))
        for row, kv in enumerate(rows):
            full[row].index_copy_(1, host.columns_of(row, kv[part].shape[1]).to(like.device), kv[part])
        out.append(full)
    return out[0], out[1]
