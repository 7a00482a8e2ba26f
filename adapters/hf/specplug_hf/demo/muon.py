"""Muon (Jordan et al., 2024): momentum whose update is orthogonalised, for the hidden matrices of a network."""

from __future__ import annotations

from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz towards the nearest semi-orthogonal matrices: `[n, rows, cols]`, rows <= cols, any float dtype."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters: Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / cols)).

    The rule is that of `torch.optim.Muon`. That one iterates matrix by matrix in bfloat16, which a CPU without
    bfloat16 units emulates (0.3 s a matrix of 256 x 704); this one iterates equal shapes together, in float32 on a CPU.
    """

    def __init__(
        self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient; equal shapes are stacked."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for params in shapes.values():
                self._update(params, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[torch.nn.Parameter], lr: float, momentum: float, decay: float) -> None:
        directions = []
        for p in params:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - momentum)
            directions.append(p.grad.lerp(buffer, momentum))
        stacked = torch.stack(directions)
        rows, cols = stacked.shape[1:]
        wide = stacked if rows <= cols else stacked.mT
        wide = orthogonalise(wide.bfloat16() if wide.is_cuda else wide).to(stacked.dtype)
        updates = wide if rows <= cols else wide.mT
        scale = max(1.0, rows / cols) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - lr * decay).add_(update, alpha=-lr * scale)
