"""The stand-ins for compiled packages against examples worked out by hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import sgl_kernel
import torch
import triton
import triton.language as tl
from sgl_kernel.speculative import reconstruct_indices_from_tree_mask
from torch import Tensor


def ints(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def test_slots_are_noted_and_read_back_request_by_request() -> None:
    table = torch.zeros(3, 6, dtype=torch.int32)
    rows, start, end = ints([2, 0]), ints([1, 3], torch.int32), ints([3, 6], torch.int32)
    sgl_kernel.assign_req_to_token_pool_cpu(rows, table, start, end, ints([11, 12, 21, 22, 23]), 6)
    assert table.tolist() == [[0, 0, 0, 21, 22, 23], [0] * 6, [0, 11, 12, 0, 0, 0]]
    found = torch.full((7,), -5)
    sgl_kernel.assign_extend_cache_locs_cpu(rows, table, start, end, found, 6)
    assert found.tolist() == [11, 12, 21, 22, 23, -5, -5]


def test_requests_of_no_length_are_passed_over() -> None:
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    found = torch.full((2,), -5)
    sgl_kernel.assign_extend_cache_locs_cpu(
        ints([0, 1, 2]), table, ints([1, 2, 3]), ints([1, 4, 3]), found, table.shape[1]
    )
    assert found.tolist() == [6, 7]


def test_draft_slots_follow_each_request() -> None:
    table = torch.arange(20, dtype=torch.int32).view(2, 10)
    found = torch.zeros(8, dtype=torch.int64)
    sgl_kernel.assign_draft_cache_locs_contiguous_cpu(ints([1, 0]), table, ints([2, 5]), found, 10, 2, 2)
    assert found.tolist() == [12, 13, 14, 15, 5, 6, 7, 8]


def test_bonus_token_is_the_last_accepted_one() -> None:
    bonus = torch.zeros(3, dtype=torch.int32)
    accepted = ints([7, 8, 9, 1, 0, 0, 4, 5, 0], torch.int32)
    sgl_kernel.fill_bonus_tokens_cpu(accepted, ints([3, 1, 2], torch.int32), bonus, 3)
    assert bonus.tolist() == [9, 1, 5]


def test_slots_of_accepted_nodes_are_packed_to_the_front() -> None:
    slots = ints([100, 101, 102, 103, 200, 201, 202, 203])
    found = torch.zeros(6, dtype=torch.int64)
    sgl_kernel.fill_accept_out_cache_loc_cpu(ints([[0, 2, -1], [4, 5, 7]], torch.int32), slots, found)
    assert found.tolist() == [100, 102, 200, 201, 203, 0]


def test_whole_slots_move_in_every_layer_and_overlapping_moves_read_first() -> None:
    layers = [torch.arange(12.0).view(6, 2), torch.arange(100, 118, dtype=torch.float64).view(6, 3)]
    before = [layer.clone() for layer in layers]
    addresses = torch.tensor([layer.data_ptr() for layer in layers], dtype=torch.uint64)
    strides = ints([layer.stride(0) * layer.element_size() for layer in layers])
    sgl_kernel.copy_all_layer_kv_cache_cpu(addresses, strides, ints([1, 2, 3]), ints([2, 3, 5]))
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer, old[[0, 2, 3, 5, 4, 5]])
    sgl_kernel.copy_all_layer_kv_cache_cpu(addresses, strides, ints([]), ints([]))


def test_input_ids_shift_within_their_request() -> None:
    ids, start, lengths = ints([1, 2, 3, 4, 5, 6]), ints([0, 3, 4]), ints([3, 1, 2])
    sgl_kernel.rotate_input_ids_cpu(ids, start, lengths, ints([[70], [80], [90]]))
    assert ids.tolist() == [2, 3, 70, 80, 6, 90]
    sgl_kernel.rotate_input_ids_cpu(ids, start, lengths, ints([7, 8, 9]), ints([1, 3, 4]))
    assert ids.tolist() == [3, 7, 70, 8, 9, 90]


LINKS = {  # the tree 0 - (1 - 3, 2 - 4): two children of the root, each with one child
    "child": [1, 3, 4, -1, -1],
    "sibling": [-1, 2, -1, -1, -1],
    "below": [0, 1, 1, 2, 2],
    "sees": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]],
}
CHAIN = {  # the tree 0 - 1 - 2, with 3 and 4 on 1 too
    "child": [1, 2, -1, -1, -1],
    "sibling": [-1, -1, 3, 4, -1],
    "below": [0, 1, 2, 2, 2],
    "sees": [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]],
}


@pytest.mark.parametrize("prefix_columns", [True, False])
def test_trees_are_built_from_the_chosen_candidates(prefix_columns: bool) -> None:
    """With top-k 3 a draft's first three candidates hang on the root, the next three on candidate 0, and so on."""
    lengths, width = ints([2, 4]), 5
    parents = ints([[-1, 0, 1, 2], [-1, 0, 1, 2]])
    chosen = ints([[0, 1, 4, 6], [0, 3, 4, 5]])  # 4 hangs on 0, 6 on 1; 3, 4 and 5 on 0
    columns = [width + (int(n) if prefix_columns else 0) for n in lengths]
    mask = torch.ones(width * sum(columns), dtype=torch.bool)
    positions = torch.zeros(2 * width, dtype=torch.int64)
    index, child, sibling = (torch.full((2, width), -1) for _ in range(3))
    mode = 0 if prefix_columns else 1
    sgl_kernel.build_tree_kernel_efficient_cpu(
        parents, chosen, lengths, mask, positions, index, child, sibling, 3, 2, width, mode
    )
    assert index.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert child.tolist() == [LINKS["child"], CHAIN["child"]]
    assert sibling.tolist() == [LINKS["sibling"], CHAIN["sibling"]]
    assert positions.view(2, width).tolist() == [[2 + n for n in LINKS["below"]], [4 + n for n in CHAIN["below"]]]
    for part, tree, count in zip(mask.split([width * c for c in columns]), (LINKS, CHAIN), columns, strict=True):
        rows = part.view(width, count).int()
        assert rows[:, count - width :].tolist() == tree["sees"]
        assert bool((rows[:, : count - width] == 1).all())


