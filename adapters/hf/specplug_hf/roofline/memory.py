"""Whether a cell fits into the memory that is free: if not, it is said and not tried."""

from __future__ import annotations

import gc

import torch
from transformers import PreTrainedModel

from specplug.cost.device_memory import RESERVE
from specplug_hf.calibration import room
from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.room import kv_bytes
from specplug_hf.roofline.prompts import kept_bytes
from specplug_hf.roofline.rounds import ROOM


def release(device: torch.device) -> None:
    """Give back what finished generations held; they hold each other, so only the collector finds them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def obstacle(model: PreTrainedModel, cell: Cell, growing: bool) -> str | None:
    """Why `cell` is not tried, if it is not. `growing`: by transformers' cache, of which a step copies one layer's keys.

    What earlier generations held should have been released.
    """
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and cell.context + ROOM > positions:
        return f"the model has {positions} positions"
    needed = kept_bytes(model, cell) + ROOM * cell.rows * kv_bytes(model)
    if growing:
        needed += kv_bytes(model) * cell.tokens / (2 * model.config.get_text_config(decoder=True).num_hidden_layers)
    reserve = RESERVE if model.device.type == "cuda" else 0.0
    free = room.free_bytes(model.device)
    if needed + reserve <= free:
        return None
    return f"needs {(needed + reserve) / 2**30:.4g} GiB of memory, {free / 2**30:.4g} GiB are free"
