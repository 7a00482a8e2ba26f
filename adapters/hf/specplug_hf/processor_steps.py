"""How each of transformers' logits processors is served: by its class, decided once a call.

What the kinds mean is said in processors.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers import LogitsProcessorList

from specplug import UnsupportedError

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


class PrefixNode(NamedTuple):
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
class ProcessorStep:
    """One processor of the list, made ready to be called for groups of nodes."""

    call: Callable[[PrefixNode, Tensor, Tensor], Tensor]  # (first node of the group, prefixes [M, L], scores [M, V])
    group: Callable[[PrefixNode], Hashable] | None  # nodes of equal value share a call, None: no call; no function: all
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

    def __call__(self, node: PrefixNode, prefix: Tensor, scores: Tensor) -> Tensor:
        """Call the copy that has seen every shorter prefix of `node`, and keep it as the one that saw this too."""
        if not node.path:
            self._enter(node, prefix)
        states = self.states[node.row]
        before = states[node.path[:-1] if node.path else None]
        after = _with(before, state=copy.copy(before.state))  # its own code rebinds, and never writes into, tensors
        states[node.path] = after
        result: Tensor = after(prefix, scores)
        return result

    def _enter(self, node: PrefixNode, prefix: Tensor) -> None:
        """A new root: of the states at the last tree's nodes, keep the one that was accepted."""
        base, states = self.bases[node.row], self.states[node.row]
        if base < 0:
            before = self.fresh
        elif base == node.end:
            before = states[None]  # the same root once more
        else:
            before = states[tuple(prefix[0, base : node.end - 1].tolist())]
        self.bases[node.row], self.states[node.row] = node.end, {None: before}


def processor_step(processor: Any, num_rows: int) -> ProcessorStep:
    """How `processor` is to be served: by its class, or by the class of transformers that a user's inherits from."""
    own = next((c for c in type(processor).__mro__ if c.__module__ == LogitsProcessorList.__module__), object)
    name, exact = own.__name__, own is type(processor)
    if name in REFUSED:
        remedy = "Leave it out, or call generate without `assistant=`."
        raise UnsupportedError(f"{type(processor).__name__} cannot be served: {REFUSED[name]}. {remedy}")
    if name in BY_STATE:
        return ProcessorStep(_States(processor, num_rows), lambda node: node.place, content=True, careful=True)
    if name in PER_ROW:
        parts = PER_ROW[name](processor, num_rows)
        alone = not exact or name == "EncoderRepetitionPenaltyLogitsProcessor"  # takes one row a call before 5.2x
        return ProcessorStep(
            lambda node, prefix, scores: parts[node.row](prefix, scores),
            lambda node: node.place if alone else (id(parts[node.row]), node.length),
            content=not alone or not exact,
            careful=not exact or name == "PrefixConstrainedLogitsProcessor",
        )
    if exact and name in PREFIX_FREE:
        return ProcessorStep(lambda _, prefix, scores: processor(prefix, scores), None)
    if exact and name in BY_LENGTH:
        effect = BY_LENGTH[name]
        return ProcessorStep(
            lambda _, prefix, scores: processor(prefix, scores), lambda node: effect(processor, node.length)
        )
    if exact and name in BY_CONTENT:
        return ProcessorStep(
            lambda _, prefix, scores: processor(prefix, scores), lambda node: node.length, content=True
        )
    checked: Any = LogitsProcessorList([processor])  # looks at the signature, as plain decoding does
    return ProcessorStep(
        lambda _, prefix, scores: checked(prefix, scores), lambda node: node.place, content=True, careful=True
    )
