"""What `specplug roofline` does: the model, the device's figures, cell after cell, everything kept as it comes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from specplug import OptionError
from specplug.commands.plan_options import numbers, whole
from specplug.cost import Roofline
from specplug.cost.identity import device_name
from specplug.cost.presets import device as device_figures
from specplug.kv_policies import Streaming
from specplug_hf.calibration.calibration import versions
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell
from specplug_hf.commands.models import Models
from specplug_hf.roofline import report
from specplug_hf.roofline.bandwidth import copy_bandwidth
from specplug_hf.roofline.grid import cells
from specplug_hf.roofline.model import configuration, random_model, shape_of
from specplug_hf.roofline.result import CellResult
from specplug_hf.roofline.rounds import Cast
from specplug_hf.roofline.survey import Questions, Survey
from specplug_hf.roofline.wrong import WrongSelfDraft


class Measurement:
    """One invocation of the command. The clock starts here: making the model counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.clock = Clock(whole("--budget-seconds", arguments.budget_seconds))
        self.cells = cells(arguments.cells)
        budget = whole("--window", arguments.window)
        questions = Questions(_nodes(arguments.nodes), _rates(arguments.acceptance), budget)
        fields = configuration(arguments.model, arguments.dtype)
        shape, figures = shape_of(fields, arguments.model), device_figures(arguments.figures)
        if arguments.json is not None and not arguments.json.expanduser().parent.is_dir():
            raise OptionError(f"--json {str(arguments.json)!r}: there is no such folder.")
        drafter = WrongSelfDraft(Streaming.within(budget))
        self.device = _device(arguments.device)
        self.bandwidth = copy_bandwidth(self.device)
        model = random_model(fields, self.device)
        models = Models(model, None, None, None, f"{arguments.model}, random weights")
        self.survey = Survey(
            models,
            Cast(models, drafter, arguments.kernel),
            questions,
            Roofline(shape, figures),
            Roofline(shape, dataclasses.replace(figures, bandwidth=self.bandwidth)),
            self.clock,
        )
        self.results: list[CellResult] = []
        self.left_out: list[str] = []
        self.finished = False

    def run(self) -> int:
        """Measure, print, write after every part; 0, or 1 if anything failed that neither memory nor time explains."""
        print(report.header(self.environment()), flush=True)
        reason = self.survey.warm_up()
        if reason is not None:
            self.left_out.append(f"warming up: {reason}")
        print(f"{self.clock.spent:.0f} s until everything had run once", flush=True)
        for cell in self.cells:
            self._cell(cell)
        self.finished = True
        self._write(self.results)
        print("\n" + report.goals(self.results))
        print("".join(f"\nleft out: {line}" for line in self.left_out), flush=True)
        print(f"{self.clock.spent:.0f} s of {self.clock.seconds:.0f}")
        if not any(result.parts for result in self.results):
            raise OptionError("Nothing was measured. " + "; ".join(self.left_out + _reasons(self.results)))
        return int(self.survey.failed)

    def _cell(self, cell: Cell) -> None:
        if self.clock.over:
            self.left_out.append(f"{cell}: the time was over")
            return
        result = self.survey.measure(cell, lambda partial: self._write([*self.results, partial]))
        self.results.append(result)
        self._write(self.results)
        print("\n" + report.cell(result), flush=True)

    def environment(self) -> dict[str, Any]:
        """What a figure depends on besides the code."""
        figures = self.survey.figures.device
        return {
            "model": self.arguments.model,
            "dtype": self.arguments.dtype,
            "device": device_name(self.device),
            "machine": platform.machine(),
            "kernel": self.arguments.kernel,
            "drafter": f"the target over a window of {self.survey.questions.budget}, its tokens made wrong: a round commits one",
            "limits": f"{figures.name}: {figures.bandwidth / 1e12:.3g} TB/s, {figures.flops / 1e12:.3g} TFLOP/s",
            "copy": f"{self.bandwidth / 1e12:.3g} TB/s measured, bytes read and written",
            **versions(),
            **_installed("triton", "flashinfer-python"),
        }

    def _write(self, results: Sequence[CellResult]) -> None:
        """Everything so far, in one step: an interruption leaves the last state whole."""
        if self.arguments.json is None:
            return
        path: Path = self.arguments.json.expanduser()
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.as_dict(results), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)

    def as_dict(self, results: Sequence[CellResult]) -> dict[str, Any]:
        """JSON-ready. `finished`: whether every cell was measured or said to be left out."""
        return {
            "weights": report.RANDOM,
            "environment": self.environment(),
            "copy_bytes_a_second": self.bandwidth,
            "figures": dataclasses.asdict(self.survey.figures.device),
            "shape": dataclasses.asdict(self.survey.figures.target_shape),
            "cells": [result.as_dict() for result in results],
            "left_out": self.left_out,
            "finished": self.finished,
            "seconds": self.clock.spent,
        }


def _installed(*packages: str) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _reasons(results: Sequence[CellResult]) -> list[str]:
    return [f"{result.cell}: {line}" for result in results for line in result.left_out]


def _nodes(text: str) -> tuple[int, ...]:
    found = tuple(sorted(set(numbers("--nodes", text)) - {1}))
    if not found:
        raise OptionError(
            f"--nodes {text!r}: a verify of more than one node is needed; plain rounds come by themselves."
        )
    return found


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(piece) for piece in text.split(","))
    except ValueError as error:
        raise OptionError(f"--acceptance {text!r}: numbers from 0 to 1, separated by commas.") from error
    if not all(0 <= rate <= 1 for rate in rates):
        raise OptionError(f"--acceptance {text!r}: numbers from 0 to 1, separated by commas.")
    return rates


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r}: cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"--device {name}: torch {torch.__version__} sees no GPU here; --device cpu takes any machine."
        )
    return device
