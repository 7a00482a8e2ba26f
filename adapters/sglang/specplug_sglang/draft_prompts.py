"""When a draft model reads the prompts: with the target while it is in use, else when it is asked to draft for them.

A server whose planner has turned speculation off should not pay for a draft; one that drafts reads a prompt at the speed of
SGLang's own prefill, which reading it back later is not (runners.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from specplug_sglang.draft_cache import DraftCache
from specplug_sglang.host import SGLangHost
from specplug_sglang.later import Later
from specplug_sglang.runners import ModelRunner

IDLE = 32  # rounds without the draft after which a prompt is left until the draft is asked for it


@dataclass(frozen=True, slots=True)
class _Begun:
    """Requests whose prompts the draft was given: the rest of `lengths` behind cached `prefixes`, of which it had `known`."""

    rids: Sequence[str]
    prefixes: Sequence[int]
    lengths: Sequence[int]
    known: Later

    def read(self) -> dict[str, int]:
        """By request, how far the draft has read without a gap."""
        of = zip(self.rids, self.prefixes, self.lengths, self.known.tolist(), strict=True)
        return {rid: length if known == prefix else known for rid, prefix, length, known in of}


class DraftPrompts:
    """What the server's draft model has read. Outlives requests and sessions, as the pools do."""

    def __init__(self, draft: Any) -> None:
        """`draft`: SGLang's worker, its pools allocated."""
        self._draft = draft
        buffer = draft.model_runner.token_to_kv_pool.get_key_buffer(0)
        self.cache = DraftCache(buffer.shape[0], buffer.device)
        self.idle = 0  # rounds since the draft was asked
        self._begun: list[_Begun] = []

    def prompt(self, batch: ScheduleBatch, host: SGLangHost, runners: Sequence[ModelRunner]) -> None:
        """The target has run a prompt; `runners` of the draft model, if the session has any."""
        if runners and self.idle < IDLE:
            self._read(batch, host, runners)
        else:
            self.cache.leave(batch.out_cache_loc)

    def _read(self, batch: ScheduleBatch, host: SGLangHost, runners: Sequence[ModelRunner]) -> None:
        """The draft reads what the target has read: its KV stands in the same slots of its own pool.

        Behind a prefix that it has not read, what it makes of the rest is worth nothing.
        """
        return_logprob, batch.return_logprob = batch.return_logprob, False
        try:
            self._draft.forward_batch_generation(batch, is_verify=True)
        finally:
            batch.return_logprob = return_logprob
        device = batch.out_cache_loc.device
        prefixes = torch.tensor(batch.prefix_lens, device=device)
        slots = host.pool.req_to_token[batch.req_pool_indices, : max(batch.prefix_lens)].long()
        known = self.cache.known(slots, prefixes)
        extended = torch.tensor(batch.extend_lens, device=device)
        cut = (known < prefixes).repeat_interleave(extended, output_size=len(batch.out_cache_loc))
        self.cache.leave(batch.out_cache_loc, cut)
        lengths = batch.seq_lens_cpu.tolist()
        self._begun.append(_Begun([req.rid for req in batch.reqs], batch.prefix_lens, lengths, Later(known)))

    def settle(self, rows: Sequence[str], runners: Sequence[ModelRunner]) -> None:
        """A round begins for `rows`: tell `runners` what was read of their prompts. Others have ended at their first token."""
        here = set(rows)
        for begun in self._begun:
            read = {rid: length for rid, length in begun.read().items() if rid in here}
            for runner in runners:
                runner.prefilled(read)
        self._begun.clear()

    def round(self, host: SGLangHost, runners: Sequence[ModelRunner], drafted: bool, width: int) -> None:
        """A round has been run, with the draft model if it `drafted`: note what it has not read of the next `width` places."""
        self.idle = 0 if drafted else self.idle + 1
        rows = [req.rid for req in host.schedule.reqs]
        read = [min((runner.read_to(row) for runner in runners), default=0) for row in rows]
        step = torch.arange(width, device=host.device)
        unread = host.lengths[:, None] + step >= torch.tensor(read, device=host.device)[:, None]
        self.cache.leave(host.slots(step), unread)
