import pytest
import torch

from specplug.errors import OptionError
from specplug.kv_policies import Streaming
from specplug.kv_policies.lambda_mask import Lambda
from specplug.needs import Need


@pytest.mark.parametrize(("options", "reach"), [({}, 5), ({"reach": 9}, 9), ({"reach": 1}, 1)])
def test_it_reads_first_positions_no_further_away_than_its_reach(options, reach):
    chosen = Lambda(sink=3, window=5, **options).select(torch.tensor([10, 2000]))
    assert chosen.anchors.shape == (1, 1, 1, 3)
    assert chosen.anchors.flatten().tolist() == [0, 1, 2]
    assert (chosen.window, chosen.reach) == (5, reach)


def test_it_reads_what_streaming_reads_elsewhere():
    policy, lengths = Lambda(), torch.tensor([4])
    mine, theirs = policy.select(lengths), Streaming().select(lengths)
    assert torch.equal(mine.anchors, theirs.anchors) and mine.window == theirs.window
    assert theirs.reach is None
    assert (policy.budget, policy.key) == (512, "lambda 512")
    assert policy.needs == {Need.DISTANCES}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"sink": 0}, "sink=0 must be at least 1.*streaming"),
        ({"reach": 0}, "reach=0 must be a whole number"),
        ({"reach": 2.5}, "reach=2.5 must be a whole number"),
        ({"reach": "far"}, "reach='far' must be a whole number"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        Lambda(**options)