def test_trees_deeper_than_the_draft_are_cut() -> None:
    """Candidate 2 of top-k 1 hangs on 1, that on 0; with depth 2 the mask stops two nodes up."""
    mask, positions = torch.zeros(16, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    index, child, sibling = (torch.full((1, 4), -1) for _ in range(3))
    sgl_kernel.build_tree_kernel_efficient_cpu(
        ints([[-1, 0, 1]]), ints([[0, 1, 2]]), ints([9]), mask, positions, index, child, sibling, 1, 2, 4, 1
    )
    assert child.tolist() == [[1, 2, 3, -1]] and sibling.tolist() == [[-1] * 4]
    assert mask.view(4, 4).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert positions.tolist() == [9, 10, 11, 11]


def test_a_candidate_whose_parent_was_not_chosen_hangs_on_nothing() -> None:
    """Candidate 2 of top-k 1 hangs on 1, which is not there: it sees the root and itself, and nothing leads to it."""
    mask, positions = torch.zeros(9, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    index, child, sibling = (torch.full((1, 3), -1) for _ in range(3))
    sgl_kernel.build_tree_kernel_efficient_cpu(
        ints([[-1, 0, 1]]), ints([[0, 2]]), ints([9]), mask, positions, index, child, sibling, 1, 3, 3, 1
    )
    assert child.tolist() == [[1, -1, -1]] and sibling.tolist() == [[-1] * 3]
    assert mask.view(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert positions.tolist() == [9, 10, 10]


def test_links_are_found_in_a_mask() -> None:
    mask = torch.tensor([LINKS["sees"], CHAIN["sees"]], dtype=torch.bool)
    positions = torch.zeros(10, dtype=torch.int64)
    index, child, sibling = (torch.zeros(2, 5, dtype=torch.int64) for _ in range(3))
    reconstruct_indices_from_tree_mask(mask.flatten(), ints([2, 4]), positions, index, child, sibling, 2, 5)
    assert index.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert child.tolist() == [LINKS["child"], CHAIN["child"]]
    assert sibling.tolist() == [LINKS["sibling"], CHAIN["sibling"]]
    assert positions.view(2, 5).tolist() == [[2 + n for n in LINKS["below"]], [4 + n for n in CHAIN["below"]]]


def test_nodes_without_ancestors_are_nobodys_siblings() -> None:
    positions, index, child, sibling = (torch.full((3,), -7) for _ in range(4))
    mask = torch.eye(3, dtype=torch.bool).flatten()
    reconstruct_indices_from_tree_mask(mask, ints([6]), positions, index, child, sibling, 1, 3)
    assert (positions.tolist(), index.tolist()) == ([6, 6, 6], [0, 1, 2])
    assert (child.tolist(), sibling.tolist()) == ([-1] * 3, [-1] * 3)


def verified(
    tokens: list[int], choice: list[int], links: dict[str, Any], depth: int = 4
) -> tuple[list[int], list[int]]:
    """`(numbers of accepted nodes, what was predicted at them)` of the second of two trees; the first accepts nothing."""
    width = len(tokens)
    predicts = torch.full((2 * width,), -9, dtype=torch.int32)
    accepted = torch.full((2, depth), -1, dtype=torch.int32)
    count = torch.zeros(2, dtype=torch.int32)
    sgl_kernel.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accepted,
        accept_token_num=count,
        candidates=ints([[0] * width, tokens]),
        retrive_index=torch.arange(2 * width).view(2, width),
        retrive_next_token=ints([links["child"], links["child"]]),
        retrive_next_sibling=ints([links["sibling"], links["sibling"]]),
        target_predict=ints([[55] * width, choice]),
    )
    assert accepted[0].tolist() == [0] + [-1] * (depth - 1)
    assert predicts[:width].tolist() == [55] + [-9] * (width - 1)
    length = int(count[1]) + 1
    assert count[0] == 0 and accepted[1, length:].tolist() == [-1] * (depth - length)
    nodes = accepted[1, :length].tolist()
    assert [at for at, value in enumerate(predicts.tolist()) if at >= width and value != -9] == nodes
    return nodes, predicts[accepted[1, :length].long()].tolist()


@pytest.mark.parametrize(
    ("tokens", "choice", "links", "expected"),
    [
        ([1, 11, 12, 13, 14], [12, 0, 14, 0, 99], LINKS, ([5, 7, 9], [12, 14, 99])),  # the second child, then its own
        ([1, 11, 12, 13, 14], [11, 14, 0, 0, 0], LINKS, ([5, 6], [11, 14])),  # 14 is there, but under the other child
        ([1, 11, 12, 13, 14], [13, 0, 0, 0, 0], LINKS, ([5], [13])),  # 13 is there, but not below the root
        ([1, 11, 12, 13, 14], [11, 14, 0, 0, 98], CHAIN, ([5, 6, 9], [11, 14, 98])),  # the last of three siblings
        ([1, 11, 12, 12, 12], [11, 12, 97, 0, 0], CHAIN, ([5, 6, 7], [11, 12, 97])),  # the first of equal siblings
    ],
)
def test_greedy_verification_walks_down_the_targets_choice(
    tokens: list[int], choice: list[int], links: dict[str, Any], expected: tuple[list[int], list[int]]
) -> None:
    assert verified(tokens, choice, links) == expected


def test_greedy_verification_stops_where_the_output_is_full() -> None:
    assert verified([1, 11, 12, 13, 14], [12, 0, 14, 0, 99], LINKS, depth=2) == ([5, 7], [12, 14])


def test_triton_is_importable_and_nothing_more() -> None:
    from triton.language.extra import libdevice
    from triton.runtime.autotuner import OutOfResources

    def kernel(x: tl.constexpr) -> int:
        return 3

    for decorator in (triton.jit, triton.jit(do_not_specialize=["x"]), triton.autotune(configs=[triton.Config({})])):
        assert decorator(kernel) is kernel
    with pytest.raises(TypeError, match="not subscriptable"):
        triton.jit(kernel)[(1,)](1)
    assert tl.float32 is tl.float32 and tl.float32 is not tl.float16 and triton.Config is triton.Config
    assert issubclass(OutOfResources, Exception) and libdevice.__name__ in sys.modules
    assert [triton.next_power_of_2(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert [triton.cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
