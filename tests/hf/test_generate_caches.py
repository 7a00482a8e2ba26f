"""Caches passed in, exceptions in the middle, and our own cache: after every round it equals a fresh prefill."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from generate_tools import TREES, Models, Oracle, prompt, same, same_cache, speculator
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from specplug import Drafter, Speculator
from specplug_hf import runners, step, store
from specplug_hf.host import HFHost
from specplug_hf.views import FullView, RingView

LENGTH, NEW = 11, 10


def prefilled(model: Any, inputs: dict[str, Tensor], past: int) -> DynamicCache:
    """A cache with the first `past` columns of `inputs` in it, as a caller would make it."""
    mask = inputs["attention_mask"][:, :past]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    if past:
        model(
            input_ids=inputs["input_ids"][:, :past], attention_mask=mask, position_ids=positions, past_key_values=cache
        )
    return cache


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("past", [0, 4, LENGTH - 1])
@pytest.mark.parametrize("drafter", ["model", "self-streaming", "prompt_lookup"])
def test_a_cache_passed_in(fp64: Models, drafter: str, past: int, only_new: bool, padding: str):
    model, inputs = fp64.target, prompt(3, padding)
    call = dict(inputs, input_ids=inputs["input_ids"][:, past:]) if only_new else inputs
    caches = [prefilled(model, inputs, past) for _ in range(2)]
    plain = model.generate(**call, past_key_values=caches[0], max_new_tokens=NEW)
    ours = model.generate(**call, past_key_values=caches[1], max_new_tokens=NEW, assistant=speculator(drafter, fp64))
    same(ours, plain)
    same_cache(caches[1], caches[0], inputs["attention_mask"])


def test_a_cache_is_filled_without_a_dict_being_returned(fp64: Models):
    cache = DynamicCache(config=fp64.target.config)
    out = fp64.target.generate(
        **prompt(1), past_key_values=cache, max_new_tokens=NEW, assistant=speculator("model", fp64)
    )
    assert cache.get_seq_length() == out.shape[1] - 1
    more = fp64.target.generate(out, past_key_values=cache, max_new_tokens=NEW, assistant=speculator("self", fp64))
    same(more, fp64.target.generate(**prompt(1), max_new_tokens=2 * NEW))


def test_several_turns_with_one_cache(fp64: Models):
    """A conversation: tokens are added by hand between the calls."""
    results = []
    for spec in (None, speculator("model", fp64)):
        cache, ids = DynamicCache(config=fp64.target.config), prompt(1)["input_ids"]
        for turn in range(3):
            ids = fp64.target.generate(ids, past_key_values=cache, max_new_tokens=6, assistant=spec)
            ids = torch.cat([ids, torch.tensor([[5 + turn, 9, 30]])], dim=1)
        results.append(ids)
    same(*results)


# --- exceptions in the middle


class Trouble(Exception):
    pass


class Source:
    """Raises `error` when it is used for the `at`-th time, wherever it is put in."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.left = error, at

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.left -= 1
        if self.left <= 0:
            raise self.error("in the middle")


