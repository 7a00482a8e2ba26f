"""What heads learn from, and how well they do: their loss along texts, and which of a target's own tokens they foresee."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from specplug.mlp import Heads
from specplug_hf.training.continuations import extend
from specplug_hf.training.data import windows
from specplug_hf.training.hardware import precision

LOGITS_AT_ONCE = 2**26  # numbers: a head's logits of one part of a batch, 256 MB in float32


@torch.no_grad()
def hidden_states(target: PreTrainedModel, ids: Tensor) -> Tensor:
    """What comes out of `target`'s last norm at every token of `ids` [b, L]: [b, L, D] float32."""
    with precision(ids.device):
        hidden: Tensor = target.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return hidden.float()


@torch.no_grad()
def hidden_states_and_laws(target: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and `target`'s law of the token behind every token: [b, L, V] float32."""
    kept: list[Tensor] = []
    hook = target.get_decoder().register_forward_hook(
        lambda module, given, output: kept.append(output.last_hidden_state)
    )
    try:
        with precision(ids.device):
            logits = target(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return kept[0].float(), logits.float().softmax(-1)


def heads_loss(heads: Heads, hidden: Tensor, ids: Tensor, first: int = 0, laws: Tensor | None = None) -> Tensor:
    """Mean cross entropy, in nats a head and token, of what every head says from position `first` of `ids` [b, L] on.

    `hidden` [b, L, D]. Head i says at position t, of which the target knows t and chose t + 1, what stands at t + 2 + i; with
    `laws` [b, L, V], what the target would have put there.
    """
    count, length = heads.config.n_predict, ids.shape[1]
    positions = length - 1 - count - first
    total = hidden.new_zeros(())
    said = heads(hidden[:, first : first + positions], ids[:, first + 1 : length - 1])
    for head, logits in enumerate(said):
        place = first + 1 + head  # the token before the one that is said
        if laws is None:
            wanted = ids[:, place + 1 : place + 1 + positions].flatten()
        else:
            wanted = laws[:, place : place + positions].flatten(0, 1)
        total = total + F.cross_entropy(logits.float().flatten(0, 1), wanted)
    return total / count


class Stage:
    """The losses of a stage: `rows` windows a step of `data`, a stream [T] cut to `length` or rows [N, length]. `soft`: the
    target's laws are what is learnt, in place of the tokens."""

    def __init__(
        self,
        heads: Heads,
        target: PreTrainedModel,
        data: Tensor,
        rows: int,
        length: int,
        first: int,
        seed: int,
        soft: bool = False,
    ) -> None:
        self.heads, self.target, self.data = heads, target, data
        self.rows, self.length, self.first, self.seed, self.soft = rows, length, first, seed, soft

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        batch = windows(self.data, self.length, step * self.rows, self.rows, self.seed).to(self.target.device)
        most = max(1, LOGITS_AT_ONCE // (self.length * self.heads.config.vocab_size))
        for ids in batch.split(most):
            hidden, laws = (
                hidden_states_and_laws(self.target, ids) if self.soft else (hidden_states(self.target, ids), None)
            )
            with precision(ids.device):
                loss = heads_loss(self.heads, hidden, ids, self.first, laws)
            yield loss * (len(ids) / self.rows)


@torch.no_grad()
def acceptance_by_head(heads: Heads, target: PreTrainedModel, prompts: Tensor, new: int) -> list[float]:
    """Of `target`'s greedy continuations of `prompts` [B, T] by `new` tokens: the share that each head foresees, of those where
    all heads before it did. A head without such a case has 0."""
    ids = extend(target, prompts.to(target.device), new)
    first, count = prompts.shape[1] - 1, heads.config.n_predict
    positions = ids.shape[1] - 1 - count - first
    hidden = hidden_states(target, ids)[:, first : first + positions]
    reached = torch.ones(ids.shape[0], positions, dtype=torch.bool, device=ids.device)
    shares = []
    for head, logits in enumerate(heads(hidden, ids[:, first + 1 : -1])):
        right = reached & (logits.argmax(-1) == ids[:, first + 2 + head : first + 2 + head + positions])
        shares.append(float(right.sum()) / max(1.0, float(reached.sum())))
        reached = right
    return shares


def chain_length(shares: list[float]) -> float:
    """Tokens a round of a chain with acceptance `shares` by depth, the bonus included."""
    total, reach = 1.0, 1.0
    for share in shares:
        reach *= share
        total += reach
    return total
