"""What a stranger's drafter may get wrong, caught before the target sees it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from specplug.controllers import Arm, Plan
from specplug.drafters import Drafter, NoDraft
from specplug.errors import ProposalError
from specplug.proposal import check_proposal
from specplug.ragged import ragged_trees
from specplug.tree import TreeShape, chain_trees, fill_shape
from specplug.trees import Chain, KAry

BATCH = SimpleNamespace(num_rows=2, roots=torch.tensor([1, 2]))
VOCAB = 5


def check(trees, drafter=None, shape=None):
    arm = Arm("mine", drafter or Drafter(), shape or Chain(3).build())
    check_proposal(trees, BATCH, Plan(arm, arm.shape), VOCAB)


def chain(*tokens, counts=None):
    return chain_trees(BATCH.roots, torch.tensor([tokens] * 2), counts)


def ragged(**changes):
    tokens = torch.tensor([[1, 3, 4, 0], [2, 3, 3, 4]])
    trees = ragged_trees(tokens, torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, 2]]))
    return dataclasses.replace(trees, **changes)


def with_laws(law, **changes):
    laws = torch.tensor(law).expand(2, 1, -1)
    return dataclasses.replace(fill_shape(TreeShape((-1, 0)), torch.tensor([[1, 3], [2, 3]]), laws), **changes)


UNIFORM = [0.2] * 5


def test_what_is_in_order_passes():
    check(chain(3, 4))
    check(chain(3, 4, 0, counts=torch.tensor([3, 0])))
    check(ragged())
    check(with_laws(UNIFORM))
    check(chain(9, counts=torch.tensor([0, 0])))  # padding may hold anything


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD = {
    "rows": (lambda: fill_shape(TreeShape((-1, 0)), torch.tensor([[1, 3]])), "proposed for 1 rows; the batch has 2"),
    "size": (lambda: chain(3, 3, 3, 3), "proposed 4 tokens a row; the plan allows 3"),
    "dtype": (lambda: dataclasses.replace(chain(3), tokens=chain(3).tokens.int()), "torch.int32; they must be int64"),
    "root": (lambda: chain_trees(torch.tensor([1, 1]), torch.tensor([[3], [3]])), "changed the root"),
    "token": (lambda: chain(3, 5), "proposed token 5, outside the vocabulary of 5"),
    "negative token": (lambda: chain(-1), "proposed token -1"),
    "parents": (lambda: ragged(parents=torch.tensor([[-1, 0, 0, 3], [-1, 0, 1, 2]])), "an earlier node"),
    "second root": (lambda: ragged(parents=torch.tensor([[-1, 0, -1, 1], [-1, 0, 1, 2]])), "an earlier node"),
    "depths": (lambda: ragged(depths=changed(ragged().depths, (0, 3), 1)), "do not follow from parents"),
    "ancestors": (lambda: ragged(ancestors=changed(ragged().ancestors, (0, 3, 2), True)), "do not follow from parents"),
    "children": (lambda: ragged(children=changed(ragged().children, (0, 0, 1), -1)), "list every node once"),
    "children twice": (lambda: ragged(children=changed(ragged().children, (0, 0, 1), 1)), "list every node once"),
    "child of another": (lambda: ragged(children=changed(ragged().children, (0, 2, 0), 3)), "list every node once"),
    "child out of range": (lambda: ragged(children=changed(ragged().children, (0, 2, 0), 9)), "list every node once"),
    "law of NaN": (lambda: with_laws([float("nan")] * 5), "not a probability distribution"),
    "law of mass 2": (lambda: with_laws([0.4] * 5), "not a probability distribution"),
    "negative law": (lambda: with_laws([1.2, -0.2, 0.0, 0.0, 0.0]), "not a probability distribution"),
    "half a law": (lambda: with_laws([0.5, 0.5]), "must be float32 over 5 tokens"),
    "fp16 law": (
        lambda: with_laws(UNIFORM, laws=torch.full((2, 1, 5), 0.2).half()),
        "torch.float16; they must be float32",
    ),
    "no law index": (lambda: with_laws(UNIFORM, law_index=None), "law_index"),
    "law index": (lambda: with_laws(UNIFORM, law_index=torch.tensor([[-1, 1]])), "law_index"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ProposalError, match=message) as caught:
        check(make())
    assert "'mine'" in str(caught.value)


def test_too_deep():
    with pytest.raises(ProposalError, match="proposed depth 4; the plan allows 2"):
        check(chain(3, 3, 3, 3), shape=KAry(2, 2).build())
    with pytest.raises(ProposalError, match="proposed depth 3; the plan allows 2"):
        check(ragged(), shape=KAry(2, 2).build())


def test_contents_are_not_looked_at_where_that_would_cost():
    check(chain(77), drafter=NoDraft())
    with pytest.raises(ProposalError, match="plan allows 3"):
        check(chain(3, 3, 3, 3), drafter=NoDraft())