def arrange(place: str, source: Source, models: Models) -> dict[str, Any]:
    """Arguments of a call in which `source` is asked at `place`."""
    spec: Any = speculator("model", models)

    def criterion(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        source()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        source()
        return scores

    class Streamer:
        put = staticmethod(source)

        def end(self) -> None:
            pass

    class Draft(Drafter):
        def draft(self, request: Any) -> Any:
            source()
            return speculator("none", models)._candidates[0].draft(request)

    if place == "criterion":
        return {"stopping_criteria": [criterion], "assistant": spec}
    if place == "processor":
        return {"logits_processor": [processor], "assistant": spec}
    if place == "streamer":
        return {"streamer": Streamer(), "assistant": spec}
    if place == "drafter":
        return {"assistant": Speculator(drafter=Draft(), controller="fixed")}
    raise AssertionError(place)


@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["criterion", "processor", "streamer", "drafter", "target", "draft"])
def test_an_exception_leaves_model_and_cache_usable(
    fp64: Models, place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    model, inputs = fp64.target, prompt(3, "left")
    if place == "streamer":
        inputs = {k: v[:1] for k, v in inputs.items()}
    plain = model.generate(**inputs, max_new_tokens=NEW)
    cache = prefilled(model, inputs, 4)
    before = copy.deepcopy(model.generation_config.to_dict())
    source = Source(error, 5)
    if place in ("target", "draft"):
        module = (model if place == "target" else fp64.draft).model.layers[1].mlp  # inside a forward of ours
        hook = module.register_forward_pre_hook(lambda *_: source())
        call: dict[str, Any] = {"assistant": speculator("model", fp64)}
    else:
        call, hook = arrange(place, source, fp64), None
    with pytest.raises(error, match="in the middle"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=NEW, **call)
    if hook is not None:
        hook.remove()
    for each in (model, fp64.draft):
        assert each.config._attn_implementation == "sdpa"
    assert model.generation_config.to_dict() == before
    # what is in the cache belongs to the prompt, or to tokens that were generated: here only the former
    assert cache.get_seq_length() == LENGTH
    cache.crop(4 - LENGTH)
    same(model.generate(**inputs, past_key_values=cache, max_new_tokens=NEW, assistant=speculator("self", fp64)), plain)
    same(model.generate(**inputs, max_new_tokens=NEW), plain)


def test_the_callers_objects_are_not_changed(fp64: Models):
    inputs = prompt(3, "holes")
    kept = {name: value.clone() for name, value in inputs.items()}
    config, criteria, processors = GenerationConfig(max_new_tokens=NEW, pad_token_id=0), [], []
    before = config.to_dict()
    call = {"generation_config": config, "stopping_criteria": criteria, "logits_processor": processors}
    fp64.target.generate(**inputs, **call, assistant=speculator("model", fp64))
    assert config.to_dict() == before and criteria == [] and processors == []
    assert all(torch.equal(inputs[name], kept[name]) for name in kept)


# --- our cache


def fresh(model: Any, ids: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids[None], position_ids=positions[None], past_key_values=cache)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


class Watch:
    """Compares, after every round, the K/V of all layers with a fresh prefill of each row's committed tokens."""

    def __init__(self, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        self.mask, self.rounds, self.worst = inputs["attention_mask"].bool(), 0, 0.0
        watch, original = self, HFHost.commit

        def commit(self: HFHost, *args: Any) -> Any:
            done = original(self, *args)
            watch.compare(self)
            return done

        monkeypatch.setattr(HFHost, "commit", commit)

    def compare(self, it: HFHost) -> None:
        self.rounds += 1
        for place, row in enumerate(it.rows):
            end = it.progress.ends[row]
            visible = torch.cat([self.mask[row], torch.ones(end - LENGTH, dtype=torch.bool)])
            committed = it.progress.ids[row, :end][visible][:-1]  # the root's KV is not in the cache yet
            assert it.lengths[place] == len(committed)
            offset = int(it._position_offset[place])
            prompt_positions = (self.mask[row].long().cumsum(0) - 1)[self.mask[row]]
            later = torch.arange(int(self.mask[row].sum()), len(committed)) + offset
            expected = fresh(it.model, committed, torch.cat([prompt_positions, later]))
            self._close(it.store, place, expected)
            for runner in it.runners:
                if isinstance(runner, runners.SelfRunner) and isinstance(runner.view, RingView):
                    self._ring(it, runner, place)
                if isinstance(runner, runners.ModelRunner) and isinstance(runner.view, FullView):
                    self._draft(it, runner, place, row)

    def _close(self, kept: Any, place: int, expected: list[tuple[Tensor, Tensor]]) -> None:
        for layer, (keys, values) in enumerate(expected):
            length = keys.shape[1]
            for ours, theirs in ((kept.keys[layer], keys), (kept.values[layer], values)):
                error = float((ours[place, :, :length] - theirs).abs().max())
                self.worst = max(self.worst, error)
                assert error < 1e-10, f"layer {layer}, row {place}: {error}"

    def _ring(self, it: HFHost, runner: Any, place: int) -> None:
        """What the ring holds of the target's keys stands where the view says."""
        kept = runner._sparse.copied[place]
        # the draft has read the root besides, at the place of the oldest
        positions = torch.tensor([*range(min(runner.view.sink, kept)), *range(runner.view.oldest(kept + 1), kept)])
        slots = runner.view.slots(positions)
        assert len(set(slots.tolist())) == len(positions)
        for mine, targets in zip(runner.store.keys, it.store.keys, strict=True):
            assert torch.equal(mine[place][:, slots], targets[place][:, positions])

    def _draft(self, it: HFHost, runner: Any, place: int, row: int) -> None:
        start, length = it._starts[row], runner.lengths[place]
        ids = it.progress.ids[row, start : start + length]
        self._close(runner.store, place, fresh(runner.forward.model, ids, torch.arange(length)))


def watched(fp64: Models, drafter: str, tree: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> Watch:
    inputs = prompt(3, padding)
    plain = fp64.target.generate(**inputs, max_new_tokens=NEW)
    with monkeypatch.context() as patched:
        watch = Watch(inputs, patched)
        if drafter == "oracle":
            spec = Speculator(drafter=Oracle(plain[:, LENGTH:], LENGTH, 0.3), tree=TREES[tree], controller="fixed")
        else:
            spec = speculator(drafter, fp64, tree)
        same(fp64.target.generate(**inputs, max_new_tokens=NEW, assistant=spec), plain)
    assert watch.rounds >= 2
    return watch


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("drafter", ["model", "self", "self-streaming", "oracle", "hostile"])
def test_after_every_round_the_cache_equals_a_fresh_prefill(
    fp64: Models, drafter: str, tree: str, padding: str, monkeypatch: pytest.MonkeyPatch
):
    watched(fp64, drafter, tree, padding, monkeypatch)


# --- deliberate faults: each must be seen


def stale_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HFHost.node_positions
    monkeypatch.setattr(HFHost, "node_positions", lambda self, ahead, depths: original(self, ahead, depths) - 1)


def siblings_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions by node index instead of depth."""
    original = HFHost.node_positions

    def positions(self: HFHost, ahead: int, depths: Any) -> Tensor:
        return original(self, ahead, None if depths is None else torch.arange(depths.shape[-1]))

    monkeypatch.setattr(HFHost, "node_positions", positions)


def wrong_rows_length(monkeypatch: pytest.MonkeyPatch) -> None:
    original = step.Step.__init__

    def init(self: Any, view: Any, lengths: list[int], *args: Any, **kwargs: Any) -> None:
        original(self, view, lengths[1:] + lengths[:1], *args, **kwargs)

    monkeypatch.setattr(step.Step, "__init__", init)


def accepted_kv_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFHost, "_keep_path", lambda *_: None)


def roots_kv_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HFHost.commit

    def commit(self: HFHost, *args: Any) -> Any:
        for keys in self.store.keys:
            for place, length in enumerate(self.lengths):
                keys[place, :, length] = 0
        return original(self, *args)

    monkeypatch.setattr(HFHost, "commit", commit)


def mask_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.Step, "_visible", lambda self, first: torch.ones(
        len(self.fills), 1, self.num_new, self.total - first, dtype=torch.bool))  # fmt: skip
    monkeypatch.setattr(step, "_shape_bias", lambda *_: None)
    monkeypatch.setattr(step.Step, "_make_causal_bias", lambda self, dtype: step.additive(self._visible(0), dtype))


def one_slot_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.KVStore.move
    monkeypatch.setattr(store.KVStore, "move", lambda self, source, target: original(self, source, target + 1))


def wrong_rows_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.KVStore.keep_rows

    def keep(self: Any, rows: Any) -> None:
        original(self, [max(0, row - 1) for row in rows])

    monkeypatch.setattr(store.KVStore, "keep_rows", keep)


FAULTS = [
    stale_positions, siblings_in_a_row, wrong_rows_length, accepted_kv_not_moved, roots_kv_lost, mask_dropped,
    one_slot_too_far,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_seen(fp64: Models, fault: Any, monkeypatch: pytest.MonkeyPatch):
    inputs = prompt(3, "left")
    plain = fp64.target.generate(**inputs, max_new_tokens=30)
    spec = Speculator(drafter=Oracle(plain[:, LENGTH:], LENGTH, 0.3), tree=TREES["sequoia"], controller="fixed")
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        same(fp64.target.generate(**inputs, max_new_tokens=30, assistant=spec), plain)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_seen_in_the_cache(fp64: Models, fault: Any, monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)) as seen:
        watched(fp64, "oracle", "sequoia", "left", monkeypatch)
    assert seen is not None


def test_rows_kept_wrongly_are_seen(fp64: Models, monkeypatch: pytest.MonkeyPatch):
    inputs = prompt(3, "left")
    free = fp64.target.generate(**inputs, max_new_tokens=NEW)[:, LENGTH:]
    call = {**inputs, "max_new_tokens": NEW, "eos_token_id": [int(free[0, 2])]}
    plain = fp64.target.generate(**call)
    wrong_rows_kept(monkeypatch)
    with pytest.raises(AssertionError):
        same(fp64.target.generate(**call, assistant=speculator("none", fp64)), plain)
