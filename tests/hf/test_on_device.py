"""The adapter where SPECPLUG_TEST_DEVICE says (default: the CPU; `make gpu` says cuda): checks of the conformance suite in fp64
and fp32, and bf16, where a token may differ from plain generation's only if rounding explains it.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from generate_tools import DRAFTERS, prompt, speculator
from generate_tools import Models as Trio
from torch import Tensor

from specplug import SpecplugError, Speculator
from specplug.plugins import plugins
from specplug_conformance import Case, Request
from specplug_conformance.case import known_cases
from specplug_conformance.engine import Job, Status, suite
from specplug_conformance.llama.tiny import disturbed, tiny
from specplug_conformance.report import failure_text
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.equality import differences
from specplug_hf.commands.models import Models
from specplug_hf.conformance.subject import HFSubject, HFWorld

DEVICE = torch.device(os.environ.get("SPECPLUG_TEST_DEVICE", "cpu"))
ACCELERATED = DEVICE.type != "cpu"
CHECKS = ("greedy", "greedy-fp32", "processors", "stopping", "batch", "seeds", "cache")
# A head as wide as kernels for GPUs want it. Kernels that only a GPU has are asked for where there is one.
WIDE: dict[str, Any] = {"hidden_size": 128, "head_dim": 64, "intermediate_size": 160}
KERNELS = plugins().names("kernels") if ACCELERATED else ["auto", "paged"]


class DeviceWorld(HFWorld):
    """The suite's tiny Llamas on `DEVICE`."""

    def __init__(self, seed: int, vocab: int, dtype: str) -> None:
        super().__init__(seed, vocab, dtype)
        self.model.to(DEVICE), self.draft.to(DEVICE)

    def call(self, request: Request) -> dict[str, Any]:
        """The same, its tensors on `DEVICE`."""
        return {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in super().call(request).items()}

    def scores(self, tokens: Sequence[int], request: Request, prompt_length: int) -> Tensor:
        """On the CPU, where the suite compares."""
        return super().scores(tokens, request, prompt_length).cpu()

    def fresh(self, tokens: Sequence[int]) -> list[Tensor]:
        """From a prefill on `DEVICE`, where the caches of the rounds are."""
        with torch.device(DEVICE):
            return super().fresh(tokens)

    def fingerprint(self) -> Hashable:
        raise NotImplementedError("no check in CHECKS asks for it")


class DeviceSubject(HFSubject):
    """transformers on `DEVICE`."""

    def world(self, seed: int, vocab: int, dtype: str) -> DeviceWorld:
        return DeviceWorld(seed, vocab, dtype)


# The adapter's own checks, with a draft model; on a device that the suite itself does not use, the target's own drafts too.
OWN = [case for case in known_cases() if (case.kind, case.name) == ("drafter", "self")] if ACCELERATED else []
SUITE = suite(checks=CHECKS, effort="quick", cases=[Case("device", "adapter", DeviceSubject), *OWN])


@pytest.mark.parametrize("job", SUITE.jobs, ids=lambda job: job.name)
def test_conformance(job: Job) -> None:
    result = SUITE.run_job(job)
    if result.status is Status.SKIPPED:
        pytest.skip(result.message)
    assert result.ok, failure_text(result)


@pytest.fixture(scope="module")
def half() -> Trio:
    """Target, disturbed draft and unrelated draft in bfloat16 on `DEVICE`."""
    target = tiny(dtype="float64", **WIDE)
    drafts = disturbed(target, 0.05), tiny(seed=5, dtype="float64", **WIDE)
    return Trio(*(model.to(DEVICE, torch.bfloat16) for model in (target, *drafts)))


def check_rounding(models: Trio, spec: Speculator, call: dict[str, Tensor], new_tokens: int) -> None:
    """Generate plain and with `spec`: every row's first difference must be rounding's. Skips a kernel that is not here."""
    call = {name: value.to(DEVICE) for name, value in call.items()}
    width = call["input_ids"].shape[1]
    plain = models.target.generate(**call, max_new_tokens=new_tokens)[:, width:]
    try:
        ours = models.target.generate(**call, assistant=spec, max_new_tokens=new_tokens)[:, width:]
    except SpecplugError as error:
        if spec.kernel == "auto":
            raise
        pytest.skip(str(error))
    assert spec.stats.rounds
    held: Any = Models(models.target, None, None, None, "tiny")
    found = differences(held, spec.kernel, PromptBatch(**call, name=f"prompts of {width}"), plain, ours)
    assert not [str(one) for one in found if not one.is_rounding]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("drafter", [name for name in DRAFTERS if name != "hostile"])
def test_bf16_differs_by_rounding_only(half: Trio, drafter: str, kernel: str) -> None:
    for rows, padding in ((1, "none"), (3, "left")):
        for tree in ("chain", "sequoia"):
            check_rounding(half, speculator(drafter, half, tree, kernel=kernel), prompt(rows, padding), 24)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_over_several_pages_and_turns_of_the_ring(half: Trio, kernel: str) -> None:
    spec = Speculator(
        drafter="self", kv_policy="streaming:sink=4,window=60", tree="chain:length=4", controller="fixed", kernel=kernel
    )
    check_rounding(half, spec, prompt(2, "left", length=300), 80)


def test_bf16_sampling_follows_its_seed(half: Trio) -> None:
    call = {name: value.to(DEVICE) for name, value in prompt(3, "left").items()}
    texts = []
    for seed in (3, 3, 4):
        spec = replace(speculator("model", half), seed=seed)
        texts.append(half.target.generate(**call, assistant=spec, do_sample=True, max_new_tokens=16).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_everything_was_on_the_device(half: Trio) -> None:
    """So that a run on a GPU is one."""
    assert all(p.device.type == DEVICE.type for model in (half.target, half.draft) for p in model.parameters())
    assert DeviceWorld(0, 17, "float32").model.device.type == DEVICE.type
