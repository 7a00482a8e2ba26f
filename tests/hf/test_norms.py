"""Norms of a few rows through the compiled kernel: of the classes that compute them alone, in our own forwards only, and put back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import specplug
from specplug_hf.compiled import CompiledForward
from specplug_hf.compiled import norms as ours
from specplug_hf.compiled.norms import Norms
from specplug_hf.demo import load_pair
from specplug_hf.demo import prompt as text
from specplug_kernels import rms_norm_reference, serves_norms

WIDE, NEW = 64, 24


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every norm that the compiled kernel computes."""
    if not serves_norms(torch.float32):
        pytest.skip("compiled norms are not chosen here: no compiler, no AVX2, or turned off")
    rows: list[int] = []
    compiled = ours.try_rms_norm

    def noted(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
        result = compiled(x, weight, epsilon)
        if result is not None:
            rows.append(x.numel() // x.shape[-1])
        return result

    monkeypatch.setattr(ours, "try_rms_norm", noted)
    return rows


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        yield


def norm() -> LlamaRMSNorm:
    module = LlamaRMSNorm(WIDE, eps=1e-5)
    module.weight.copy_(torch.randn(WIDE))
    return module


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in module.__dict__]


# ---- Generation. ----


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("drafter", ["none", "prompt_lookup", "self", "model", "layer_skip"])
def test_greedy_says_what_plain_says(drafter: str, rows: int, served: list[int]) -> None:
    target, draft, _ = load_pair()
    call = {"input_ids": torch.cat([text(100, row) for row in range(rows)]), "max_new_tokens": NEW, "do_sample": False}
    plain = target.generate(**call)
    assert not served
    more = {"draft_model": draft} if drafter == "model" else {}
    spec = specplug.Speculator(drafter=drafter, tree="chain:length=3", controller="fixed", **more)
    assert torch.equal(target.generate(**call, assistant=spec), plain)
    if drafter in ("none", "prompt_lookup", "self"):
        assert served and len(served) % 17 == 0  # all of a forward of eight layers
    assert len(served) >= 17
    assert not replaced(target) and not replaced(draft)


@pytest.mark.parametrize("kernel", ["torch", "sdpa"])
def test_a_kernel_of_torchs_turns_it_off(kernel: str, served: list[int]) -> None:
    spec = specplug.Speculator(drafter="none", kernel=kernel)
    load_pair()[0].generate(text(50, 0), max_new_tokens=4, assistant=spec)
    assert not served


def test_an_exception_inside_leaves_the_model_as_it_was(served: list[int]) -> None:
    target = load_pair()[0]

    def breaks(module: nn.Module, args: Any) -> None:
        if served:
            raise RuntimeError("out of here")

    hook = target.model.layers[5].register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="out of here"):
        target.generate(text(50, 0), max_new_tokens=8, assistant=specplug.Speculator(drafter="none"))
    hook.remove()
    seen = len(served)
    assert seen and not replaced(target)
    target(input_ids=text(6, 1), use_cache=False)
    assert len(served) == seen


# ---- Which classes are served. ----

FAMILIES: dict[str, tuple[str, str, bool, bool]] = {
    "llama": ("llama", "LlamaRMSNorm", True, True),
    "qwen3": ("qwen3", "Qwen3RMSNorm", True, True),
    "mixtral": ("mixtral", "MixtralRMSNorm", True, True),
    "rounded once": ("olmo2", "Olmo2RMSNorm", True, False),
    "one is added to the weight": ("gemma2", "Gemma2RMSNorm", False, False),
    "no weight": ("llama4", "Llama4TextL2Norm", False, False),
    "a mean is subtracted": ("cohere", "CohereLayerNorm", False, False),
    "a gate": ("qwen3_next", "Qwen3NextRMSNormGated", False, False),
}


@pytest.mark.parametrize(("module", "name", "single", "half"), FAMILIES.values(), ids=FAMILIES)
def test_a_class_is_served_if_it_computes_the_same(
    module: str, name: str, single: bool, half: bool, served: list[int]
) -> None:
    kind = getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)
    for dtype, expected in ((torch.float32, single), (torch.bfloat16, half)):
        model = nn.Sequential(kind(WIDE).to(dtype))
        assert bool(Norms(model)._modules) == expected
        x = torch.randn(5, WIDE).to(dtype)
        if expected:
            with Norms(model):
                answered = model(x)
            torch.testing.assert_close(answered, model(x), rtol=1e-6, atol=1e-6)
    assert len(served) == single + half


