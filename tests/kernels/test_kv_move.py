"""Writing and committing columns against a loop."""

from __future__ import annotations

import pytest
import torch

from specplug_kernels import commit_kv, lines_of, write_kv


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_write_at_one_slot() -> None:
    buffer, new = torch.randn(3, 2, 10, 4), torch.randn(3, 2, 3, 4)
    expected, given = buffer.clone(), new.clone()
    expected[:, :, 5:8] = new
    write_kv(buffer, new, 5)
    assert torch.equal(buffer, expected)
    assert torch.equal(new, given)


@pytest.mark.parametrize("layout", ["view", "sequence_major", "row_slice"])
def test_write_ragged(layout: str) -> None:
    if layout == "view":
        buffer = torch.randn(3, 2, 14, 4)[:, :, :10]
    elif layout == "sequence_major":
        buffer = torch.randn(3, 10, 2, 4).transpose(1, 2)
    else:
        buffer = torch.randn(6, 2, 10, 4)[::2]
    new, slots = torch.randn(3, 3, 2, 4).transpose(1, 2), torch.tensor([[0, 1, 2], [7, 8, 9], [4, 2, 6]])
    expected, given = buffer.clone(), slots.clone()
    for row in range(3):
        for node in range(3):
            expected[row, :, slots[row, node]] = new[row, :, node]
    write_kv(buffer, new, slots)
    assert torch.equal(buffer, expected)
    assert torch.equal(slots, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_by_lines(dtype: torch.dtype) -> None:
    buffers = torch.randn(2, 3, 2, 10, 4).to(dtype).unbind(0)
    new, slots = torch.randn(3, 3, 2, 4).transpose(1, 2), torch.tensor([[0, 1, 2], [7, 8, 9], [4, 2, 6]])
    expected = [buffer.clone() for buffer in buffers]
    for buffer in expected:
        write_kv(buffer, new, slots)
    lines = lines_of(buffers[0], slots)
    assert lines is not None
    for buffer in buffers:  # of one shape
        write_kv(buffer, new, slots, lines)
    assert all(torch.equal(*pair) for pair in zip(buffers, expected, strict=True))
    assert not torch.equal(*buffers)


def test_lines_need_a_contiguous_buffer_and_columns_that_exist() -> None:
    assert lines_of(torch.zeros(2, 1, 14, 4)[:, :, :10], torch.tensor([[1], [2]])) is None
    for column in (-1, 10):  # the next row's, or the last one's: never written by mistake
        with pytest.raises(IndexError, match="do not fit a capacity of 10"):
            lines_of(torch.zeros(2, 1, 10, 4), torch.tensor([[1], [column]]))


@pytest.mark.parametrize("slots", [2, torch.tensor([[2, 3]])])
def test_write_casts_to_the_buffer(slots: int | torch.Tensor) -> None:
    buffer, new = torch.zeros(1, 1, 5, 4, dtype=torch.bfloat16), torch.randn(1, 1, 2, 4)
    write_kv(buffer, new, slots)
    assert torch.equal(buffer[:, :, 2:4], new.bfloat16())


@pytest.mark.parametrize("slot", [-1, 8])
def test_write_outside_is_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="do not fit a capacity of 10"):
        write_kv(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 3, 4), slot)


def test_write_a_column_that_does_not_exist_is_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        write_kv(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 1, 4), torch.tensor([[10]]))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("layout", ["plain", "view", "sequence_major"])
def test_commit(leading: tuple[int, ...], layout: str) -> None:
    """Overlapping chains in both directions, rows that stay, and columns that no entry names."""
    source = torch.tensor([[3, 4, 9], [2, 3, 4], [7, 7, 7], [5, 1, 8]])
    target = torch.tensor([[2, 3, 4], [3, 4, 5], [7, 7, 7], [1, 5, 8]])
    storages = []
    for dim in (4, 6):
        if layout == "sequence_major":
            storages.append(torch.randn(*leading, 4, 12, 2, dim).transpose(-2, -3))
        else:
            storages.append(torch.randn(*leading, 4, 2, 15, dim)[..., : 12 if layout == "view" else 15, :])
    expected = [storage.clone() for storage in storages]
    for before, after in zip(storages, expected, strict=True):
        for row in range(4):
            for j in range(3):
                after[..., row, :, target[row, j], :] = before[..., row, :, source[row, j], :]
    given = source.clone(), target.clone()
    commit_kv(storages, source, target)
    for storage, wanted in zip(storages, expected, strict=True):
        assert torch.equal(storage, wanted)
    assert torch.equal(source, given[0])
    assert torch.equal(target, given[1])


def test_commit_of_nothing() -> None:
    storage = torch.randn(2, 1, 5, 4)
    expected, nothing = storage.clone(), torch.empty(2, 0, dtype=torch.long)
    commit_kv([storage], nothing, nothing)
    assert torch.equal(storage, expected)


def test_commit_does_not_touch_what_lies_behind_the_view() -> None:
    buffer = torch.randn(2, 3, 20, 4)
    expected = buffer[:, :, 10:].clone()
    commit_kv([buffer[:, :, :10]], torch.tensor([[8, 9], [6, 9]]), torch.tensor([[2, 3], [4, 5]]))
    assert torch.equal(buffer[:, :, 10:], expected)


@pytest.mark.parametrize("layers", [1, 40])
@pytest.mark.parametrize("column", [-11, 10])
def test_commit_of_a_column_that_does_not_exist_is_refused(layers: int, column: int) -> None:
    """Also where the storage is indexed flat and the column would fall into the neighbouring head."""
    storage, fine = torch.zeros(layers, 2, 2, 10, 4), torch.tensor([[1], [2]])
    for row in range(2):
        wrong = fine.clone()
        wrong[row] = column
        for source, target in [(fine, wrong), (wrong, fine)]:
            with pytest.raises((IndexError, RuntimeError)):
                commit_kv([storage], source, target)
