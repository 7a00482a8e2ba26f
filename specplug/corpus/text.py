"""What every text here is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

END = -1  # stands where a text ends, and before it begins


def in_pieces(documents: Sequence[Tensor]) -> Tensor:
    """`documents`, each [n] of token ids, one behind the other with `END` around each: [T] int32."""
    end = torch.tensor([END], dtype=torch.int32)
    return torch.cat([end, *(part for document in documents for part in (document.to(torch.int32), end))])
