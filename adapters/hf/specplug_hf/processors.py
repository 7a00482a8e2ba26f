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

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessorList

from specplug import TreeBatch, UnsupportedError

PREFIX_FREE = {
    "TemperatureLogitsWarper", "TopPLogitsWarper", "TopKLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper",
    "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "InfNanRemoveLogitsProcessor",
    "LogitNormalization", "SuppressTokensLogitsProcessor", "BarkEosPrioritizerLogitsProcessor",
}  # fmt: skip
REJECTS_NAN = {"TopHLogitsWarper", "EtaLogitsWarper"}  # they validate: padding nodes must not reach them
# What a processor does to a prefix of `n` tokens: equal values, equal treatment; None: it changes nothing.
BY_LENGTH: dict[str, Callable[[Any, int], Hashable]] = {
    "MinLengthLogitsProcessor": lambda p, n: True if n < p.min_length else None,
    "MinNewTokensLengthLogitsProcessor": lambda p, n: True if n - p.prompt_length_to_skip < p.min_new_tokens else None,
    "ForcedBOSTokenLogitsProcessor": lambda p, n: True if n == 1 else None,
    "ForcedEOSTokenLogitsProcessor": lambda p, n: True if n == p.max_length - 1 else None,
    "ExponentialDecayLengthPenalty": lambda p, n: n if n > p.regulation_start else None,
    "SuppressTokensAtBeginLogitsProcessor": lambda p, n: True if n == p.begin_index else None,
    "AlternatingCodebooksLogitsProcessor": lambda p, n: (n - p.input_start_len) % 2,
}
BY_CONTENT = {
    "NoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor",
    "WatermarkLogitsProcessor", "WhisperTimeStampLogitsProcessor",
}  # fmt: skip
BY_STATE = {"SynthIDTextWatermarkLogitsProcessor"}
REFUSED = {
    "ClassifierFreeGuidanceLogitsProcessor": "it needs the logits of a second, unconditional row",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "it runs the model once more for every token (guidance_scale)",
    "DiaClassifierFreeGuidanceLogitsProcessor": "it needs the logits of a second, unconditional row",
    "DiaEOSChannelFilterLogitsProcessor": "it reads the rows of a batch as audio channels",
    "DiaEOSDelayPatternLogitsProcessor": "it reads the rows of a batch as audio channels",
    "HammingDiversityLogitsProcessor": "it compares the groups of a beam search",
    "WhisperNoSpeechDetection": "it runs the model itself and records a probability for its caller",
}


class _Node(NamedTuple):
    """A node and its prefix: the first `end` committed tokens of `row`, then the draft tokens of `path`."""

    place: int  # slot * N + node
    row: int
    end: int
    path: tuple[int, ...] = ()
    parent: int = -1  # place of the parent; a root's own; -1 at a padding node, which stands in as the root does

    @property
    def length(self) -> int:
        return self.end + len(self.path)


@dataclass(frozen=True, slots=True)
class _Step:
    """One processor of the list, made ready to be called for groups of nodes."""

    call: Callable[[_Node, Tensor, Tensor], Tensor]  # (first node of the group, prefixes [M, L], scores [M, V])
    group: Callable[[_Node], Hashable] | None  # nodes of equal value share a call, None: no call; no function: all
    content: bool = False  # reads the prefix, not only its length
    careful: bool = False  # must not see a prefix that cannot come true


def _with(processor: Any, **values: Any) -> Any:
    """A copy of `processor` that differs in some attributes."""
    part = copy.copy(processor)
    vars(part).update(values)
    return part


def _ignored_lengths(processor: Any, num_rows: int) -> list[Any]:
    """RepetitionPenalty: how many leading (padding) tokens a row leaves out."""
    if not isinstance(processor.prompt_ignore_length, Tensor):
        return [processor] * num_rows
    lengths = processor.prompt_ignore_length.tolist()
    if len(lengths) != num_rows:
        raise ValueError("Incompatible `prompt_ignore_length` batch size")  # as transformers says it
    parts = {length: _with(processor, prompt_ignore_length=length) for length in lengths}
    return [parts[length] for length in lengths]


