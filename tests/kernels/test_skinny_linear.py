"""Matrix products of a few rows: against fp64, at the edges of what is served, and where torch serves instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from library_tools import changed_source, nothing_to_build_with, quick_build, run_guarded, skip_without
from torch import Tensor, nn

from specplug_kernels import explain_linear, serves_weight, skinny_linear, skinny_rows, try_linear
from specplug_kernels.native import build as building
from specplug_kernels.native.build import build
from specplug_kernels.native.library import UnusableError
from specplug_kernels.native.linear_library import LinearLibrary, linear_library
from specplug_kernels.processor import Processor

ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half a unit in the last place of an output, relative."""
SHAPES = (
    (1, 1, 1),
    (2, 1, 7),
    (3, 5, 8),
    (4, 12, 16),
    (5, 13, 33),
    (6, 25, 24),
    (7, 50, 15),
    (13, 97, 61),
    (17, 30, 250),
)


def skip_without_library(dtype: torch.dtype = torch.float32) -> None:
    skip_without(linear_library, dtype)


def skip_unless_chosen() -> None:
    skip_without_library()
    if "AVX2" in explain_linear(4, 64, 64):
        pytest.skip("chosen only where the processor has AVX2")


def make(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    return (
        torch.randn(rows, inputs).to(dtype),
        torch.randn(outputs, inputs).to(dtype),
        torch.randn(outputs).to(dtype) if bias else None,
    )


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The textbook bound of a sum of K products in fp32, in any order, and one rounding to the dtype."""
    given = [tensor.clone() for tensor in (x, weight)]
    ours = skinny_linear(x, weight, bias, kernel="native")
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    magnitudes = nn.functional.linear(
        x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs()
    )
    bound = (x.shape[-1] + 1) * 2**-24 * magnitudes + ROUNDING[x.dtype] * exact.abs() + 2**-25
    assert ours.shape == exact.shape and ours.dtype == x.dtype and ours.is_contiguous()
    assert bool(((ours.double() - exact).abs() <= bound).all())
    assert torch.equal(x, given[0]) and torch.equal(weight, given[1])


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        yield


# ---- What is computed. ----


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_right(rows: int, outputs: int, inputs: int, bias: bool, dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    check(*make(rows, outputs, inputs, dtype, bias))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_random_shapes(dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    for _ in range(150):
        rows, outputs, inputs = (int(torch.randint(1, most, ())) for most in (70, 130, 200))
        check(*make(rows, outputs, inputs, dtype, bool(torch.rand(()) < 0.5)))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_threads_share_the_outputs(count: int, dtype: torch.dtype, threads: None) -> None:
    skip_without_library(dtype)
    torch.set_num_threads(count)
    for rows, outputs, inputs in ((2, 1000, 300), (9, 1, 70000), (5, 257, 512), (16, 11, 4096)):
        check(*make(rows, outputs, inputs, dtype))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rows_of_any_layout(dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    _, weight, bias = make(1, 20, 40, dtype)
    check(torch.randn(3, 4, 40).to(dtype), weight, bias)
    check(torch.randn(3, 4, 40).to(dtype)[:, -2:], weight, bias)
    check(torch.randn(40, 5).to(dtype).mT, weight, bias)
    check(torch.randn(4, 80).to(dtype)[:, ::2], weight, bias)
    check(torch.randn(1, 40).to(dtype).expand(6, 40), weight, bias)
    check(torch.randn(40).to(dtype), weight, bias)
    check(torch.empty(0, 40).to(dtype), weight, bias)
    check(torch.randn(2 * 40 + 1).to(dtype)[1:].view(2, 40), weight, bias)  # of no alignment


@pytest.mark.parametrize("dtype", ROUNDING)
def test_every_output_is_written(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are poisoned before: what nobody writes to stays NaN."""
    skip_without_library(dtype)
    fresh = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *size: fresh(self, *size).fill_(float("nan")))
    for rows, outputs, inputs in SHAPES:
        ours = skinny_linear(*make(rows, outputs, inputs, dtype), kernel="native")
        assert bool(ours.isfinite().all())


@pytest.mark.parametrize("dtype", ROUNDING)
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    skip_without_library(dtype)
    x, weight, _ = make(5, 14, 37, dtype, bias=False)
    x[2, 36], x[3, 0] = float("nan"), float("inf")
    ours = skinny_linear(x, weight, kernel="native")
    assert bool(ours[2].isnan().all()) and bool(ours[3].isinf().all()) and bool(ours[[0, 1, 4]].isfinite().all())


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages with Linux's mprotect")
def test_nothing_behind_an_argument_is_touched() -> None:
    skip_without_library()
    run_guarded("""
from specplug_kernels import skinny_linear
from specplug_kernels.native.library import DTYPES
from specplug_kernels.native.linear_library import linear_library

library = linear_library()
for dtype in library.dtypes:
    for rows, outputs, inputs in ((1, 3, 5), (2, 7, 9), (3, 5, 17), (5, 13, 31), (6, 4, 40), (11, 25, 1)):
        sizes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
        given = [at_the_end(torch.randn(*size).to(dtype)) for size in sizes]
        call = library.call.pack(*(tensor.data_ptr() for tensor in given), rows, outputs, inputs, DTYPES[dtype], 1)
        assert library.function(call) == 0
        assert torch.equal(given[3], skinny_linear(*given[:3], kernel="native"))
""")