class Shifted(LlamaRMSNorm):
    """Computes something else under the name that its parent has."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + 1e-3


class Halved(LlamaRMSNorm):
    """Has an epsilon that it does not use as such."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm_reference(hidden_states, self.weight, self.variance_epsilon / 2)


class Remembering(LlamaRMSNorm):
    """Has more than a weight."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.seen = nn.Buffer(torch.zeros(()))


def hooked(module: LlamaRMSNorm) -> None:
    own = module.forward
    module.forward = lambda x: own(x)  # type: ignore[method-assign]


LEFT_ALONE: dict[str, Callable[[LlamaRMSNorm], Any]] = {
    "another forward of its class": lambda module: Shifted(WIDE),
    "another use of epsilon": lambda module: Halved(WIDE),
    "a buffer": lambda module: Remembering(WIDE),
    "an own forward": hooked,
    "no epsilon": lambda module: delattr(module, "variance_epsilon"),
    "double": lambda module: module.double(),
    "meta": lambda module: module.to("meta"),
    "compiled": lambda module: module.compile(),
    "torch's": lambda module: nn.LayerNorm(WIDE),
}


@pytest.mark.parametrize("change", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_left_alone(change: Callable[[LlamaRMSNorm], Any], served: list[int]) -> None:
    module = norm()
    assert Norms(nn.Sequential(module))._modules
    changed = change(module)
    module = changed if isinstance(changed, nn.Module) else module
    assert not Norms(nn.Sequential(module))._modules


def test_a_class_that_somebody_patches_is_tried_again(served: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = norm()
    assert Norms(module)._modules
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, hidden_states: hidden_states)
    assert not Norms(module)._modules


# ---- What is looked up at every call. ----

CHANGES: dict[str, Callable[[LlamaRMSNorm], Any]] = {
    "in place": lambda m: m.weight.mul_(3.0),
    "data": lambda m: setattr(m.weight, "data", torch.randn(WIDE)),
    "replaced": lambda m: setattr(m, "weight", nn.Parameter(torch.randn(WIDE))),
    "epsilon": lambda m: setattr(m, "variance_epsilon", 0.5),
    "no parameter": lambda m: (delattr(m, "weight"), setattr(m, "weight", torch.randn(WIDE))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_change_between_calls(change: Callable[[LlamaRMSNorm], Any], served: list[int]) -> None:
    module, x = norm(), torch.randn(5, WIDE)
    with Norms(module):
        before = module(x)
        change(module)
        after = module(x)
    assert torch.allclose(after, rms_norm_reference(x, module.weight, module.variance_epsilon), rtol=1e-6)
    assert served and not torch.allclose(before, after)


def test_gradients_autocast_and_prompts_are_torchs(served: list[int]) -> None:
    module = norm()
    norms = Norms(module)
    assert norms.pays(1) and norms.pays(8) and not norms.pays(10**6)
    with torch.autocast("cpu", torch.bfloat16):
        assert not norms.pays(8)
    with torch.enable_grad(), norms:
        module(torch.randn(5, WIDE)).sum().backward()
    assert module.weight.grad is not None and not served


def test_each_kind_is_begun_for_rows_of_its_own(served: list[int]) -> None:
    """One row: norms alone, where linear layers of one row are torch's; none for as many as no kernel serves."""
    model = nn.Sequential(norm(), nn.Linear(WIDE, WIDE + 16))
    both = CompiledForward(model)
    linears, norms = both._kinds
    for rows in (1, 8):
        serving = both.for_rows(rows)
        assert serving is not None and both.for_rows(rows) is serving
        expected = [module for kind in (linears, norms) if kind.pays(rows) for module in kind._modules]
        assert list(serving._modules) == expected and model[0] in expected
    assert both.for_rows(10**7) is None
    with both.held():
        assert set(replaced(model)) == {*linears._modules, *norms._modules}
    assert not replaced(model)