def _encoder_ids(processor: Any, num_rows: int) -> list[Any]:
    """EncoderRepetitionPenalty: the row's own prompt, which its `num_return_sequences` share."""
    ids = processor.encoder_input_ids
    parts = [_with(processor, encoder_input_ids=ids[i : i + 1]) for i in range(len(ids))]
    return [parts[row // max(1, num_rows // len(ids))] for row in range(num_rows)]


def _encoder_ngrams(processor: Any, num_rows: int) -> list[Any]:
    """EncoderNoRepeatNGram: the n-grams of the row's own prompt, which its `num_return_sequences` share."""
    parts = [_with(processor, batch_size=1, generated_ngrams=[ngrams]) for ngrams in processor.generated_ngrams]
    return [parts[row // max(1, num_rows // len(parts))] for row in range(num_rows)]


def _row_numbers(processor: Any, num_rows: int) -> list[Any]:
    """PrefixConstrained: the row's number, which the user's function is given."""
    if processor._num_beams != 1:
        raise UnsupportedError(f"{type(processor).__name__} was made for beams; make it with num_beams=1.")
    function = processor._prefix_allowed_tokens_fn

    def part(row: int) -> Any:
        return _with(processor, _prefix_allowed_tokens_fn=lambda _, prefix: function(row, prefix))

    return [part(row) for row in range(num_rows)]


PER_ROW: dict[str, Callable[[Any, int], list[Any]]] = {
    "RepetitionPenaltyLogitsProcessor": _ignored_lengths,
    "EncoderRepetitionPenaltyLogitsProcessor": _encoder_ids,
    "EncoderNoRepeatNGramLogitsProcessor": _encoder_ngrams,
    "PrefixConstrainedLogitsProcessor": _row_numbers,
}


class _States:
    """A processor with state, followed down every path of a tree and from one tree to the next."""

    def __init__(self, processor: Any, num_rows: int) -> None:
        self.fresh = processor
        self.bases = [-1] * num_rows  # where each row's last root ended
        self.states: list[dict[tuple[int, ...] | None, Any]] = [{} for _ in range(num_rows)]

    def __call__(self, node: _Node, prefix: Tensor, scores: Tensor) -> Tensor:
        """Call the copy that has seen every shorter prefix of `node`, and keep it as the one that saw this too."""
        if not node.path:
            self._enter(node, prefix)
        states = self.states[node.row]
        before = states[node.path[:-1] if node.path else None]
        after = _with(before, state=copy.copy(before.state))  # its own code rebinds, and never writes into, tensors
        states[node.path] = after
        result: Tensor = after(prefix, scores)
        return result

    def _enter(self, node: _Node, prefix: Tensor) -> None:
        """A new root: of the states at the last tree's nodes, keep the one that was accepted."""
        base, states = self.bases[node.row], self.states[node.row]
        if base < 0:
            before = self.fresh
        elif base == node.end:
            before = states[None]  # the same root once more
        else:
            before = states[tuple(prefix[0, base : node.end - 1].tolist())]
        self.bases[node.row], self.states[node.row] = node.end, {None: before}


def _step(processor: Any, num_rows: int) -> _Step:
    """How `processor` is to be served: by its class, or by the class of transformers that a user's inherits from."""
    own = next((c for c in type(processor).__mro__ if c.__module__ == LogitsProcessorList.__module__), object)
    name, exact = own.__name__, own is type(processor)
    if name in REFUSED:
        remedy = "Leave it out, or call generate without `assistant=`."
        raise UnsupportedError(f"{type(processor).__name__} cannot be served: {REFUSED[name]}. {remedy}")
    if name in BY_STATE:
        return _Step(_States(processor, num_rows), lambda node: node.place, content=True, careful=True)
    if name in PER_ROW:
        parts = PER_ROW[name](processor, num_rows)
        alone = not exact or name == "EncoderRepetitionPenaltyLogitsProcessor"  # takes one row a call before 5.2x
        return _Step(
            lambda node, prefix, scores: parts[node.row](prefix, scores),
            lambda node: node.place if alone else (id(parts[node.row]), node.length),
            content=not alone or not exact,
            careful=not exact or name == "PrefixConstrainedLogitsProcessor",
        )
    if exact and name in PREFIX_FREE:
        return _Step(lambda _, prefix, scores: processor(prefix, scores), None)
    if exact and name in BY_LENGTH:
        effect = BY_LENGTH[name]
        return _Step(lambda _, prefix, scores: processor(prefix, scores), lambda node: effect(processor, node.length))
    if exact and name in BY_CONTENT:
        return _Step(lambda _, prefix, scores: processor(prefix, scores), lambda node: node.length, content=True)
    checked: Any = LogitsProcessorList([processor])  # looks at the signature, as plain decoding does
    return _Step(lambda _, prefix, scores: checked(prefix, scores), lambda node: node.place, content=True, careful=True)


class NodeProcessors:
    """The processors of one generate call, for trees of its rows."""

    def __init__(self, processors: LogitsProcessorList, num_rows: int) -> None:
        """`num_rows`: B0, the rows of the generate call. Raises `UnsupportedError` for what cannot be served."""
        self._steps = [_step(processor, num_rows) for processor in processors]
        self._careful = any(step.careful for step in self._steps)
        self._rejects_nan = any(type(processor).__name__ in REJECTS_NAN for processor in processors)

    @property
    def prefix_free(self) -> bool:
        """No processor reads the prefix or its row: `warp` does everything."""
        return all(step.group is None for step in self._steps)

    def warp(self, scores: Tensor) -> Tensor:
        """Only the prefix-free processors, in their order: `scores` [M, V] -> [M, V]."""
        nowhere, ids = _Node(0, 0, 0), scores.new_zeros((len(scores), 1), dtype=torch.int64)
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

    def _apply(self, logits: Tensor, ids: Tensor, nodes: Sequence[_Node]) -> Tensor:
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

    def _by_level(self, logits: Tensor, ids: Tensor, nodes: Sequence[_Node]) -> Tensor:
        """As `_apply`, one level after the other, without the nodes that cannot be reached."""
        scores = logits.clone()
        level = [node for node in nodes if node.parent == node.place]
        while level:
            at = torch.tensor([node.place for node in level], device=scores.device)
            scores[at] = self._apply(scores[at], ids, level)
            reached = set(at.tolist())
            level = _possible(scores, [n for n in nodes if n.parent in reached and n.place not in reached])
        return scores


def _nodes(ends: Sequence[int], rows: Sequence[int], trees: TreeBatch) -> list[_Node]:
    """Every node of every slot, in order."""
    tokens, parents = trees.tokens.tolist(), trees.parents.expand_as(trees.tokens).tolist()
    valid = None if trees.valid is None else trees.valid.tolist()
    nodes: list[_Node] = []
    for slot, (row, end) in enumerate(zip(rows, ends, strict=True)):
        first = len(nodes)
        for i in range(trees.num_nodes):
            if valid is not None and not valid[slot][i]:
                nodes.append(_Node(first + i, row, end))
            elif i == 0:
                nodes.append(_Node(first, row, end, (), first))
            else:
                parent = first + parents[slot][i]
                nodes.append(_Node(first + i, row, end, (*nodes[parent].path, tokens[slot][i]), parent))
    return nodes


def _possible(scores: Tensor, nodes: list[_Node]) -> list[_Node]:
    """The `nodes` whose last token their parent's `scores` [M, V] do not rule out (nothing does where all are out)."""
    parents = torch.tensor([node.parent for node in nodes], device=scores.device, dtype=torch.int64)
    tokens = torch.tensor([node.path[-1] for node in nodes], device=scores.device, dtype=torch.int64)
    ruled_out = scores[parents, tokens].isneginf()
    if bool(ruled_out.any()):
        ruled_out &= ~scores[parents].isneginf().all(-1)
    return [node for node, out in zip(nodes, ruled_out.tolist(), strict=True) if not out]


def _groups(step: _Step, nodes: Sequence[_Node]) -> list[tuple[int, ...]]:
    """Places in `nodes` that `step` handles in one call each; places that it leaves alone are in none."""
    if step.group is None:
        return [tuple(range(len(nodes)))]
    groups: dict[Hashable, list[int]] = {}
    for place, node in enumerate(nodes):
        groups.setdefault(step.group(node), []).append(place)
    return [tuple(places) for value, places in groups.items() if value is not None]


def _prefixes(ids: Tensor, nodes: Sequence[_Node]) -> Tensor:
    """Prefixes of `nodes`, all of one length L: [M, L]."""
    length = nodes[0].length
    prefix = ids[torch.tensor([node.row for node in nodes], device=ids.device), :length]
    prefix = functional.pad(prefix, (0, length - prefix.shape[1]))  # a draft may run past the room that is left
    drafted = [(m, node.end + d, token) for m, node in enumerate(nodes) for d, token in enumerate(node.path)]
    if drafted:
        m, column, token = torch.tensor(drafted, device=ids.device).unbind(1)
        prefix[m, column] = token
    return prefix
