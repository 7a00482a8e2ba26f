"""What a figure depends on besides the code."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
import transformers

from specplug import __version__
from specplug_hf.commands.models import Models


def environment(models: Models) -> dict[str, Any]:
    """Versions, machine and models, JSON-ready."""
    target = models.target
    return {
        "specplug": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "model": models.name,
        "target_parameters": target.num_parameters(),
        "draft_parameters": models.draft.num_parameters() if models.draft is not None else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
