"""The state of a training on disk: safetensors and JSON, replaced as a whole, so that a crash leaves the last one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specplug.errors import OptionError

STATE = "state.json"
CONFIGURATION = "configuration.json"


def save_state(
    folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], record: Mapping[str, Any]
) -> None:
    """Write `model`'s parameters, what the optimisers remember and `record` (JSON) to `folder`, in place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": stored(p) for name, p in model.named_parameters()}
    for k, optimizer in enumerate(optimizers):
        for i, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optim.{k}.{i}.{name}": stored(value) for name, value in entry.items()}
    file = f"state-{step}.safetensors"
    save_file(tensors, folder / f"{file}.part")
    os.replace(folder / f"{file}.part", folder / file)
    write_json(folder / STATE, {"file": file, **record})
    for old in folder.glob("state-*.safetensors*"):
        if old.name != file:
            old.unlink()


def saved_record(folder: Path) -> dict[str, Any] | None:
    """The record of the state in `folder`; None if there is none."""
    path = folder / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def load_state(
    folder: Path, record: Mapping[str, Any], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put the tensors that belong to `record` into `model` and `optimizers`. A file that is missing is an `OptionError`."""
    path = folder / str(record["file"])
    if not path.exists():
        raise OptionError(f"{path}: the state to resume from is incomplete; start again in an empty folder.")
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for k, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith(f"optim.{k}."):
                _, _, i, name = key.split(".")
                state["state"].setdefault(int(i), {})[name] = value
        optimizer.load_state_dict(state)


def claim(folder: Path, configuration: Mapping[str, Any], resume: bool) -> None:
    """Take `folder` for a training with `configuration` (JSON values), written there; an `OptionError` if it is another's.

    With `resume` a training of the same configuration goes on (one that was never begun begins); without it the folder
    must not hold one.
    """
    path = folder / CONFIGURATION
    wanted = json.loads(json.dumps(configuration))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    if not resume:
        raise OptionError(f"{folder}: there is a training already; go on with it by --resume, or choose another --out.")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for key in (*wanted, *(key for key in saved if key not in wanted)):
        if saved.get(key) != wanted.get(key):
            raise OptionError(
                f"{folder}: cannot resume, {key} differs: it was {saved.get(key)!r} and is {wanted.get(key)!r}; give the same "
                "again, or choose another --out."
            )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` to `path`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def stored(tensor: Tensor) -> Tensor:
    """`tensor` as safetensors takes it: on the CPU, contiguous, of nothing else's memory."""
    return tensor.detach().cpu().contiguous()
