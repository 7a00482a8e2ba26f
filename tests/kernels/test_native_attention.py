"""The compiled attention against fp64: every tile, block, dtype and stride; memory that was not written holds NaN."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from native_tools import HIDDEN, Case, buffer, make_case, random_bias, skip_without_library

from specplug_kernels import tree_attention_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
M_PERTURB = -6
FILL_WITH_ONES = 0x100
"""glibc fills what ``malloc`` gives with the complement of the lowest byte, if the number is not 0: every float is NaN."""


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Outputs and the kernel's own memory begin as NaN."""
    skip_without_library()
    perturb = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    perturb(M_PERTURB, FILL_WITH_ONES)
    torch.use_deterministic_algorithms(True)  # fills what `empty` gives, too
    yield
    torch.use_deterministic_algorithms(False)
    perturb(M_PERTURB, 0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    skip_without_library(request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_random_ragged_shapes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    for _ in range(40):
        batch, columns = draw(1, 4), draw(1, 300)
        make_case(
            batch=batch,
            kv_heads=draw(1, 3),
            groups=draw(1, 8),
            nodes=draw(1, 17),
            columns=columns,
            prefix=draw(0, columns),
            dim=8 * draw(1, 12),
            value_dim=8 * draw(1, 12),
            bias_rows=batch if draw(0, 1) else 1,
            dtype=dtype,
        ).check()


@pytest.mark.parametrize("dim", [8, 24, 40, 64, 80, 96, 128, 256])
def test_head_dims(dim: int, dtype: torch.dtype) -> None:
    for nodes in (1, 2, 4, 8, 13, 16):
        make_case(batch=2, kv_heads=2, nodes=nodes, columns=45, prefix=30, dim=dim, dtype=dtype).check()
        make_case(nodes=nodes, columns=45, prefix=30, dim=16, value_dim=dim, dtype=dtype).check()


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
def test_heads_that_the_processor_may_multiply_in_blocks(dim: int) -> None:
    """Whole blocks, what is left of them, more rows than one has; as exact as the tiles that add up in fp32."""
    for columns, nodes in itertools.product((1, 15, 16, 31, 32, 33, 47, 48, 63, 64, 65, 130, 700), (5, 15, 16, 17, 40)):
        make_case(
            nodes=nodes,
            columns=columns,
            prefix=columns // 2,
            dim=dim,
            value_dim=32 + columns % 3 * 32,
            dtype=torch.bfloat16,
        ).check()


def test_torch_may_use_the_same_registers_in_between() -> None:
    """Before and after, torch's own products of blocks are what they are."""
    x, weight = torch.randn(64, 512).bfloat16(), torch.randn(512, 512).bfloat16()
    expected = x @ weight
    for _ in range(3):
        make_case(batch=2, kv_heads=2, nodes=9, columns=900, prefix=800, dim=64, dtype=torch.bfloat16).check()
        assert torch.equal(x @ weight, expected)


@pytest.mark.parametrize("rows", [*range(1, 20), 33, 64])
def test_every_number_of_packed_rows(rows: int, dtype: torch.dtype) -> None:
    make_case(batch=2, kv_heads=2, nodes=rows, columns=21, prefix=11, dtype=dtype).check()
    make_case(groups=rows, columns=21, prefix=20, dtype=dtype).check()


@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_columns_around_the_end_of_a_block(dim: int, dtype: torch.dtype) -> None:
    """Blocks are a multiple of eight columns, whose number depends on the head's size."""
    for columns in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 257, 513):
        for nodes in (1, 2, 3, 7, 16):
            case = make_case(nodes=nodes, columns=columns, prefix=columns // 2, dim=dim, dtype=dtype)
            case.check()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("batch", "kv_heads"), [(1, 1), (1, 2), (3, 1), (2, 3)])
def test_any_number_of_threads(count: int, batch: int, kv_heads: int, threads: None, dtype: torch.dtype) -> None:
    """Fewer heads than threads, more, and numbers that do not divide; what was hidden from one thread and what was not."""
    torch.set_num_threads(count)
    for columns in (70, 700, 2100):
        for prefix in (0, columns // 3, None):
            case = make_case(
                batch=batch,
                kv_heads=kv_heads,
                groups=3,
                nodes=6 if columns == 700 else 1,  # eighteen rows: a tile of sixteen, where there is such
                columns=columns,
                prefix=prefix,
                dim=32,
                dtype=dtype,
            )
            if case.bias is not None:
                case.bias[..., : (columns - case.prefix) // 2] = HIDDEN
            case.check()


def test_calls_from_several_threads_do_not_share_memory() -> None:
    cases = [make_case(batch=2, nodes=3, columns=900, prefix=400, dim=64) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda case: [case.run() for _ in range(10)], cases))
    for case, outs in zip(cases, outputs, strict=True):
        for out in outs:
            torch.testing.assert_close(out.double(), case.exact(), atol=1e-5, rtol=1e-5)


def test_strides_of_caches(dtype: torch.dtype) -> None:
    """Sequence-major storage, every second row of a larger batch, one row for all, and columns with a step."""
    case = make_case(batch=3, kv_heads=2, groups=2, nodes=3, columns=40, prefix=30, dim=24, dtype=dtype)
    major = [torch.randn(3, 50, 2, 24).to(dtype).transpose(1, 2)[:, :, :40] for _ in range(2)]
    Case(case.query, *major, 30, case.bias).check()
    Case(case.query, *(buffer(6, 2, 40, 24, dtype)[::2] for _ in range(2)), 30, case.bias).check()
    Case(case.query, *(buffer(1, 2, 40, 24, dtype).expand(3, -1, -1, -1) for _ in range(2)), 30, case.bias).check()
    Case(case.query, *(buffer(3, 2, 80, 24, dtype)[:, :, ::2] for _ in range(2)), 30, case.bias).check()
    Case(case.query, case.key[..., 8:16], case.value[..., 16:], 30, case.bias).query[..., :8]


def test_strides_of_queries_and_biases(dtype: torch.dtype) -> None:
    case = make_case(batch=3, kv_heads=2, groups=2, nodes=4, columns=40, prefix=30, dim=24, dtype=dtype)
    turned = case.query.transpose(2, 3).contiguous().transpose(2, 3)
    assert turned.stride(3) != 1
    Case(turned, case.key, case.value, 30, case.bias).check()
    for bias in (
        random_bias(3, 4, 20, dtype)[..., 5:15],
        random_bias(3, 4, 20, dtype)[..., ::2],
        random_bias(3, 8, 10, dtype)[:, :, ::2],
        random_bias(3, 1, 10, dtype).expand(-1, -1, 4, -1),
        random_bias(3, 4, 1, dtype).expand(-1, -1, -1, 10),
        random_bias(1, 4, 10, dtype).expand(3, -1, -1, -1),
    ):
        Case(case.query, case.key, case.value, 30, bias).check()


def test_everything_visible(dtype: torch.dtype) -> None:
    make_case(batch=2, kv_heads=2, groups=3, nodes=3, columns=37, dtype=dtype).check()
    case = make_case(batch=2, nodes=3, columns=37, dtype=dtype)
    case.bias = torch.zeros(2, 1, 3, 0, dtype=dtype)
    case.check()


def test_no_columns_at_all() -> None:
    assert make_case(batch=2, nodes=3, columns=0).run().eq(0).all()


@pytest.mark.parametrize("prefix", [0, 70])
def test_what_is_hidden_has_no_influence(prefix: int, dtype: torch.dtype) -> None:
    for nodes in (1, 2, 4, 8):
        case = make_case(
            batch=2, kv_heads=2, groups=2, nodes=nodes, columns=prefix + 90, prefix=prefix, dim=32, dtype=dtype
        )
        hidden = torch.arange(0, 90, 3)
        case.bias[..., hidden] = HIDDEN
        case.bias[..., 1] = 0.0
        clean = case.run()
        largest = 1e30 if dtype != torch.float16 else 6e4
        for fill in (largest, -largest):
            case.key[:, :, prefix + hidden], case.value[:, :, prefix + hidden] = fill, fill
            assert torch.equal(case.run(), clean)


def test_hidden_by_the_lowest_number(dtype: torch.dtype) -> None:
    """As masks of hosts are: no weight beside a column that is seen, and equal weights where there is none."""
    case = make_case(batch=2, groups=3, nodes=4, columns=200, prefix=0, dim=32, dtype=dtype)
    case.bias.masked_fill_(case.bias == HIDDEN, torch.finfo(dtype).min)
    case.bias[1, 0, 2] = torch.finfo(dtype).min
    given = case.query, case.key, case.value
    wanted = tree_attention_reference(*given, prefix=0, bias=case.bias, scale=case.scale)  # adds in fp32, as is meant
    torch.testing.assert_close(case.run(), wanted, atol=1e-5, rtol=2**-7 if dtype == torch.bfloat16 else 1e-3)


def test_a_query_that_sees_nothing_gets_zeros(dtype: torch.dtype) -> None:
    for columns in (9, 300):
        for nodes in (2, 4, 5, 8):
            case = make_case(batch=2, groups=2, nodes=nodes, columns=columns, prefix=0, dim=32, dtype=dtype)
            case.bias[..., -1] = 0.0
            case.bias[1, 0, 1] = HIDDEN
            out = case.run()
            assert out[1, 1].eq(0).all() and out[0].ne(0).any(-1).all()
            case.check()


def test_nothing_is_seen_in_the_first_columns() -> None:
    """A maximum of -inf over whole blocks, before the first column that counts."""
    case = make_case(nodes=3, columns=2000, prefix=0, dim=64)
    case.bias[..., :1900] = HIDDEN
    case.check()


def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    for scale in (100.0, -100.0):
        case = make_case(batch=2, groups=2, nodes=4, columns=300, prefix=200, dim=64, dtype=dtype)
        case.scale = scale
        out = case.run()
        assert out.isfinite().all()
        torch.testing.assert_close(out.double(), case.exact(), atol=5e-3, rtol=2**-6)  # scores of 1000 are off by 1e-4


def test_exponentials() -> None:
    """Two columns, one with a value of 1 and a score x: the output is its weight, whose size is e^x."""
    scores = torch.arange(-86.0, 0.125, 0.125)
    key, value = torch.zeros(len(scores), 1, 2, 8), torch.zeros(len(scores), 1, 2, 8)
    key[:, 0, 0, 0], value[:, 0, 0] = scores, 1.0
    query = torch.zeros(len(scores), 1, 1, 8)
    query[..., 0] = 1.0
    out = Case(query, key, value, 2, None, 1.0).run()[:, 0, 0]
    wanted = torch.sigmoid(scores.double())[:, None].expand(-1, 8)
    torch.testing.assert_close(out.double(), wanted, atol=0.0, rtol=1e-6)


def test_a_weight_below_all_others_is_none() -> None:
    key, value = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8)
    key[0, 0, 0, 0], value[0, 0, 0] = -90.0, 1e30
    assert Case(torch.ones(1, 1, 1, 8), key, value, 2, None, 1.0).run().eq(0).all()


def test_what_is_not_a_number_shows(dtype: torch.dtype) -> None:
    """A broken cache must not look like a sound one."""
    case = make_case(nodes=3, columns=90, prefix=60, dim=32, dtype=dtype)
    case.bias[:] = 0.0
    case.bias[0, 0, 1, 5] = HIDDEN
    case.value[0, 0, 20] = math.nan
    assert case.run().isnan().all()
    case.value[0, 0, 20] = 0.0
    case.key[0, 0, 65] = math.nan
    assert case.run().isnan().all()


def test_gradients_are_torchs() -> None:
    case = make_case(groups=2, nodes=3, columns=20, prefix=12)
    case.bias[..., -1] = 0.0
    case.query = case.query.detach().requires_grad_()
    ours = case.run()
    ours.sum().backward()
    wanted = case.query.grad.clone()
    case.query.grad = None
    case.run("torch").sum().backward()
    torch.testing.assert_close(wanted, case.query.grad)
    with torch.no_grad():
        case.check()


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda c: Case(c.query.double(), c.key.double(), c.value.double(), 20, None), "not from torch.float64"),
        (lambda c: Case(c.query[..., :12], c.key[..., :12], c.value, 20, None), "heads of 12"),
        (lambda c: Case(c.query, c.key, c.value[..., :4], 20, None), "heads of 4"),
        (lambda c: make_case(dim=264, columns=20), "heads of 264"),
        (lambda c: Case(c.query, c.key.mT.contiguous().mT, c.value, 20, None), "do not lie side by side"),
        (lambda c: Case(c.query, c.key, c.value.bfloat16(), 20, None), "several dtypes"),
        (lambda c: Case(c.query, c.key, c.value, 10, torch.zeros(1, 1, 1, 10).double()), "several dtypes"),
        (lambda c: Case(c.query.to("meta"), c.key.to("meta"), c.value.to("meta"), 20, None), "not on meta"),
    ],
)
def test_what_is_not_served_is_named(change, because: str) -> None:
    case = change(make_case(columns=20))
    with pytest.raises(ValueError, match=f"kernel 'native' does not serve: .*{because}"):
        case.run()
