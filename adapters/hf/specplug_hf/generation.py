"""The decoding loop that takes the place of transformers' `_sample`: prefill, then rounds until every row has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from specplug import OptionError, Round, Speculator, run_round
from specplug.drafters import LayerSkip, ModelDraft
from specplug.errors import unknown_name
from specplug.kv_policies import Full
from specplug.random import row_seeds
from specplug.round import accept
from specplug.tree import roots_only
from specplug_hf.assistant import speculator_of
from specplug_hf.capabilities import capabilities_of
from specplug_hf.completion import complete, export_cache
from specplug_hf.draft import node_forward, prepare_draft
from specplug_hf.extras import Extras
from specplug_hf.host import HFHost, Prompt
from specplug_hf.identity import identity_of, name_of
from specplug_hf.kernels import KERNELS
from specplug_hf.observed import observed_for
from specplug_hf.policies import check_policy_fits
from specplug_hf.prefill import check_cache, positions_read, slots_of, take_over_text
from specplug_hf.probe import check_trees
from specplug_hf.processors import NodeProcessors
from specplug_hf.progress import Progress
from specplug_hf.records import Records
from specplug_hf.skipping import check_layers, num_layers
from specplug_hf.store import KVStore
from specplug_hf.support import check_architecture, check_positions, check_request


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    assistant: Any = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """For `model.generate(..., custom_generate=specplug_hf.generate)`: the same decoding without the patch.

    transformers drops `streamer` (which sees the prompt and no more) and `tokenizer` (hence stop strings) on this way.
    `assistant` as in `model.generate(assistant=)`; default: the module's own Speculator.
    """
    return prepare(
        model,
        input_ids,
        speculator_of(assistant),
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        **model_kwargs,
    ).run()


def prepare(
    model: PreTrainedModel,
    input_ids: Tensor,
    speculator: Speculator,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Generation:
    """A call that has passed every check, nothing run yet. Raises `SpecplugError` for what is not served."""
    generation = Generation(
        model, input_ids, speculator, logits_processor, stopping_criteria, generation_config, model_kwargs
    )
    generation.check()
    return generation


class Generation:
    """One `generate` call from its checks to its result."""

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        speculator: Speculator,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        kwargs: dict[str, Any],
    ) -> None:
        self.model, self.input_ids, self.speculator = model, input_ids, speculator
        self.criteria, self.config, self.kwargs = criteria, config, kwargs
        self._processors = processors
        cache = kwargs.get("past_key_values")
        self.cache_is_users = bool(getattr(cache, "_is_user_defined", False))
        self.seconds_prefill = 0.0

    @torch.no_grad()
    def run(self, streamer: Any = None) -> Tensor | GenerateDecoderOnlyOutput:
        """Prefill, then rounds until every row has ended."""
        for _ in self.rounds(streamer):
            pass
        return self.finish()

    @torch.no_grad()
    def rounds(self, streamer: Any = None) -> Iterator[Round]:
        """The same one round at a time, for whoever wants to look at the host in between; `finish` gives the result."""
        if streamer is not None:
            streamer.put(self.input_ids.cpu())
        self.prefill(streamer)
        session = self.speculator.open(self.host)
        self.host.record([arm.drafter for arm in session.arms])
        try:
            self.first_token()
            with self.model._optimize_model_for_decode(), self.host.held():
                while not self.progress.done:
                    finished = run_round(self.host, session)
                    session.observe(finished)
                    yield finished
        finally:
            session.stats.seconds_prefill = self.seconds_prefill
            self.speculator.finish(session)

    def check(self) -> None:
        """Everything that can be refused is refused here, before the model runs."""
        check_architecture(self.model)
        check_request(self.model, self.config, self.input_ids, self.kwargs)
        text = self.model.config.get_text_config(decoder=True)
        if not self.cache_is_users:
            self.kwargs["past_key_values"] = DynamicCache(config=text)
        check_cache(self.kwargs["past_key_values"])
        self.processors = NodeProcessors(self._processors, self.input_ids.shape[0])
        self._check_speculator(text.vocab_size)
        self.extras = Extras(self.kwargs)
        keep_cache = bool(self.config.return_dict_in_generate) or self.cache_is_users
        self.records = Records(self.config, self.input_ids.shape[0], keep_cache)
        self.forward = node_forward(self.model, self.speculator.kernel, own=self.records.attentions)
        check_trees(self.model, self.forward)

    def _check_speculator(self, vocab_size: int) -> None:
        kernel, seed, rows = self.speculator.kernel, self.speculator.seed, self.input_ids.shape[0]
        if isinstance(seed, Sequence) and len(seed) != rows:
            raise OptionError(f"seed: {len(seed)} seeds for {rows} rows; give one, or one for each row.")
        if kernel not in KERNELS:
            raise unknown_name("kernel", kernel, tuple(KERNELS))
        capabilities = capabilities_of(self.model)
        self.speculator.check(capabilities, vocab_size, HFHost.__name__, identity_of(self.model))
        required = self.speculator.required(capabilities, HFHost.__name__)
        self.observed = observed_for(self.model, self.speculator.drafters, required)
        for part in (part for drafter in self.speculator.drafters for part in drafter.parts):
            drafting = self.model
            if isinstance(part, ModelDraft):
                drafting = prepare_draft(part.model, self.model, vocab_size, kernel).forward.model
                check_positions(drafting, self.config.max_length, "draft")
            if isinstance(part, LayerSkip):
                check_layers(self.model, part.skipped(name_of(self.model), num_layers(self.model)))
            check_policy_fits(getattr(part, "kv_policy", Full()), drafting)

    def prefill(self, streamer: Any) -> None:
        """Run the prompt as transformers does, and take its cache over."""
        start = perf_counter()
        with positions_read(self.model) as self._positions, self.observed.reading_prompt():
            output = self.model._prefill(self.input_ids, self.config, self.kwargs, is_first_iteration=True)
        prompt = self._take_over(self.kwargs["past_key_values"])
        self.observed.settle_prompt(self._trailing(prompt), self.input_ids.device)
        self.seconds_prefill = perf_counter() - start
        self.prefill_output = output
        self._logits = output.logits[:, -1:].to(copy=True, dtype=torch.float32, device=self.input_ids.device)
        pad = self.config._pad_token_tensor
        self.progress = Progress(
            self.input_ids,
            self.criteria,
            streamer,
            None if pad is None else int(pad),
            self.config.max_length,
        )
        self.host = HFHost(
            self.forward, prompt, self.progress, self.processors, self.records,
            self._seeds(), self._logits.shape[-1], self.speculator.kernel, self.extras, self.observed,
        )  # fmt: skip

    def _take_over(self, cache: DynamicCache) -> Prompt:
        rows, columns = self.input_ids.shape[0], cache.get_seq_length()
        mask = self.kwargs.get("attention_mask")
        mask = None if mask is None else mask[:, :columns]
        slots = slots_of(mask)
        lengths = [columns] * rows if slots is None else (slots >= 0).sum(1).tolist()
        first = [0] * rows if slots is None else (slots >= 0).int().argmax(1).tolist()
        shifts = _shifts(slots, lengths, first)
        storage = self.forward.storage if shifts is None else KVStore  # pages know no holes in a prompt
        room = max(1, self.config.max_length - self.input_ids.shape[1])
        store = take_over_text(cache, columns, slots, room, not self.cache_is_users, storage)
        skipped = columns - self.input_ids.shape[1]  # columns that a cache passed in already held
        return Prompt(
            store=store,
            lengths=lengths,
            starts=[max(0, column - max(0, skipped)) for column in first],
            next_position=self._next_position(rows),
            shifts=shifts,
            columns=columns,
            slots=slots,
        )

    def _trailing(self, prompt: Prompt) -> list[int]:
        """Columns of each row from its last masked one on."""
        if prompt.slots is None:
            return prompt.lengths
        return (prompt.slots >= 0).long().flip(1).cumprod(1).sum(1).tolist()

    def _next_position(self, rows: int) -> Tensor:
        """Position id of the first new token, as plain generation counts on: [B0] or [k, B0]."""
        position_ids = self._positions[-1] if self._positions else self.kwargs["position_ids"]
        following = position_ids[..., -1].to(self.input_ids.device) + 1
        return following.expand(*following.shape[:-1], rows)

    def _seeds(self) -> Tensor | None:
        if not self.config.do_sample:
            return None
        seed, rows = self.speculator.seed, self.input_ids.shape[0]
        if isinstance(seed, Sequence):
            return torch.cat([row_seeds(own, 1, self.input_ids.device) for own in seed])
        if not isinstance(seed, int):
            device = "cpu" if seed is None else seed.device
            seed = int(torch.randint(2**62, (1,), generator=seed, device=device))
        return row_seeds(seed, rows, self.input_ids.device)

    def first_token(self) -> None:
        """Choose the first token from the prompt's own logits: a round of roots alone, whose forward was the prefill."""
        host, progress = self.host, self.progress
        rows = list(range(self.input_ids.shape[0]))
        batch = host.prompt_batch()
        trees = roots_only(batch.roots)
        self.records.keep_forward(_last_column(self.prefill_output, self.records), lambda weights, *_: weights[:, None])
        verdict = accept(batch, trees, host.distributions(batch, self._logits, trees))
        counts = progress.append(rows, verdict.tokens(trees), [1] * len(rows))
        self.records.add(rows, verdict.path, counts)
        progress.advance(self.records.scores_so_far)
        host.drop_finished()

    def finish(self) -> Tensor | GenerateDecoderOnlyOutput:
        """The result, as plain generation would return it."""
        progress, records = self.progress, self.records
        progress.close()
        sequences = progress.sequences()
        if records.needs_completion:
            complete(self.host)
            if records.keep_cache:
                export_cache(self.host, self.kwargs["past_key_values"])
        if not self.config.return_dict_in_generate:
            return sequences
        fields = records.fields(progress.steps, self.prefill_output)
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=self.kwargs["past_key_values"], **fields)


def _last_column(output: Any, records: Records) -> Any:
    """The prompt's output cut to its last column: what the first token was chosen from."""
    if not (records.hidden or records.attentions):
        return None

    class Last:
        hidden_states = tuple(h[:, -1:] for h in output.hidden_states) if records.hidden else None
        attentions = tuple(a[:, :, -1:] for a in output.attentions) if records.attentions else None

    return Last


def _shifts(slots: Tensor | None, lengths: list[int], first: list[int]) -> Tensor | None:
    """Column minus slot of every slot [B0, L], relative to the row's first column; None if no mask has holes."""
    if slots is None:
        return None
    columns = slots.shape[1]
    holes = any(columns - start != length for start, length in zip(first, lengths, strict=True))
    if not holes:
        return None
    shifts = torch.empty_like(slots)
    for row, (length, start) in enumerate(zip(lengths, first, strict=True)):
        visible = (slots[row] >= 0).nonzero().squeeze(1)
        shifts[row, :length] = visible - start - torch.arange(length, device=slots.device)
        shifts[row, length:] = columns - start - length
    return shifts
