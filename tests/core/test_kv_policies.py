import pytest
import torch

from specplug.errors import OptionError
from specplug.kv_policies import Full, KVPolicy, Streaming


def test_streaming_keeps_sinks_and_a_window():
    chosen = Streaming(sink=3, window=5).select(torch.tensor([10, 20]))
    assert chosen.anchors.shape == (1, 1, 1, 3)
    assert chosen.anchors.flatten().tolist() == [0, 1, 2]
    assert chosen.window == 5
    assert Streaming(3, 5).budget == 8
    assert Streaming(0, 1).select(torch.tensor([4])).anchors.shape == (1, 1, 1, 0)


def test_full_reads_everything():
    assert Full().select(torch.tensor([3])) is None
    assert Full().budget is None
    assert KVPolicy().budget is None


@pytest.mark.parametrize(("options", "message"), [({"window": 0}, "at least 1"), ({"sink": -1}, "negative")])
def test_impossible_windows(options, message):
    with pytest.raises(OptionError, match=message):
        Streaming(**options)
