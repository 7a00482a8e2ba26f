"""Root-mean-square norms: against fp64 and torch's own operations, at the edges of what is served, and where torch serves instead."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from library_tools import changed_source, nothing_to_build_with, quick_build, run_guarded, skip_without
from torch import Tensor, nn

from specplug_kernels import norm_numbers, rms_norm, rms_norm_reference, serves_norms, try_rms_norm
from specplug_kernels.native.build import build
from specplug_kernels.native.library import UnusableError
from specplug_kernels.native.norm_library import NormLibrary, norm_library
from specplug_kernels.processor import Processor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 8, 15, 16, 17, 31, 64, 100, 128, 129, 256, 1000)
SUMS = 2.0**-21
"""What the order of sums, a root and four roundings may change, relative, in fp32: torch itself comes to half of it and more."""


def skip_without_library(dtype: torch.dtype = torch.float32) -> None:
    skip_without(norm_library, dtype)


def skip_unless_chosen() -> None:
    skip_without_library()
    if not serves_norms(torch.float32):
        pytest.skip("chosen only where the processor has AVX2")


def make(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    return (torch.randn(shape) * scale).to(dtype), torch.randn(shape[-1]).to(dtype)


def check(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> None:
    """In fp32 against fp64; in half precision the same numbers as torch's, but for the few that lie between two."""
    given = x.clone(), weight.clone()
    ours = rms_norm(x, weight, epsilon, kernel="native")
    assert ours.shape == x.shape and ours.dtype == x.dtype and ours.is_contiguous()
    assert torch.equal(x, given[0]) and torch.equal(weight, given[1])
    if x.dtype == torch.float32:
        exact = rms_norm_reference(x.double(), weight.double(), epsilon)
        torch.testing.assert_close(ours.double(), exact, rtol=SUMS, atol=1e-30)
    else:
        wanted = rms_norm_reference(x, weight, epsilon)
        one_further = torch.nextafter(wanted, torch.full_like(wanted, float("inf"))) - wanted
        assert bool(((ours - wanted).abs() <= 2 * one_further.abs()).all())  # one is rounded twice
        assert float((ours == wanted).float().mean()) > 0.99


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        yield


