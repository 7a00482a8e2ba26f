"""Tree attention against a loop in fp64: torch's backends, every head ratio, every dtype.

The compiled one, which serves less, has tests of its own (`test_native_attention.py`); here it is turned off.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from specplug_kernels import (
    available_kernels,
    dispatch,
    explain,
    tree_attention,
    tree_attention_reference,
    tree_attention_torch,
)
from specplug_kernels.native.attention_library import attention_library

KERNELS = tuple(name for name in available_kernels() if name != "native")
ERROR = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}
HIDDEN = float("-inf")


def oracle(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """One query at a time, over the columns it sees, in fp64."""
    batch, heads, nodes, _ = query.shape
    groups = heads // key.shape[1]
    out = torch.zeros(batch, nodes, heads, value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for i in range(nodes):
            extra = torch.zeros(key.shape[2], dtype=torch.float64)
            if bias is not None:
                extra[prefix:] = bias[b if bias.shape[0] > 1 else 0, 0, i].double()
            seen = extra > HIDDEN
            for h in range(heads):
                if seen.any():
                    scores = key[b, h // groups, seen].double() @ query[b, h, i].double() * scale + extra[seen]
                    out[b, i, h] = scores.softmax(0) @ value[b, h // groups, seen].double()
    return out


def cache(
    batch: int, heads: int, columns: int, dim: int, spare: int = 13, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A view ``[B, H, T, D]`` into a larger buffer."""
    return torch.randn(batch, heads, columns + spare, dim).to(dtype)[:, :, :columns]


def random_bias(batch: int, nodes: int, tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """About half hidden, the last column always visible, and some finite entries that are not zero."""
    bias = torch.zeros(batch, 1, nodes, tail, dtype=dtype)
    bias[torch.rand(bias.shape) < 0.2] = 0.75
    bias[torch.rand(bias.shape) < 0.5] = HIDDEN
    bias[..., -1] = 0.0
    return bias


def queries(batch: int, heads: int, nodes: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As transformers gives them: ``[B, n, Hq, D]`` transposed."""
    return torch.randn(batch, nodes, heads, dim).to(dtype).transpose(1, 2)


def check(kernel: str, query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None) -> None:
    scale = 0.7 * query.shape[3] ** -0.5  # not the default of any library
    given = [t.clone() for t in (query, key, value)]
    given_bias = None if bias is None else bias.clone()
    out = tree_attention(query, key, value, prefix=prefix, bias=bias, scale=scale, kernel=kernel)
    assert out.shape == (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    assert out.dtype == query.dtype
    assert out.is_contiguous()
    expected = oracle(query, key, value, prefix, bias, scale)
    torch.testing.assert_close(out.double(), expected, atol=ERROR[query.dtype], rtol=ERROR[query.dtype])
    for before, after in zip(given, (query, key, value), strict=True):
        assert torch.equal(before, after)
    assert given_bias is None or (bias is not None and torch.equal(given_bias, bias))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` chooses as where nothing can be compiled."""
    monkeypatch.setattr(attention_library, "found", "turned off for this test")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (6, 2), (7, 1), (14, 2), (8, 1), (10, 2)])
def test_head_ratios(kernel: str, heads: int, kv_heads: int) -> None:
    for batch, nodes, prefix, tail in [(1, 1, 20, 1), (3, 4, 17, 9), (2, 5, 0, 12)]:
        key, value = (cache(batch, kv_heads, prefix + tail, 16) for _ in range(2))
        check(kernel, queries(batch, heads, nodes, 16), key, value, prefix, random_bias(batch, nodes, tail))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dim", [32, 64, 80, 128, 256])
def test_head_dims(kernel: str, dim: int) -> None:
    key, value = cache(2, 2, 40, dim), cache(2, 2, 40, dim)
    check(kernel, queries(2, 6, 3, dim), key, value, 33, random_bias(2, 3, 7))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_dtypes(kernel: str, dtype: torch.dtype) -> None:
    for prefix, tail in [(90, 11), (0, 31)]:
        key, value = (cache(2, 2, prefix + tail, 32, dtype=dtype) for _ in range(2))
        check(kernel, queries(2, 8, 5, 32, dtype), key, value, prefix, random_bias(2, 5, tail, dtype))


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_ragged_shapes(kernel: str) -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    for _ in range(12):
        batch, kv_heads, groups, nodes = draw(1, 4), draw(1, 3), draw(1, 8), draw(1, 9)
        prefix, tail, dim = draw(0, 70), draw(1, 40), 8 * draw(1, 9)
        key, value = (cache(batch, kv_heads, prefix + tail, dim, spare=draw(0, 9)) for _ in range(2))
        bias = random_bias(batch if draw(0, 1) else 1, nodes, tail)
        check(kernel, queries(batch, kv_heads * groups, nodes, dim), key, value, prefix, bias)


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_packed_rows(kernel: str) -> None:
    key, value = cache(2, 2, 300, 32), cache(2, 2, 300, 32)
    check(kernel, queries(2, 8, 33, 32), key, value, 250, random_bias(2, 33, 50))


