"""Whether outputs are those of plain `generate`, and if not, whether rounding can be the reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.models import Models


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token of a row that is not plain's. Logits in fp32, after plain's tokens up to `position`."""

    contender: str
    prompt: str
    row: int
    position: int  # among the new tokens, 0 first
    expected: int
    got: int
    margin: float  # between the two largest logits
    gap: float  # from the largest logit down to the smaller one of the two tokens'
    tolerance: float  # what rounding in this dtype may explain

    @property
    def is_rounding(self) -> bool:
        """Both tokens' logits lie within rounding of the largest."""
        return self.gap <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"is_rounding": self.is_rounding}

    def __str__(self) -> str:
        what = "rounding" if self.is_rounding else "DIFFERENT"
        return (
            f"{what}: {self.contender}, {self.prompt}, row {self.row}, new token {self.position}: "
            f"{self.got} instead of {self.expected}; top two logits {self.margin:.2g} apart in fp32, "
            f"gap {self.gap:.2g}, rounding explains up to {self.tolerance:.2g}"
        )


def differences(models: Models, name: str, batch: PromptBatch, expected: Tensor, got: Tensor) -> list[Difference]:
    """The first difference of every row of the new tokens `got` [B, n'] from `expected` [B, n]."""
    width = min(expected.shape[1], got.shape[1])
    found = []
    for row in range(expected.shape[0]):
        unequal = (expected[row, :width] != got[row, :width]).nonzero()
        if len(unequal):
            found.append(_difference(models, name, batch, row, int(unequal[0]), expected, got))
        elif expected.shape[1] != got.shape[1]:
            found.append(Difference(name, batch.name, row, width, -1, -1, float("inf"), float("inf"), 0.0))
    return found


def _difference(
    models: Models, name: str, batch: PromptBatch, row: int, position: int, expected: Tensor, got: Tensor
) -> Difference:
    visible = batch.input_ids[row][batch.attention_mask[row].bool()]
    prefix = torch.cat([visible, expected[row, :position]])
    with torch.no_grad():
        logits = models.target(input_ids=prefix[None]).logits[0, -1].float()
    top = logits.topk(2).values
    tokens = int(expected[row, position]), int(got[row, position])
    info = torch.finfo(models.target.dtype)
    factor = 16 if models.target.dtype == torch.float32 else 4
    return Difference(
        contender=name,
        prompt=batch.name,
        row=row,
        position=position,
        expected=tokens[0],
        got=tokens[1],
        margin=float(top[0] - top[1]),
        gap=float(top[0] - min(logits[tokens[0]], logits[tokens[1]])),
        tolerance=factor * info.eps * float(logits.abs().max()),
    )
