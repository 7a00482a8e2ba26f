import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.cost import Load, Roofline
from specplug.cost.choice import Case, best_chain
from specplug.cost.presets import device, model_shape
from specplug.cost.roofline import Overheads, forward, free_nodes
from specplug.errors import OptionError

LLAMA, H200 = model_shape("llama-3.1-8b"), device("h200")
COST = Roofline(LLAMA, H200, {"model": model_shape("llama-3.2-1b")})

# DESIGN.md section 5: best theoretical speed-up, window 512, acceptance .7, .8, .9, one H200
GOLDEN = [
    ("self", 8, 32, (1.34, 1.52, 1.82)),
    ("self", 8, 64, (1.63, 1.93, 2.48)),
    ("self", 32, 16, (1.57, 1.85, 2.30)),
    ("self", 30, 32, (1.88, 2.32, 3.07)),
    ("self", 15, 64, (1.92, 2.37, 3.25)),
    ("model", 1, 4, (1.71, 2.05, 2.69)),
    ("model", 32, 16, (2.48, 3.15, 4.51)),
]


@pytest.mark.parametrize(("drafter", "rows", "kilo", "golden"), GOLDEN)
def test_golden_speedups(drafter, rows, kilo, golden):
    found = [best_chain(Case(COST, drafter, rows, kilo * 1024), {512: rate}).speedup for rate in (0.7, 0.8, 0.9)]
    assert tuple(round(x, 2) for x in found) == golden


def test_golden_free_nodes():
    linear, attention = free_nodes(LLAMA, H200)
    assert (round(linear), round(attention)) == (184, 46)


def test_a_verify_is_free_up_to_there():
    def seconds(tokens):
        return forward(LLAMA, H200, Load(1, tokens, 65536))

    assert seconds(46).attention == pytest.approx(seconds(1).attention, rel=2e-3)
    assert seconds(48).attention > 1.03 * seconds(1).attention
    assert seconds(183).linear == pytest.approx(seconds(1).linear, rel=2e-3)
    assert seconds(190).linear > 1.03 * seconds(1).linear


def test_a_decode_step_by_hand():
    seconds = forward(LLAMA, H200, Load(8, 8, 8 * 32768))
    assert seconds.linear == pytest.approx((LLAMA.step_bytes + 8 * 4096 * 2) / 4.3e12)
    assert seconds.attention == pytest.approx(8 * 32768 * 131072 / 4.3e12)
    assert (seconds.exchange, seconds.overhead) == (0, 0)
    assert COST.target(Load(8, 8, 8 * 32768)) == pytest.approx(seconds.total)


def test_devices_share_the_work_as_far_as_they_can():
    load = Load(8, 8, 8 * 32768)
    one, eight, sixteen = (forward(LLAMA, H200.times(n), load) for n in (1, 8, 16))
    assert eight.linear == pytest.approx(one.linear / 8)
    assert eight.attention == pytest.approx(one.attention / 8)
    assert sixteen.attention == pytest.approx(eight.attention)  # eight KV heads
    assert one.exchange == 0
    assert eight.exchange == pytest.approx(32 * 2 * 2 * 7 / 8 * 8 * 4096 * 2 / 450e9)


def test_overheads_are_a_layers():
    load = Load(4, 12, 4096)
    seconds = forward(LLAMA, H200, load, Overheads(layer=1e-6, token=1e-8)).overhead
    assert seconds == pytest.approx(32 * (1e-6 + 12 * 1e-8))


def test_drafters():
    load = Load(2, 2, 1024)
    assert COST.draft("self", load) == COST.target(load)
    assert 0 < COST.draft("model", load) < COST.target(load)
    assert COST.draft("none", load) == COST.draft("prompt_lookup", load) == 0
    with pytest.raises(OptionError, match="oracle"):
        COST.draft("oracle", load)


loads = st.builds(
    lambda rows, nodes, context: Load(rows, rows * nodes, rows * context),
    st.integers(1, 256),
    st.integers(1, 128),
    st.integers(0, 2**18),
)


@given(
    load=loads,
    more=loads,
    model=st.sampled_from(["llama-3.1-8b", "llama-2-7b", "qwen2.5-0.5b"]),
    machine=st.sampled_from(["h200", "l4"]),
    count=st.sampled_from([1, 2, 8]),
)
def test_never_less_for_a_larger_load(load, more, model, machine, count):
    """More tokens, more context, or more rows of the same kind."""
    cost = Roofline(model_shape(model), device(machine, count), overheads=Overheads(1e-6, 1e-9))
    seconds = cost.target(load)
    assert seconds > 0
    assert cost.target(Load(load.rows, load.tokens + more.tokens, load.context)) >= seconds
    assert cost.target(Load(load.rows, load.tokens, load.context + more.context)) >= seconds
    times = 1 + more.rows
    assert cost.target(Load(load.rows * times, load.tokens * times, load.context * times)) >= seconds