# ---- Where torch serves. ----


class Quantised(nn.Parameter):
    """Stands for a weight that multiplies in its own way."""


REFUSED: dict[str, tuple[Any, str]] = {
    "float64": (lambda x, w, b: (x.double(), w.double(), b.double()), "not from torch.float64"),
    "transposed": (lambda x, w, b: (x, w.mT.contiguous().mT, b), "no contiguous matrix"),
    "another dtype": (lambda x, w, b: (x.bfloat16(), w, b), "rows are in torch.bfloat16"),
    "another width": (lambda x, w, b: (x[:, :-1], w, b), "do not fit"),
    "another bias": (lambda x, w, b: (x, w, b[:-1]), "bias of shape"),
    "spread bias": (lambda x, w, b: (x, w, b.repeat_interleave(2)[::2]), "the bias is no plain contiguous"),
    "subclass": (lambda x, w, b: (x, Quantised(w), b), "no plain tensor but a Quantised"),
    "sparse": (lambda x, w, b: (x, w.to_sparse(), b), "not on cpu from torch.sparse_coo"),
    "meta": (lambda x, w, b: (x, w.to("meta"), b), "not on meta"),
    "vector": (lambda x, w, b: (x, w[0], None), "no contiguous matrix"),
    "empty": (lambda x, w, b: (x[:, :0], w[:, :0], b), "no contiguous matrix"),
}


