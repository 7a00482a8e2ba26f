"""What is remembered of a request between rounds: its identity is SGLang's request id, wherever it stands in a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from specplug.random import row_seeds


class Requests:
    """The running requests, with the seed of their draws."""

    def __init__(self, seed: int) -> None:
        """`seed`: the server's; a request without a seed of its own draws by it and its id."""
        self._seed = seed
        self._seeds: dict[str, int] = {}

    def seeds(self, reqs: Sequence[Any]) -> list[int]:
        """The seed of each request's draws: from its `sampling_seed` where it has one."""
        for req in reqs:
            if req.rid not in self._seeds:
                self._seeds[req.rid] = int(row_seeds(self._chosen(req), 1, torch.device("cpu")))
        return [self._seeds[req.rid] for req in reqs]

    def _chosen(self, req: Any) -> int:
        own = req.sampling_params.sampling_seed
        if own is not None:
            return int(own)
        digest = hashlib.blake2b(f"{self._seed}:{req.rid}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def departed(self, present: Sequence[Any]) -> list[str]:
        """Ids of requests that are not among `present`: they have ended, or were retracted and will be read anew."""
        here = {req.rid for req in present}
        gone = [rid for rid in self._seeds if rid not in here]
        for rid in gone:
            del self._seeds[rid]
        return gone


def tokens_of(req: Any) -> list[int]:
    """A request's text: the prompt, then what it has generated."""
    return [*req.origin_input_ids, *req.output_ids]


def written(req: Any, length: int, newest: Sequence[int]) -> list[int]:
    """The tokens that `req` has generated, the root included, when `length` tokens are in its cache.

    Under the overlap scheduler the last round's tokens are not in `req.output_ids` yet; they are `newest`.
    """
    outputs = list(req.output_ids)
    missing = length + 1 - len(req.origin_input_ids) - len(outputs)
    if missing == 0:
        return outputs
    if missing != len(newest):
        raise RuntimeError(
            f"Request {req.rid}: {len(outputs)} tokens are known and {len(newest)} in flight, but its cache says that "
            f"{len(outputs) + missing} were generated."
        )
    return outputs + list(newest)
