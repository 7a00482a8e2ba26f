"""Recorded drafts and verifies, with a stand-in for CUDA graphs (recorded_ops.py): replays change nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from generate_tools import Models, disturbed, prompt, same, tiny
from recorded_ops import RecordedOps
from recorded_tools import as_eagerly, record_on_a_cpu, speculated

from specplug import Speculator
from specplug.kv_policies import Streaming
from specplug_hf.graphs import Graphs, recorder_of
from specplug_hf.graphs.graphs import WORTH
from specplug_hf.paged.store import PAGE

NEW = 40
SELF = {"drafter": "self", "kv_policy": Streaming(2, 5)}


@pytest.fixture(scope="module")
def models() -> Models:
    target = tiny(dtype="float64")
    return Models(target, disturbed(target, 0.05), target)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_a_cpu(monkeypatch)


@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=7,depth=3", "dynamic:size=5,depth=3"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_replays_change_nothing(models: Models, monkeypatch: pytest.MonkeyPatch, tree: str, sampled: bool) -> None:
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "do_sample": sampled}
    if sampled and tree.startswith("dynamic"):
        call["temperature"] = 0.7
    setup = {**SELF, "tree": tree, "controller": "fixed", "seed": 5}
    ran = as_eagerly(models, monkeypatch, Speculator(kernel="paged", **setup), **call)
    same(ran.output, models.target.generate(**call, assistant=Speculator(**setup)))  # over rows
    if not sampled:
        same(ran.output, models.target.generate(**call))
    assert ran.replays["draft"] > 4 and ran.replays["verify"] > 4


def test_a_verify_is_replayed_for_any_drafter(models: Models, recording: None) -> None:
    call = {**prompt(2), "max_new_tokens": NEW}
    spec = Speculator(
        drafter="model", draft_model=models.draft, tree="chain:length=2", controller="fixed", kernel="paged"
    )
    ran = speculated(models, spec, **call)
    same(ran.output, models.target.generate(**call))
    assert not ran.replays["draft"] and ran.replays["verify"] > 2


def test_rows_that_leave_begin_new_recordings(models: Models, recording: None) -> None:
    call = {**prompt(4), "max_new_tokens": 3 * PAGE}
    plain = models.target.generate(**prompt(4), max_new_tokens=30)
    call["eos_token_id"] = [int(plain[0, 20]), int(plain[1, 35])]
    ran = speculated(models, Speculator(kernel="paged", **SELF, tree="chain:length=3", controller="fixed"), **call)
    same(ran.output, models.target.generate(**call))
    assert ran.replays["draft"] >= 4 and ran.replays["verify"] >= 4


@pytest.mark.slow
def test_pages_that_grow_begin_new_recordings(models: Models, recording: None) -> None:
    """What was recorded stands on memory that was left: a replay of it would write where nobody reads."""
    call = {**prompt(2), "max_new_tokens": 3 * PAGE}
    ran = speculated(models, Speculator(kernel="paged", **SELF, tree="chain:length=3", controller="fixed"), **call)
    same(ran.output, models.target.generate(**call))
    assert ran.host.store.capacity >= 4 * PAGE and ran.replays["draft"] > 4


def test_the_last_position_of_the_model_is_not_left(recording: None) -> None:
    target = tiny(dtype="float64", max_position_embeddings=64)
    models = Models(target, target, target)
    call = {**prompt(2), "max_new_tokens": 64 - prompt(2)["input_ids"].shape[1]}
    ran = speculated(models, Speculator(kernel="paged", **SELF, tree="chain:length=5", controller="fixed"), **call)
    same(ran.output, target.generate(**call))
    assert ran.replays["draft"]


def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(models: Models, monkeypatch: Any, caplog: Any) -> None:
    def refuses(function: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    record_on_a_cpu(monkeypatch, refuses)
    call = {**prompt(2), "max_new_tokens": NEW}
    with caplog.at_level(logging.WARNING, logger="specplug_hf"):
        ran = speculated(models, Speculator(kernel="paged", **SELF, tree="chain:length=3", controller="fixed"), **call)
    same(ran.output, models.target.generate(**call))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("not permitted when stream is capturing" in line for line in said)
    assert not ran.recorded.graphs.replays


@pytest.mark.parametrize("asked", [{"kernel": "auto"}, {"kernel": "paged", "hidden": True}])
def test_other_calls_run_eagerly(models: Models, recording: None, asked: dict[str, Any], caplog: Any) -> None:
    call = {**prompt(2), "max_new_tokens": 12}
    if asked.get("hidden"):
        call |= {"return_dict_in_generate": True, "output_hidden_states": True}
    with caplog.at_level(logging.INFO, logger="specplug_hf"):
        ran = speculated(models, Speculator(kernel=asked["kernel"], **SELF), **call)
    assert ran.recorded is None
    assert "rounds run eagerly" in caplog.text


def test_nothing_is_recorded_without_a_gpu() -> None:
    assert recorder_of(torch.device("cpu")) is None


def test_a_kind_is_recorded_once_it_has_been_seen_a_few_times() -> None:
    graphs, runs = Graphs(RecordedOps), []

    def double(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return x * 2

    x = torch.arange(3.0)
    for use in range(WORTH + 3):
        result = graphs.run("double", (x + use,), double)
        if use < WORTH:
            assert result is None
        else:
            assert torch.equal(result, 2 * (x + use))
    assert graphs.replays == 3 and len(runs) == 2  # once to warm up, once recorded
    assert graphs.run("double", (torch.arange(4.0),), double) is None  # of another shape
    graphs.forget()
    assert graphs.run("double", (x,), double) is None


def test_the_stand_in_refuses_what_a_capture_refuses() -> None:
    x = torch.arange(3.0)
    for function in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: torch.tensor([1, 2]) + 1):
        with pytest.raises(RuntimeError, match=r"waits for the device|copy from the host"):
            RecordedOps(function)
