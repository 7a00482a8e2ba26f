"""How far a draft's law is from its target's: what distillation makes small (DistillSpec, arXiv 2310.08461, table 1).

All take log-probabilities [..., V] of the target (p) and of the draft (q), and give nats (total variation: a probability)
[...]. The expected acceptance of a drawn token is exactly 1 minus the total variation; the others have smoother gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from specplug.errors import OptionError

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(p || q): the draft covers whatever the target may say."""
    return (target.exp() * (target - draft)).sum(-1)


def reverse_kl(target: Tensor, draft: Tensor) -> Tensor:
    """KL(q || p): the draft says nothing that the target would not."""
    return forward_kl(draft, target)


def generalised_jsd(target: Tensor, draft: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q."""
    mixture = torch.logaddexp(target + math.log(beta), draft + math.log1p(-beta))
    return beta * forward_kl(target, mixture) + (1 - beta) * forward_kl(draft, mixture)


def total_variation(target: Tensor, draft: Tensor) -> Tensor:
    """Half the sum of |p - q|."""
    return 0.5 * (target.exp() - draft.exp()).abs().sum(-1)


def divergence(name: str, beta: float = 0.5) -> Divergence:
    """The divergence that the command line calls `name`. `beta`, of `jsd`: the target's share of the mixture, between 0 and 1."""
    if not 0 < beta < 1:
        raise OptionError(f"--beta {beta:g}: the mixture of jsd needs a share between 0 and 1, neither included.")
    return {
        "kl": forward_kl,
        "reverse-kl": reverse_kl,
        "jsd": partial(generalised_jsd, beta=beta),
        "tvd": total_variation,
    }[name]
