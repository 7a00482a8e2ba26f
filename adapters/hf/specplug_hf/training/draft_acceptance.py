"""How often a target would accept what a draft proposes, on texts that the target writes: before and after a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug_hf.training.continuations import extend
from specplug_hf.training.heads import chain_length
from specplug_hf.training.laws import laws

DEPTHS = 4


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of one draft.

    `greedy`: the share of tokens of greedy texts that its most probable token is. `by_depth`: the same for the token at depth
    1, 2, ... of a chain, given that those before it were accepted. `expected`: the mean over sampled texts of sum(min(p, q)),
    the probability that a drawn token is accepted at temperature 1. `tokens_a_round`: of a greedy chain of `DEPTHS`, the bonus
    token included.
    """

    greedy: float
    by_depth: tuple[float, ...]
    expected: float
    tokens_a_round: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class Trial:
    """Texts that `target` writes from `prompts` [N, T]: greedy ones, and drawn at temperature 1; every draft meets the same."""

    def __init__(self, target: PreTrainedModel, prompts: Tensor, new: int, vocab: int, seed: int) -> None:
        self.target, self.new, self.vocab = target, new, vocab
        prompts = prompts.to(target.device)
        self._greedy = extend(target, prompts, new)
        self._drawn = extend(target, prompts, new, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def acceptance(self, draft: PreTrainedModel) -> Acceptance:
        """What `draft` would get accepted. Tokens behind an end token do not count."""
        greedy, drawn = self._greedy[:, -self.new :], self._drawn[:, -self.new :]
        agreed = torch.stack([self._laws(draft, text).argmax(-1) for text in self._greedy]) == greedy
        counted = self._before_end(greedy)
        overlaps = [
            torch.minimum(self._laws(self.target, text).exp(), self._laws(draft, text).exp()).sum(-1)
            for text in self._drawn
        ]
        by_depth = acceptance_by_depth(agreed, counted, DEPTHS)
        return Acceptance(
            greedy=float(agreed[counted].float().mean()),
            by_depth=by_depth,
            expected=float(torch.stack(overlaps)[self._before_end(drawn)].mean()),
            tokens_a_round=chain_length(list(by_depth)),
        )

    def _laws(self, model: PreTrainedModel, text: Tensor) -> Tensor:
        """Log-probabilities [new, V] of what stands at the new tokens of `text` [T], on the target's device."""
        return laws(model, text[None].to(model.device), self.new, self.vocab)[0].to(self.target.device)

    def _before_end(self, tokens: Tensor) -> Tensor:
        """Which of `tokens` [N, n] stand up to the first end token, that included."""
        config = self.target.generation_config
        ends = config.eos_token_id if config is not None else None
        if ends is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        is_end = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
        return is_end.cumsum(-1) - is_end.long() == 0


def acceptance_by_depth(agreed: Tensor, counted: Tensor, depths: int) -> tuple[float, ...]:
    """P(accepted at depth d | accepted above it) for d = 1, ..., `depths`, of chains that begin at every counted place.

    `agreed`, `counted` [N, n] bool. A draft that was right so far stands in the target's own text, so that its further
    tokens are those that it gives there. 0 where no chain got as far.
    """
    rates = []
    alive = counted
    for depth in range(min(depths, agreed.shape[1])):
        width = agreed.shape[1] - depth
        tried = alive[:, :width] & counted[:, depth:]
        alive = tried & agreed[:, depth:]
        rates.append(float(alive.sum() / tried.sum()) if bool(tried.any()) else 0.0)
    return tuple(rates)
