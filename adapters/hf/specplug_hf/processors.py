"""transformers' logits processors over a token tree: every node with the prefix that belongs to it.

How a processor is served is decided by its class:

    prefix-free   reads the scores only: one call for all nodes
    by length     reads only how long the prefix is: one call for all nodes that it treats alike, no prefix is built
    by content    reads the prefix: one call for all nodes with equally long prefixes, which are built once
    per row       also holds something for each row of the batch: the same, through copies that hold one row's part
    by state      keeps state from step to step (SynthID): node by node, each with a copy of its parent's state
    unknown       a user's: one call a node, its prefix as a batch of one, [1, length]

A user's processor may depend on its two arguments only: what it remembers of a rejected draft is not taken back.
Processors that are unknown, by state or that call back (`prefix_allowed_tokens_fn`) run level by level and never see
a padding node or a prefix that their own scores rule out: plain decoding would not show it to them either.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessorList

from specplug import TreeBatch
from specplug_hf.processor_steps import REJECTS_NAN, PrefixNode, ProcessorStep, processor_step


class NodeProcessors:
    """The processors of one generate call, for trees of its rows."""

    def __init__(self, processors: LogitsProcessorList, num_rows: int) -> None:
        """`num_rows`: B0, the rows of the generate call. Raises `UnsupportedError` for what cannot be served."""
        self._steps = [processor_step(processor, num_rows) for processor in processors]
        self._careful = any(step.careful for step in self._steps)
        self._rejects_nan = any(type(processor).__name__ in REJECTS_NAN for processor in processors)

    @property
    def prefix_free(self) -> bool:
        """No processor reads the prefix or its row: `warp` does everything."""
        return all(step.group is None for step in self._steps)

    def warp(self, scores: Tensor) -> Tensor:
        """Only the prefix-free processors, in their order: `scores` [M, V] -> [M, V]."""
        nowhere, ids = PrefixNode(0, 0, 0), scores.new_zeros((len(scores), 1), dtype=torch.int64)
        for step in self._steps:
            if step.group is None:
                scores = step.call(nowhere, ids, scores)
        return scores

    def scores(self, logits: Tensor, ids: Tensor, ends: Sequence[int], rows: Sequence[int], trees: TreeBatch) -> Tensor:
        """Processed scores at every node: `logits` [B, N, V] float32 -> [B, N, V]; `logits` is never written to.

        Slot b is row `rows[b]` of the generate call, with committed tokens `ids[rows[b], :ends[b]]` (`ids` [B0, T]),
        the root last. What comes out at a padding node means nothing.
        """
        if self._rejects_nan and trees.valid is not None:
            logits = logits.masked_fill(~trees.valid[..., None], 0.0)
        flat = logits.reshape(-1, logits.shape[-1])
        if self.prefix_free:
            return self.warp(flat).view_as(logits)
        nodes = _nodes(ends, rows, trees)
        done = self._by_level(flat, ids, nodes) if self._careful else self._apply(flat, ids, nodes)
        return done.view_as(logits)

    def _apply(self, logits: Tensor, ids: Tensor, nodes: Sequence[PrefixNode]) -> Tensor:
        """The whole list on `logits` [M, V] of `nodes`."""
        scores = logits
        prefixes: dict[tuple[int, ...], Tensor] = {}
        for step in self._steps:
            groups = _groups(step, nodes)
            if len(groups) > 1 or (groups and len(groups[0]) < len(nodes)):
                scores = scores.clone() if scores is logits else scores
            for members in groups:
                group = [nodes[i] for i in members]
                if not step.content:
                    prefix = ids.new_zeros((1, 1)).expand(len(group), group[0].length)
                else:
                    prefix = prefixes[members] = prefixes[members] if members in prefixes else _prefixes(ids, group)
                if len(members) == len(nodes):
                    scores = step.call(group[0], prefix, scores)
                    continue
                at = torch.tensor(members, device=scores.device)
                scores[at] = step.call(group[0], prefix, scores[at])
        return scores

    def _by_level(self, logits: Tensor, ids: Tensor, nodes: Sequence[PrefixNode]) -> Tensor:
        """As `_apply`, one level after the other, without the nodes that cannot be reached."""
        scores = logits.clone()
        level = [node for node in nodes if node.parent == node.place]
        while level:
            at = torch.tensor([node.place for node in level], device=scores.device)
            scores[at] = self._apply(scores[at], ids, level)
            reached = set(at.tolist())
            level = _possible(scores, [n for n in nodes if n.parent in reached and n.place not in reached])
        return scores


def _nodes(ends: Sequence[int], rows: Sequence[int], trees: TreeBatch) -> list[PrefixNode]:
    """Every node of every slot, in order."""
    tokens, parents = trees.tokens.tolist(), trees.parents.expand_as(trees.tokens).tolist()
    valid = None if trees.valid is None else trees.valid.tolist()
    nodes: list[PrefixNode] = []
    for slot, (row, end) in enumerate(zip(rows, ends, strict=True)):
        first = len(nodes)
        for i in range(trees.num_nodes):
            if valid is not None and not valid[slot][i]:
                nodes.append(PrefixNode(first + i, row, end))
            elif i == 0:
                nodes.append(PrefixNode(first, row, end, (), first))
            else:
                parent = first + parents[slot][i]
                nodes.append(PrefixNode(first + i, row, end, (*nodes[parent].path, tokens[slot][i]), parent))
    return nodes


def _possible(scores: Tensor, nodes: list[PrefixNode]) -> list[PrefixNode]:
    """The `nodes` whose last token their parent's `scores` [M, V] do not rule out (nothing does where all are out)."""
    parents = torch.tensor([node.parent for node in nodes], device=scores.device, dtype=torch.int64)
    tokens = torch.tensor([node.path[-1] for node in nodes], device=scores.device, dtype=torch.int64)
    ruled_out = scores[parents, tokens].isneginf()
    if bool(ruled_out.any()):
        ruled_out &= ~scores[parents].isneginf().all(-1)
    return [node for node, out in zip(nodes, ruled_out.tolist(), strict=True) if not out]


def _groups(step: ProcessorStep, nodes: Sequence[PrefixNode]) -> list[tuple[int, ...]]:
    """Places in `nodes` that `step` handles in one call each; places that it leaves alone are in none."""
    if step.group is None:
        return [tuple(range(len(nodes)))]
    groups: dict[Hashable, list[int]] = {}
    for place, node in enumerate(nodes):
        groups.setdefault(step.group(node), []).append(place)
    return [tuple(places) for value, places in groups.items() if value is not None]


def _prefixes(ids: Tensor, nodes: Sequence[PrefixNode]) -> Tensor:
    """Prefixes of `nodes`, all of one length L: [M, L]."""
    length = nodes[0].length
    prefix = ids[torch.tensor([node.row for node in nodes], device=ids.device), :length]
    prefix = functional.pad(prefix, (0, length - prefix.shape[1]))  # a draft may run past the room that is left
    drafted = [(m, node.end + d, token) for m, node in enumerate(nodes) for d, token in enumerate(node.path)]
    if drafted:
        m, column, token = torch.tensor(drafted, device=ids.device).unbind(1)
        prefix[m, column] = token
    return prefix
