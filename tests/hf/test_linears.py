"""Linear layers of a few rows through the compiled kernel: in our own forwards only, never from a stale weight, and put back."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from generate_tools import Models, make_models, prompt, speculator
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import specplug
from specplug_hf.bypass import Bypass
from specplug_hf.compiled import linears as ours
from specplug_hf.compiled.linears import Linears
from specplug_hf.demo import load_pair
from specplug_hf.demo import prompt as text
from specplug_kernels import explain_linear, skinny_rows
from specplug_kernels.processor import Processor

NEW = 24
WIDE = 64


@pytest.fixture(scope="module")
def pair() -> Any:
    return load_pair()[:2]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product that the compiled kernel computes."""
    if not explain_linear(4, WIDE, WIDE).startswith("native"):
        pytest.skip(f"compiled products are not chosen here: {explain_linear(4, WIDE, WIDE)}")
    rows: list[int] = []
    compiled = ours.try_linear

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        result = compiled(x, weight, bias)
        if result is not None:
            rows.append(x.numel() // x.shape[-1])
        return result

    monkeypatch.setattr(ours, "try_linear", noted)
    return rows


@pytest.fixture(autouse=True)
def _as_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """From two rows on: where torch's products are at their best, ours begin with four."""
    monkeypatch.setattr(sys.modules[skinny_rows.__module__], "processor", lambda: Processor.USUAL)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        yield


class Answering:
    """A context in which `model`'s layers are served, as in a forward of ours."""

    def __init__(self, model: nn.Module) -> None:
        self.linears = Linears(model)

    def __enter__(self) -> Linears:
        self.linears.__enter__()
        return self.linears

    def __exit__(self, *error: object) -> None:
        self.linears.__exit__(*error)


def layer(bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDE, WIDE + 16, bias=bias)


def exact(module: nn.Linear, x: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.double()
    return nn.functional.linear(x.double(), module.weight.double(), bias).to(x.dtype)


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in module.__dict__]


# ---- Generation. ----


SETUPS: dict[str, dict[str, Any]] = {
    "model": {"drafter": "model", "tree": "kary:branch=2,depth=3"},
    "prompt_lookup": {"drafter": "prompt_lookup", "tree": "chain:length=6"},
    "self": {"drafter": "self", "kv_policy": "streaming:sink=4,window=60", "tree": "chain:length=3"},
    "layer_skip": {"drafter": "layer_skip", "tree": "chain:length=3"},
    "none": {"drafter": "none"},
}


def texts(rows: int) -> dict[str, Tensor]:
    """Prompts of different lengths, padded on the left."""
    lengths = [130 - 15 * row for row in range(rows)]
    ids, mask = torch.zeros(rows, 130, dtype=torch.int64), torch.zeros(rows, 130, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = text(length, row)[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def plain(pair: Any) -> dict[int, Tensor]:
    return {rows: pair[0].generate(**texts(rows), max_new_tokens=NEW, do_sample=False) for rows in (1, 2, 5)}


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_greedy_says_what_plain_says(
    setup: dict[str, Any], rows: int, pair: Any, plain: dict[int, Tensor], served: list[int]
) -> None:
    target, draft = pair
    more = {"draft_model": draft} if setup["drafter"] == "model" else {}
    spec = specplug.Speculator(**setup, **more, controller="fixed")
    output = target.generate(**texts(rows), max_new_tokens=NEW, do_sample=False, assistant=spec)
    assert torch.equal(output, plain[rows])
    assert bool(served) == (setup["drafter"] != "none" or rows > 1)
    assert 1 not in served and not replaced(target) and not replaced(draft)


def test_a_draft_models_forwards_are_served_as_well(pair: Any, served: list[int]) -> None:
    target, draft = pair
    spec = specplug.Speculator(drafter="model", draft_model=draft, tree="kary:branch=3,depth=2", controller="fixed")
    target.generate(**texts(1), max_new_tokens=NEW, do_sample=False, assistant=spec)
    # 13 nodes verified, three children of the root drafted from
    assert 13 in served and 3 in served


@pytest.mark.parametrize("kernel", ["torch", "sdpa", "paged"])
def test_a_kernel_of_torchs_turns_it_off(kernel: str, pair: Any, served: list[int]) -> None:
    spec = specplug.Speculator(drafter="prompt_lookup", tree="chain:length=3", controller="fixed", kernel=kernel)
    pair[0].generate(**texts(2), max_new_tokens=4, do_sample=False, assistant=spec)
    assert not served


@pytest.mark.parametrize("drafter", ["model", "self-streaming", "prompt_lookup"])
def test_models_in_fp64_are_untouched(drafter: str, served: list[int]) -> None:
    models: Models = make_models("float64")
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "do_sample": False}
    assert not Linears(models.target)._modules
    output = models.target.generate(**call, assistant=speculator(drafter, models))
    assert torch.equal(output, models.target.generate(**call)) and not served


def test_a_plain_call_in_another_thread_is_untouched(pair: Any, served: list[int]) -> None:
    """While we are inside a verify, another thread's forward of as many tokens computes as ever, bit by bit."""
    target = pair[0]
    ids = text(6, 1)
    wanted = target(input_ids=ids, use_cache=False).logits
    found: list[Tensor] = []
    before: list[int] = []

    def elsewhere() -> None:
        with torch.no_grad():
            found.append(target(input_ids=ids, use_cache=False).logits)

    def in_between(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is threading.main_thread() and served and not found:
            before.append(len(served))
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
            assert len(served) == before[0]

    hook = target.model.layers[3].mlp.register_forward_pre_hook(in_between)
    try:
        spec = specplug.Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed")
        target.generate(**texts(1), max_new_tokens=8, do_sample=False, assistant=spec)
    finally:
        hook.remove()
    assert before and torch.equal(found[0], wanted)


def test_between_rounds_the_same_thread_is_untouched(pair: Any, served: list[int]) -> None:
    """A stopping criterion that asks the model itself gets what it would get without us."""
    target, ids = pair[0], text(6, 1)
    wanted = target(input_ids=ids, use_cache=False).logits
    found: list[Tensor] = []

    def asking(*_: Any, **__: Any) -> Tensor:
        found.append(target(input_ids=ids, use_cache=False).logits)
        return torch.zeros(1, dtype=torch.bool)

    spec = specplug.Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed")
    target.generate(**texts(1), max_new_tokens=8, do_sample=False, assistant=spec, stopping_criteria=[asking])
    assert served and len(found) > 1 and all(torch.equal(logits, wanted) for logits in found)


def test_an_exception_inside_leaves_the_model_as_it_was(pair: Any, served: list[int]) -> None:
    target = pair[0]

    def breaks(module: nn.Module, args: Any) -> None:
        if served:
            raise RuntimeError("out of here")

    hook = target.model.layers[5].register_forward_pre_hook(breaks)
    spec = specplug.Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed")
    try:
        with pytest.raises(RuntimeError, match="out of here"):
            target.generate(**texts(1), max_new_tokens=8, do_sample=False, assistant=spec)
    finally:
        hook.remove()
    seen = len(served)
    assert seen and not replaced(target)
    target(input_ids=text(6, 1), use_cache=False)
    assert len(served) == seen


# ---- What is served, and what is left alone. ----


def test_a_layer_is_served_however_it_is_called(served: list[int]) -> None:
    module, x = layer(), torch.randn(2, 3, WIDE)
    with Answering(module):
        results = [module(x), module(input=x), module.forward(x)]
    assert served == [6] * 3
    assert all(torch.allclose(result, exact(module, x), atol=1e-5) for result in results)


class Own(nn.Linear):
    """A linear layer that computes in its own way."""


def hooked(module: nn.Linear) -> None:
    own = module.forward
    module.forward = lambda x: own(x)  # type: ignore[method-assign]


LEFT_ALONE: dict[str, Callable[[nn.Linear], Any]] = {
    "subclass": lambda module: Own(WIDE, WIDE),
    "another forward": hooked,
    "parametrised": lambda module: parametrize.register_parametrization(module, "weight", nn.Identity()),
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "meta": lambda module: module.to("meta"),
    "double": lambda module: module.double(),
    "small": lambda module: nn.Linear(8, 8),
    "compiled": lambda module: module.compile(),
    "dynamic int8": lambda module: torch.ao.nn.quantized.dynamic.Linear(WIDE, WIDE),
}


@pytest.mark.parametrize("change", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_left_alone(change: Callable[[nn.Linear], Any], served: list[int]) -> None:
    module = layer()
    changed = change(module)
    module = changed if isinstance(changed, nn.Module) else module
    assert not Linears(nn.Sequential(module))._modules


def test_a_model_that_is_compiled_is_left_alone(served: list[int]) -> None:
    model = nn.Sequential(layer(), nn.Sequential(layer()))
    assert len(Linears(model)._modules) == 2
    assert not Linears(torch.compile(model))._modules
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    assert not Linears(model)._modules


def test_linear_layers_that_somebody_has_patched_as_a_class(served: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert not Linears(layer())._modules


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "in place": lambda m: m.weight.mul_(3.0),
    "data": lambda m: setattr(m.weight, "data", torch.randn_like(m.weight)),
    "data turned": lambda m: setattr(m.weight, "data", torch.randn(WIDE, WIDE + 16).mT),
    "replaced": lambda m: setattr(m, "weight", nn.Parameter(torch.randn_like(m.weight))),
    "another size": lambda m: (setattr(m, "weight", nn.Parameter(torch.randn(200, WIDE))), setattr(m, "bias", None)),
    "no bias": lambda m: setattr(m, "bias", None),
    "another bias": lambda m: setattr(m, "bias", nn.Parameter(torch.randn_like(m.bias))),
    "loaded": lambda m: m.load_state_dict({"weight": torch.randn_like(m.weight), "bias": m.bias * 2}, assign=True),
    "there and back": lambda m: m.half().float(),
    "no parameter": lambda m: (delattr(m, "weight"), setattr(m, "weight", torch.randn(WIDE + 16, WIDE))),
    "no parameter, bias": lambda m: (delattr(m, "bias"), setattr(m, "bias", torch.randn(WIDE + 16))),
    "tied": lambda m: setattr(m, "weight", nn.Embedding(WIDE + 16, WIDE).weight),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_change_between_calls(change: Callable[[nn.Linear], Any], served: list[int]) -> None:
    module, x = layer(), torch.randn(5, WIDE)
    with Answering(module):
        before = module(x)
        change(module)
        after = module(x)
    assert torch.allclose(after, exact(module, x), atol=2e-4, rtol=1e-4)
    assert after.shape != before.shape or (not torch.allclose(before, after, atol=1e-6) and len(served))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_dtype_between_calls(dtype: torch.dtype, served: list[int]) -> None:
    module, x = layer(), torch.randn(5, WIDE)
    with Answering(module):
        module(x)
        module.to(dtype)
        after = module(x.to(dtype))
        with pytest.raises(RuntimeError):  # as ever
            module(x)
    assert after.dtype == dtype
    assert torch.allclose(after.double(), exact(module, x.to(dtype)).double(), atol=2e-2)


def test_gradients_autocast_and_watchers_are_torchs(pair: Any, served: list[int]) -> None:
    module, x = layer(), torch.randn(5, WIDE)
    with torch.enable_grad():
        assert len(Linears(module)._modules) == 1  # which does not depend on where it was made
    with Answering(module) as linears:
        assert linears.pays(5) and not linears.pays(1) and not linears.pays(1000)
        with torch.autocast("cpu", torch.bfloat16):
            assert not linears.pays(5)
        with torch.enable_grad():
            module(x).sum().backward()
    assert module.weight.grad is not None and not served


# ---- Within each other. ----


def test_what_is_passed_by_is_not_computed(served: list[int]) -> None:
    """Whichever context is the inner one."""
    module, other, x = layer(), layer(), torch.randn(5, WIDE)
    model = nn.ModuleList([module, other])
    skipping, serving = Bypass([module], {id(module): 0}), Linears(model)
    for outer, inner in ((skipping, serving), (serving, skipping)):
        served.clear()
        with outer, inner:
            assert not module(x).any() and module(x).shape == x.shape and not served
            other(x)
            assert served == [5]
    assert not replaced(model)


def test_generations_within_each_other_and_beside(served: list[int]) -> None:
    """Layers that another generation holds are no stranger's; the last to leave puts them back."""
    module, x = layer(), torch.randn(5, WIDE)
    first = Linears(module)
    with first.held():
        second = Linears(module)
        assert len(second._modules) == 1
        with second.held():
            module(x)
            assert not served
            second.begin()
            module(x)
            second.end()
            assert served == [5]
        assert replaced(module)
        first.begin()
        module(x)
        first.end()
        assert served == [5, 5]
    assert not replaced(module)


def test_a_forward_that_somebody_puts_there_meanwhile_stays(served: list[int]) -> None:
    module, x = layer(), torch.randn(5, WIDE)
    with Answering(module):
        hooked(module)
        theirs = module.__dict__["forward"]
    assert module.__dict__["forward"] is theirs
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias)) and not served


def test_many_threads(served: list[int]) -> None:
    module, x, failures = layer(), torch.randn(5, WIDE), []
    wanted = module(x)

    def serving() -> None:
        with torch.no_grad():
            for _ in range(60):
                with Answering(module):
                    if not torch.allclose(module(x), wanted, atol=1e-5):
                        failures.append("served")

    def plainly() -> None:
        """Against torch's own function beside it: its products may differ in the last bit from one thread to another."""
        with torch.no_grad():
            nn.functional.linear(
                x, module.weight, module.bias
            )  # the first in a thread may differ from those that follow
            for _ in range(300):
                torchs = nn.functional.linear(x, module.weight, module.bias)
                failures.extend(["plain"] * (not torch.equal(module(x), torchs)))

    threads = [threading.Thread(target=work) for work in (serving, serving, plainly, plainly)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(served) == 120 and not replaced(module)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"]
)
def test_a_copy_made_meanwhile_has_weights_of_its_own(copied: Callable[[Any], Any], served: list[int]) -> None:
    model, x = nn.Sequential(layer()), torch.randn(5, WIDE)
    wanted = model(x)
    with Linears(model).held():
        twin = copied(model)
        model[0].weight.zero_()
        assert torch.equal(twin(x), wanted)
    assert torch.equal(twin(x), wanted) and not torch.equal(model(x), wanted)
