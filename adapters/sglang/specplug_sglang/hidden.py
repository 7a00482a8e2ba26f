"""What comes out of the target's last norm, for drafters that start from it (MLP speculators)."""

from __future__ import annotations

import torch
from torch import Tensor


class HiddenStates:
    """One row for each of SGLang's request slots: the state at the token from which the request's newest one was chosen."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._states: Tensor | None = None  # [slots, D], of the model's dtype: made when the first are seen

    def write(self, rows: Tensor, output: Tensor | None, places: Tensor | None = None) -> None:
        """`output` [n, D] of a forward; row b's is that at `places[b]`, by default at b. `rows` [B]: request slots."""
        assert output is not None, "SGLang was asked for hidden states and gave none"
        states = output if places is None else output[places]
        if self._states is None:
            self._states = torch.zeros(self._slots, states.shape[1], dtype=states.dtype, device=states.device)
        self._states[rows] = states

    def rows(self, rows: Tensor) -> Tensor:
        """Of the requests in `rows` [B]: [B, D]."""
        assert self._states is not None, "no prompt has been run"
        return self._states[rows]