# ---- What is computed. ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_are_right(width: int, dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    for rows in (1, 2, 5, 33):
        check(*make((rows, width), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes_and_magnitudes(dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    for _ in range(60):
        rows, width = (int(torch.randint(1, most, ())) for most in (20, 700))
        scale = float(10 ** torch.empty(()).uniform_(-3, 2))
        check(*make((rows, 2, width), dtype, scale), epsilon=float(10 ** torch.empty(()).uniform_(-6, -2)))


def test_the_definition_is_what_models_compute() -> None:
    x, weight = make((3, 40), torch.float32)
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-5), nn.functional.rms_norm(x, (40,), weight, 1e-5))
    assert rms_norm_reference(x.double(), weight.double(), 1e-5).dtype == torch.float64


def test_zeros_stay_zeros_and_epsilon_counts() -> None:
    skip_without_library()
    weight = torch.ones(40)
    assert not rms_norm(torch.zeros(2, 40), weight, 1e-6, kernel="native").any()
    ours = rms_norm(torch.full((1, 40), 1e-3), weight, 3e-6, kernel="native")
    assert torch.allclose(ours, torch.full((1, 40), 0.5), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are poisoned before: what nobody writes to stays NaN."""
    skip_without_library(dtype)
    fresh = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: fresh(x).fill_(float("nan")))
    for width in WIDTHS:
        assert bool(rms_norm(*make((3, width), dtype), 1e-6, kernel="native").isfinite().all())


def test_what_is_not_finite_stays_in_its_row() -> None:
    skip_without_library()
    x, weight = make((5, 37), torch.float32)
    x[2, 36], x[3, 0] = float("nan"), float("inf")
    ours = rms_norm(x, weight, 1e-6, kernel="native")
    assert bool(ours[2].isnan().all()) and bool(ours[3, 0].isnan()) and not bool(ours[3, 1:].any())
    assert bool(ours[[0, 1, 4]].isfinite().all())


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages with Linux's mprotect")
def test_nothing_behind_an_argument_is_touched() -> None:
    skip_without_library()
    run_guarded("""
from specplug_kernels import rms_norm
from specplug_kernels.native.library import DTYPES
from specplug_kernels.native.norm_library import norm_library

library = norm_library()
for dtype in library.dtypes:
    for rows, width in ((1, 1), (3, 5), (2, 16), (1, 17), (4, 70), (1, 129)):
        x, weight, out = torch.randn(rows, width), torch.randn(width), torch.zeros(rows, width)
        given = [at_the_end(tensor.to(dtype)) for tensor in (x, weight, out)]
        call = library.call.pack(*(tensor.data_ptr() for tensor in given), rows, width, DTYPES[dtype], 1e-6)
        assert library.function(call) == 0
        assert torch.equal(given[2], rms_norm(given[0], given[1], 1e-6, kernel="native"))
""")


# ---- Where torch serves. ----


class Own(nn.Parameter):
    """Stands for a weight that multiplies in its own way."""


REFUSED: dict[str, tuple[Any, str]] = {
    "float64": (lambda x, w: (x.double(), w.double()), "not from rows in torch.float64"),
    "another dtype": (lambda x, w: (x.bfloat16(), w), "rows in torch.bfloat16 and a weight in torch.float32"),
    "transposed": (lambda x, w: (torch.randn(64, 4).mT, w), "not on cpu from strides"),
    "another width": (lambda x, w: (x[:, :-1].contiguous(), w), "do not fit"),
    "a matrix": (lambda x, w: (x, w[None]), "do not fit"),
    "nothing": (lambda x, w: (x[:0], w), "do not fit"),
    "subclass": (lambda x, w: (x, Own(w)), "with a Tensor and a Own"),
    "meta": (lambda x, w: (x.to("meta"), w.to("meta")), "not on meta"),
}


@pytest.mark.parametrize(("change", "because"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_served(change: Any, because: str) -> None:
    x, weight = change(*make((4, 64), torch.float32))
    with pytest.raises(ValueError, match=f"kernel 'native' does not serve: .*{because}"):
        rms_norm(x, weight, 1e-6, kernel="native")
    assert try_rms_norm(x, weight, 1e-6) is None


def test_gradients_are_torchs() -> None:
    for index in range(2):
        given = list(make((4, 64), torch.float32))
        given[index].requires_grad_()
        with torch.enable_grad():
            assert try_rms_norm(*given, 1e-6) is None
            rms_norm(*given, 1e-6).sum().backward()
        assert given[index].grad is not None


def test_it_is_chosen_for_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_chosen()
    module = sys.modules[norm_numbers.__module__]
    for dtype, kind in itertools.product(DTYPES, Processor):
        if not serves_norms(dtype):
            continue
        monkeypatch.setattr(module, "processor", lambda kind=kind: kind)
        most = norm_numbers(dtype) // 256
        assert try_rms_norm(*make((most, 256), dtype), 1e-6) is not None
        assert try_rms_norm(*make((most + 1, 256), dtype), 1e-6) is None
    assert norm_numbers(torch.float64) == 0 and not serves_norms(torch.float64)


def test_nothing_is_built_for_what_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_library, "found", None)
    assert not serves_norms(torch.float64) and norm_library.found is None


def test_what_a_name_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_chosen()
    x, weight = make((9, 300), torch.float32)
    theirs, ours = rms_norm(x, weight, 1e-6, kernel="torch"), rms_norm(x, weight, 1e-6, kernel="native")
    assert torch.equal(theirs, rms_norm_reference(x, weight, 1e-6)) and torch.equal(rms_norm(x, weight, 1e-6), ours)
    assert not torch.equal(ours, theirs)  # or nobody could tell which one served
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rms_norm(x, weight, 1e-6), theirs)
    with pytest.raises(ValueError, match="unknown kernel 'fast'; known: auto, native, torch"):
        rms_norm(x, weight, 1e-6, kernel="fast")


# ---- The library. ----


@pytest.mark.parametrize("switch", ["off", "no compiler"])
def test_without_a_library_torch_serves(switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    because = nothing_to_build_with(monkeypatch, tmp_path, norm_library, switch)
    x, weight = make((4, 64), torch.float32)
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6))
    with pytest.raises(ValueError, match=because):
        rms_norm(x, weight, 1e-6, kernel="native")
    assert not serves_norms(torch.float32) and not (tmp_path / "cache").exists()


FAULTS = {
    "another struct": ("return sizeof(struct call);", "return 8;", "its arguments take 8 bytes"),
    "a chain of sums": ("(sums[2] + sums[3])", "sums[2]", "off by"),
    "no tail of sums": ("rest += one * one;", "", "off by"),
    "no tail": ("store_one(at, dtype, load_one(at, dtype) * load_one(weight + i * size, dtype));", "", "off by"),
    "another row": ("call->y + row * bytes", "call->y", "off by"),
    "no epsilon": ("mean + (float)call->epsilon", "mean", "off by"),
    "no weight": ("in_order(at, dtype) * in_order(weight + i * size, dtype)", "in_order(at, dtype)", "off by"),
    "a half of a vector": ("store8(at + LANES * element_bytes(dtype), dtype, last_lanes(x));", "(void)0;", "off by"),
}


@pytest.mark.parametrize(("old", "new", "because"), FAULTS.values(), ids=FAULTS)
def test_a_library_that_is_wrong_is_not_used(
    old: str, new: str, because: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is tried first: of these faults none gets by."""
    skip_without_library()
    if "last_lanes" in old and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("vectors have no second half here")
    quick_build(monkeypatch, tmp_path)
    changed_source(monkeypatch, tmp_path, "rms_norm.c", old, new)
    with pytest.raises(UnusableError, match=because):
        NormLibrary(build("rms_norm"))
