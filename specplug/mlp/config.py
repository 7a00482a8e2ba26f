"""The sizes of a set of heads: the keys of IBM's `config.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specplug.errors import OptionError

MODEL_TYPE = "mlp_speculator"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """Names as published. `emb_dim`: the target's hidden size; `inner_dim`: the heads' own, 0 = `emb_dim`; `n_predict`: heads,
    so tokens ahead. `top_k_tokens_per_head`: tokens that the tree tries behind each node, level by level (empty: 1);
    `n_candidates`: paths of the tree. Raises `OptionError` for sizes that cannot be.
    """

    vocab_size: int
    emb_dim: int
    inner_dim: int = 0
    n_predict: int = 3
    top_k_tokens_per_head: tuple[int, ...] = ()
    n_candidates: int = 5
    tie_weights: bool = False
    scale_input: bool = False

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("emb_dim", 1), ("inner_dim", 0), ("n_predict", 1), ("n_candidates", 1)):
            _check_whole(name, getattr(self, name), least)
        for count in self.top_k_tokens_per_head:
            _check_whole("top_k_tokens_per_head", count, 1)
        if self.top_k_tokens_per_head and len(self.top_k_tokens_per_head) != self.n_predict:
            raise OptionError(
                f"mlp_speculator: top_k_tokens_per_head={list(self.top_k_tokens_per_head)} needs one entry for each of "
                f"n_predict={self.n_predict} heads."
            )
        for name in ("tie_weights", "scale_input"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"mlp_speculator: {name}={getattr(self, name)!r} must be true or false.")

    @property
    def width(self) -> int:
        """Numbers in a head's state."""
        return self.inner_dim or self.emb_dim

    @property
    def token_weight(self) -> float:
        """w_e / w_s, of the token's embedding against the state: the first state makes half of the last one's magnitude."""
        state = 0.5 ** (0.5 / self.n_predict)
        return math.sqrt((1 - state**2) * self.width / 2) / float(state)

    @property
    def widths(self) -> tuple[int, ...]:
        """`top_k_tokens_per_head`, one entry a head."""
        return self.top_k_tokens_per_head or (1,) * self.n_predict

    def as_json(self) -> dict[str, Any]:
        """The contents of `config.json`."""
        listed = list(self.widths)
        return {"model_type": MODEL_TYPE, **asdict(self), "top_k_tokens_per_head": listed}


def read_config(folder: Path) -> HeadsConfig:
    """The configuration in `folder`. `OptionError` names the file, and the key that is missing or cannot be."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise OptionError(f"mlp_speculator: no folder {folder}; give one that holds {CONFIG} and *.safetensors.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"mlp_speculator: cannot read {path}: {error}") from error
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        found = values.get("model_type") if isinstance(values, dict) else values
        raise OptionError(f"{path}: model_type is {found!r}; a checkpoint of {MODEL_TYPE!r} is needed.")
    for key in ("vocab_size", "emb_dim", "n_predict"):
        if key not in values:
            raise OptionError(f"{path}: {key} is missing.")
    known = {name: values[name] for name in HeadsConfig.__dataclass_fields__ if name in values}
    listed = known.get("top_k_tokens_per_head") or ()
    if not isinstance(listed, list | tuple):
        raise OptionError(f"{path}: top_k_tokens_per_head={listed!r} must be a list.")
    known["top_k_tokens_per_head"] = tuple(listed)
    return HeadsConfig(**known)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"mlp_speculator: {name}={value!r} must be a whole number of at least {least}.")