@pytest.mark.parametrize(("change", "because"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_served(change: Any, because: str) -> None:
    given = change(*make(4, 80, 64, torch.float32))
    with pytest.raises(ValueError, match=f"kernel 'native' does not serve: .*{because}"):
        skinny_linear(*given, kernel="native")
    assert try_linear(*given) is None


def test_gradients_are_torchs() -> None:
    x, weight, bias = make(4, 80, 64, torch.float32)
    for index in range(3):
        given = [x.clone(), weight.clone(), bias.clone()]
        given[index].requires_grad_()
        with torch.enable_grad():
            assert try_linear(*given) is None
            skinny_linear(*given).sum().backward()
        assert given[index].grad is not None


def test_autocast_is_torchs() -> None:
    given = make(4, 80, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert skinny_linear(*given).dtype == torch.bfloat16
    assert skinny_linear(*given).dtype == torch.float32


def test_it_is_chosen_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_chosen()
    module = sys.modules[skinny_linear.__module__]
    monkeypatch.setattr(module, "processor", lambda: Processor.USUAL)
    assert explain_linear(5, 256, 704) == "native: 5 rows of 256 by 704: weights are read once, as they lie"
    for rows, inputs, outputs, dtype, because in (
        (1, 256, 704, torch.float32, "1 rows, and 2 to 64"),
        (65, 256, 704, torch.float32, "65 rows, and 2 to 64"),
        (4, 16, 16, torch.float32, "256 weights, fewer than 4096"),
        (4, 256, 704, torch.float64, "not from torch.float64"),
    ):
        assert explain_linear(rows, inputs, outputs, dtype=dtype).startswith("torch: ")
        assert because in explain_linear(rows, inputs, outputs, dtype=dtype)
        assert try_linear(*make(rows, outputs, inputs, dtype)) is None
    monkeypatch.setattr(module, "multiplies", lambda dtype: True)
    assert "multiplies in torch.bfloat16" in explain_linear(4, 256, 704, dtype=torch.bfloat16)
    assert not serves_weight(torch.zeros(64, 64, dtype=torch.bfloat16)) and serves_weight(torch.zeros(64, 64))
    monkeypatch.setattr(module, "multiplies", lambda dtype: False)
    assert explain_linear(4, 256, 704, dtype=torch.bfloat16).startswith("native: ")


@pytest.mark.parametrize(
    ("processor", "most"),
    [
        (Processor.AMX, (32, 8, 32)),
        (Processor.INTEL, (20, 24, 20)),
        (Processor.OLDER_INTEL, (48, 256, 256)),
        (Processor.AMD, (128, 8, 256)),
        (Processor.USUAL, (64, 256, 256)),
    ],
)
def test_it_is_chosen_for_as_many_rows_as_it_wins_on_such_a_processor(
    processor: Processor, most: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_chosen()
    module = sys.modules[skinny_linear.__module__]
    monkeypatch.setattr(module, "processor", lambda: processor)
    monkeypatch.setattr(module, "multiplies", lambda dtype: processor is not Processor.USUAL)
    for dtype, last in zip((torch.float32, torch.bfloat16, torch.float16), most, strict=True):
        served = skinny_rows(dtype)
        assert served.stop - 1 == last
        for rows in (served.start - 1, served.start, served.stop - 1, served.stop):
            assert explain_linear(rows, 256, 704, dtype=dtype).startswith("native: ") == (rows in served)
            assert (try_linear(*make(rows, 704, 256, dtype)) is not None) == (rows in served)
        assert serves_weight(torch.zeros(64, 64, dtype=dtype))
    assert not skinny_rows(torch.float64)


def test_what_a_name_gets() -> None:
    skip_unless_chosen()
    x, weight, bias = make(4, 80, 64, torch.float32)
    assert torch.equal(skinny_linear(x, weight, bias, kernel="torch"), nn.functional.linear(x, weight, bias))
    ours = skinny_linear(x, weight, bias, kernel="native")
    assert torch.equal(skinny_linear(x, weight, bias), ours)
    assert not torch.equal(ours, nn.functional.linear(x, weight, bias))  # or nobody could tell which one served
    with pytest.raises(ValueError, match="unknown kernel 'fast'; known: auto, native, torch"):
        skinny_linear(x, weight, bias, kernel="fast")


def test_without_torchs_threads_it_is_chosen_for_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    skip_unless_chosen()
    quick_build(monkeypatch, tmp_path)
    monkeypatch.setattr(linear_library, "found", None)
    monkeypatch.setattr(building, "torch_openmp", lambda: None)
    torch.set_num_threads(2)
    assert "would use one of 2 threads" in explain_linear(4, 256, 704)
    check(*make(7, 900, 64, torch.float32))
    torch.set_num_threads(1)
    assert explain_linear(4, 256, 704).startswith("native: ")


# ---- The library. ----


@pytest.mark.parametrize("switch", ["off", "no compiler"])
def test_without_a_library_torch_serves(switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    because = nothing_to_build_with(monkeypatch, tmp_path, linear_library, switch)
    given = make(4, 80, 64, torch.float32)
    assert torch.equal(skinny_linear(*given), nn.functional.linear(*given))
    with pytest.raises(ValueError, match=because):
        skinny_linear(*given, kernel="native")
    assert because in explain_linear(4, 256, 704) and not serves_weight(given[1])
    assert not (tmp_path / "cache").exists()


FAULTS = {
    "another struct": ("return sizeof(struct call);", "return 8;", "its arguments take 8 bytes"),
    "no tail": ("memcpy(rest[o], weight[o] + k * size, (inputs - k) * size);", "", "off by"),
    "a tail too long": ("(inputs - k) * size);", "(inputs - k - 1) * size);", "off by"),
    "bias dropped": ("call->bias ? call->bias + output * size : NULL;", "NULL;", "off by"),
    "bias of another output": ("call->bias + output * size", "call->bias", "off by"),
    "an output twice": ("sum[(o + 1) * rows + r]", "sum[o * rows + r]", "off by"),
    "last outputs": ("for (int64_t o = begin; o < end; o += BLOCK)", "for (int64_t o = begin; o + 1 < end; o += BLOCK)", "off by"),
    "another row": ("case 5: tiles(call, x, stride, row, o, count, 5,", "case 5: tiles(call, x, stride, 0, o, count, 5,", "off by"),
    "a half twice": ("return second ? (vector)(pairs & 0xffff0000u) : (vector)(pairs << 16);", "return (vector)(pairs << 16);", "bfloat16 it is off by"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "because"), FAULTS.values(), ids=FAULTS)
def test_a_library_that_is_wrong_is_not_used(
    old: str, new: str, because: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is tried first: of these faults none gets by."""
    skip_without_library()
    quick_build(monkeypatch, tmp_path)
    changed_source(monkeypatch, tmp_path, "linear.c", old, new)
    with pytest.raises(UnusableError, match=because):
        LinearLibrary(build("linear"))


@pytest.mark.parametrize(
    ("capability", "blocks", "says", "pairs", "expected"),
    [
        ("AVX2", False, "GenuineIntel", True, Processor.USUAL),
        ("AVX512", True, "GenuineIntel", True, Processor.AMX),
        ("AVX2", True, "GenuineIntel", True, Processor.USUAL),
        ("AVX512", False, "GenuineIntel", True, Processor.INTEL),
        ("AVX512", False, "GenuineIntel", False, Processor.OLDER_INTEL),
        ("AVX512", False, "AuthenticAMD", True, Processor.AMD),
        ("AVX512", False, "somebody else", True, Processor.USUAL),
        ("AVX512", False, None, True, Processor.USUAL),
    ],
)
def test_the_processor_is_told_by_what_it_can_do_and_who_made_it(
    capability: str, blocks: bool, says: str | None, pairs: bool, expected: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> str:
        if says is None:
            raise FileNotFoundError
        return f"vendor_id\t: {says}\nflags\t\t: avx512f{' avx512_bf16' if pairs else ''}\n"

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: blocks)
    module = sys.modules[Processor.__module__]
    monkeypatch.setattr(module.Path, "read_text", read)
    assert module.processor.__wrapped__() is expected
