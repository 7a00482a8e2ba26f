import json

import pytest

from specplug.cost.device import Device
from specplug.cost.presets import DEVICES, device
from specplug.errors import OptionError, UnknownNameError


def test_several_of_a_named_device():
    assert device("a100-80gb", 8).label == "8 x a100-80gb"
    assert device("h200").label == "h200"
    assert device("a100-80gb", 8).bandwidth == device("a100-80gb").bandwidth


def test_a_device_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    given = {"name": "mine", "memory": 1e10, "bandwidth": 1e12, "flops": 1e14}
    file.write_text(json.dumps(given))
    assert device(str(file), 2) == Device("mine", 1e10, 1e12, 1e14, count=2)
    for wrong in ({"name": "mine"}, given | {"speed": 1}, [given], given | {"flops": "fast"}, given | {"memory": -1}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(OptionError):
            device(str(file))
    file.write_text("{")
    with pytest.raises(OptionError, match="Cannot read the device"):
        device(str(file))


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_is_a_positive_whole_number(count):
    with pytest.raises(OptionError, match="count"):
        device("h200").times(count)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'h200'"):
        device("h20")


@pytest.mark.parametrize("name", DEVICES)
def test_memory_is_bound_before_arithmetic_on_every_one(name):
    assert DEVICES[name].flops > 50 * DEVICES[name].bandwidth
