import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.cost import DeviceMemory
from specplug.cost.presets import GIB, device, model_shape
from specplug.errors import OptionError

LLAMA, DRAFT = model_shape("llama-3.1-8b"), model_shape("llama-3.2-1b")


def test_the_largest_batches_of_the_golden_table():
    memory = DeviceMemory(LLAMA, device("h200"))
    assert (memory.most_rows(32 * 1024), memory.most_rows(64 * 1024)) == (30, 15)


def test_by_hand():
    memory = DeviceMemory(LLAMA, device("h200"), reserve=0)
    assert memory.needed(8, 4096) == pytest.approx(LLAMA.stored_bytes + 8 * 4096 * 131072)
    with_draft = DeviceMemory(LLAMA, device("h200"), DRAFT, reserve=0)
    more = DRAFT.stored_bytes + 8 * 4096 * DRAFT.kv_bytes_per_token
    assert with_draft.needed(8, 4096) == pytest.approx(memory.needed(8, 4096) + more)


def test_devices_share_weights_and_whole_kv_heads():
    two, sixteen = (DeviceMemory(LLAMA, device("h200", n)) for n in (2, 16))
    assert two.kv_per_token == LLAMA.kv_bytes_per_token / 2
    assert sixteen.kv_per_token == LLAMA.kv_bytes_per_token / 8
    assert sixteen.weights == LLAMA.stored_bytes / 16


def test_weights_alone_may_be_too_much():
    memory = DeviceMemory(model_shape("llama-3.1-70b"), device("l4"))
    assert memory.room < 0
    assert memory.most_rows(1) == memory.most_context(1) == 0
    assert not memory.fits(1, 1)


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_is_asked_of_no_rows(size):
    memory = DeviceMemory(LLAMA, device("h200"))
    with pytest.raises(OptionError):
        memory.most_rows(size)
    with pytest.raises(OptionError):
        memory.most_context(size)


@given(size=st.integers(1, 2**17), gib=st.floats(0, 8), draft=st.booleans(), count=st.sampled_from([1, 2, 8]))
def test_the_most_is_what_just_fits(size, gib, draft, count):
    memory = DeviceMemory(LLAMA, device("h100", count), DRAFT if draft else None, gib * GIB)
    rows, context = memory.most_rows(size), memory.most_context(size)
    assert not rows or memory.fits(rows, size)
    assert not context or memory.fits(size, context)
    assert not memory.fits(rows + 1, size)
    assert not memory.fits(size, context + 1)