@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_visible(kernel: str) -> None:
    key, value = cache(2, 2, 37, 32), cache(2, 2, 37, 32)
    check(kernel, queries(2, 6, 3, 32), key, value, 37, None)
    empty_tail = torch.zeros(2, 1, 3, 0)
    check(kernel, queries(2, 6, 3, 32), key, value, 37, empty_tail)


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_value_dimension(kernel: str) -> None:
    check(kernel, queries(2, 4, 3, 32), cache(2, 2, 30, 32), cache(2, 2, 30, 48), 22, random_bias(2, 3, 8))


@pytest.mark.parametrize("kernel", KERNELS)
def test_sequence_major_and_row_sliced_buffers(kernel: str) -> None:
    """``[B, T, H, D]`` storage, whose batch and head strides do not join, and every second row of a larger batch."""
    key, value = (torch.randn(3, 40, 2, 32).transpose(1, 2)[:, :, :30] for _ in range(2))
    check(kernel, queries(3, 4, 3, 32), key, value, 22, random_bias(3, 3, 8))
    key, value = cache(6, 2, 30, 32)[::2], cache(6, 2, 30, 32)[::2]
    check(kernel, queries(3, 4, 3, 32), key, value, 22, random_bias(1, 3, 8))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("prefix", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_garbage_in_invisible_columns_does_not_leak(kernel: str, prefix: int, dtype: torch.dtype) -> None:
    key, value = cache(2, 2, prefix + 9, 32, dtype=dtype), cache(2, 2, prefix + 9, 32, dtype=dtype)
    query, bias = queries(2, 8, 4, 32, dtype), random_bias(2, 4, 9, dtype)
    hidden = [prefix + 2, prefix + 5]
    bias[..., [2, 5]] = HIDDEN
    arguments = {"prefix": prefix, "bias": bias, "scale": 0.3, "kernel": kernel}
    clean = tree_attention(query, key, value, **arguments)
    for fill in (1e30, -1e30):
        key[:, :, hidden], value[:, :, hidden] = fill, fill
        assert torch.equal(tree_attention(query, key, value, **arguments), clean)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_query_that_sees_nothing_gets_zeros(kernel: str, groups: int) -> None:
    for dtype in ERROR:
        key, value = cache(2, 2, 11, 32, dtype=dtype), cache(2, 2, 11, 32, dtype=dtype)
        bias = random_bias(2, 4, 11, dtype)
        bias[1, 0, 2] = HIDDEN
        query = queries(2, 2 * groups, 4, 32, dtype)
        out = tree_attention(query, key, value, prefix=0, bias=bias, scale=0.2, kernel=kernel)
        assert out[1, 2].eq(0).all()
        check(kernel, query, key, value, 0, bias)


@pytest.mark.parametrize("kernel", KERNELS)
def test_spare_columns_and_their_neighbours_are_never_read(kernel: str) -> None:
    """NaN behind the view's last column: a kernel that reads past T shows it."""
    buffers = [torch.full((2, 2, 50, 32), math.nan) for _ in range(2)]
    for buffer in buffers:
        buffer[:, :, :30] = torch.randn(2, 2, 30, 32)
    key, value = (buffer[:, :, :30] for buffer in buffers)
    check(kernel, queries(2, 8, 3, 32), key, value, 25, random_bias(2, 3, 5))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_flow(kernel: str) -> None:
    """A host that forgot ``no_grad`` gets a right answer, not an error about ``out=``."""
    query = queries(1, 4, 2, 16).requires_grad_()
    out = tree_attention(query, cache(1, 2, 9, 16), cache(1, 2, 9, 16), prefix=9, bias=None, scale=0.25, kernel=kernel)
    out.sum().backward()
    assert query.grad is not None


def test_reference_is_the_oracle() -> None:
    query, key, value = (t.double() for t in (queries(2, 6, 3, 16), cache(2, 2, 20, 16), cache(2, 2, 20, 16)))
    bias = random_bias(2, 3, 5).double()
    out = tree_attention_reference(query, key, value, prefix=15, bias=bias, scale=0.25)
    torch.testing.assert_close(out, oracle(query, key, value, 15, bias, 0.25), atol=1e-13, rtol=1e-13)


def test_unknown_kernel_lists_the_known_ones() -> None:
    key = cache(1, 1, 4, 8)
    with pytest.raises(ValueError, match=r"unknown kernel 'fast'.*auto.*packed.*sdpa"):
        tree_attention(queries(1, 1, 1, 8), key, key, prefix=4, bias=None, scale=1.0, kernel="fast")


def test_shapes_that_do_not_fit_are_named() -> None:
    key = cache(1, 2, 6, 8)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2"):
        tree_attention(queries(1, 3, 1, 8), key, key, prefix=6, bias=None, scale=1.0)
    with pytest.raises(ValueError, match=r"bias of shape \(1, 1, 1, 3\) does not fit"):
        tree_attention(queries(1, 4, 1, 8), key, key, prefix=4, bias=torch.zeros(1, 1, 1, 3), scale=1.0)
    with pytest.raises(ValueError, match="without a bias"):
        tree_attention(queries(1, 4, 1, 8), key, key, prefix=4, bias=None, scale=1.0)


def test_explain_names_a_kernel_and_a_reason() -> None:
    long, short = 8192, 300
    for shape, columns, expected, because in (
        ((1, 8, 2, 32), long, "packed", "8 packed rows of 32 over 8192 columns"),
        ((4, 8, 16, 32), long // 4, "packed", "64 packed rows of 32 over 8192 columns"),
        ((1, 8, 1, 128), long // 4, "packed", "4 packed rows of 128 over 2048 columns"),
        ((1, 2, 4, 128), long // 4, "packed", "4 packed rows of 128 over 2048 columns"),
        ((4, 8, 2, 32), short, "sdpa", "1200 columns in all"),
        ((1, 8, 17, 32), long, "sdpa", "68 packed rows"),
        ((1, 8, 2, 128), long, "sdpa", "8 packed rows of 128"),
        ((1, 8, 1, 128), short, "sdpa", "300 columns in all"),
        ((1, 2, 4, 32), long, "sdpa", "nothing to pack"),
    ):
        name, reason = explain(shape, (shape[0], 2, columns, shape[3])).split(": ", 1)
        assert (name, because in reason) == (expected, True), reason
    assert explain((1, 8, 2, 32), (1, 2, long, 32), device="cuda").startswith("sdpa: ")


@pytest.mark.parametrize("native", [False, True])
def test_half_precision_is_widened_where_the_processor_does_not_multiply_in_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_multiplies", lambda dtype: native)
    for dtype, nodes, otherwise in (
        (torch.float16, 3, "widened"),
        (torch.bfloat16, 1, "widened"),
        (torch.bfloat16, 2, "sdpa"),
    ):
        chosen = explain((1, 2, nodes, 32), (1, 2, 50, 32), dtype=dtype).partition(":")[0]
        assert chosen == ("sdpa" if native else otherwise)
        key, value = (cache(1, 2, 50, 32, dtype=dtype) for _ in range(2))
        check("auto", queries(1, 2, nodes, 32, dtype), key, value, 41, random_bias(1, nodes, 9, dtype))


def test_what_the_processor_multiplies_is_asked_for_each_dtype() -> None:
    assert {type(dispatch._multiplies(dtype)) for dtype in (torch.bfloat16, torch.float16)} == {bool}


@pytest.mark.parametrize("columns", [1, 7, 21, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_widening_in_blocks(columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of seven columns, the last one whole, partial, or the only one; the bias in several of them."""
    monkeypatch.setattr(tree_attention_torch, "WIDENED_BYTES", 7 * 2 * 3 * 16 * 4)
    tail = min(columns, 17)
    key, value = (cache(2, 3, columns, 16, dtype=dtype) for _ in range(2))
    query = queries(2, 6, 4, 16, dtype)
    check("widened", query, key, value, columns - tail, random_bias(2, 4, tail, dtype))
    query.requires_grad_()
    out = tree_attention(query, key, value, prefix=columns, bias=None, scale=0.2, kernel="widened")
    out.sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("nodes", [1, 2, 6, 7])
@pytest.mark.parametrize("dim", [48, 64, 128])
def test_both_orders_of_factors(nodes: int, dim: int) -> None:
    for dtype in (torch.float32, torch.float64):
        key, value = (cache(2, 2, 30, dim, dtype=dtype) for _ in range(2))
        check("packed", queries(2, 2, nodes, dim, dtype), key, value, 22, random_bias(2, nodes, 8, dtype))


@pytest.mark.parametrize("inference", [False, True])
def test_the_mask_that_is_kept_is_the_one_that_was_asked_for(inference: bool) -> None:
    """One forward's layers share a mask; another prefix, another bias and a bias that was written to get their own."""
    with torch.inference_mode(inference):
        query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
        bias = torch.zeros(1, 1, 3, 5)

        def check(columns: int) -> None:
            given = dict(prefix=columns - 5, bias=bias, scale=0.3)
            ours = tree_attention(query, key[:, :, :columns], value[:, :, :columns], kernel="sdpa", **given)
            wanted = tree_attention_reference(query, key[:, :, :columns], value[:, :, :columns], **given)
            torch.testing.assert_close(ours, wanted)

        check(20)
        check(20)
        check(17)
        if not inference:
            bias[..., 2] = float("-inf")
            check(17)
        bias = torch.full_like(bias, float("-inf"))
        check(17)
