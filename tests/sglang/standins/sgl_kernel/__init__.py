"""A test fixture that stands in for the compiled package `sgl_kernel`, which has no CPU build to install.

SGLang's CPU engine imports these functions unconditionally. They are plain torch, written from how SGLang calls them:
the arguments, which of them are written to, and what the callers read afterwards. They are right and not fast. Nothing
of specplug uses them outside its tests, and on a GPU the real package is in their place.

Outputs are written in place, as the callers expect. "Slots" are rows of the KV cache; `req_to_token[r, p]` is the slot
that holds position p of request r.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def _cells(start: Tensor, end: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The cells `(rows[i], start[i]..end[i] - 1)` of every request in turn, as two index vectors."""
    counts = (end - start).long()
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    within = torch.arange(first.shape[0]) - first
    return torch.repeat_interleave(rows.long(), counts), torch.repeat_interleave(start.long(), counts) + within


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Note new slots in the table: `out_cache_loc` holds, request by request, those of positions start..end - 1."""
    rows, positions = _cells(start_offset, end_offset, req_pool_indices)
    req_to_token[rows, positions] = out_cache_loc[: rows.shape[0]].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """The other way round: read the slots of positions start..end - 1 into `out_cache_loc`, request by request.

    What lies in `out_cache_loc` beyond them stays as it is.
    """
    rows, positions = _cells(start_offset, end_offset, req_pool_indices)
    out_cache_loc[: rows.shape[0]] = req_to_token[rows, positions].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the `topk * steps` slots that follow each request's last position into `out_cache_loc`."""
    end = seq_lens + topk * speculative_num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, end, out_cache_loc, pool_len)


def fill_bonus_tokens_cpu(accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int) -> None:
    """The last token of each request's accepted ones: rows of `accept_stride`, of which `accept_lens` count."""
    last = torch.arange(accept_lens.shape[0]) * accept_stride + accept_lens.long() - 1
    bonus_tokens[: last.shape[0]] = accept_tokens.flatten()[last].to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor) -> None:
    """The slots of the accepted nodes, packed to the front; `accept_index` has -1 where a row has no more."""
    nodes = accept_index.flatten()
    nodes = nodes[nodes >= 0].long()
    accept_out_cache_loc[: nodes.shape[0]] = out_cache_loc[nodes].to(accept_out_cache_loc.dtype)


def copy_all_layer_kv_cache_cpu(data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor) -> None:
    """Copy whole slots, `src_loc[i]` to `tgt_loc[i]`, in every layer's buffer; all are read before any is written.

    A buffer is given by its address; a slot of buffer b has `strides[b]` bytes.
    """
    if tgt_loc.numel() == 0:
        return
    target, source = tgt_loc.long(), src_loc.long()
    slots = int(torch.maximum(target.max(), source.max())) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (slots * stride)).from_address(address)
        buffer = torch.frombuffer(memory, dtype=torch.uint8).view(slots, stride)
        buffer[target] = buffer[source]


def rotate_input_ids_cpu(
    input_ids: Tensor,
    extend_start_loc: Tensor,
    extend_seq_lens: Tensor,
    topk_index: Tensor,
    select_index: Tensor | None = None,
) -> None:
    """Shift each request's part of `input_ids` to the left by one and put its new token at the end.

    With `select_index` the new token goes there instead.
    """
    for row, (start, length) in enumerate(zip(extend_start_loc.tolist(), extend_seq_lens.tolist(), strict=True)):
        if length > 0:
            input_ids[start : start + length - 1] = input_ids[start + 1 : start + length].clone()
            place = start + length - 1 if select_index is None else int(select_index[row])
            input_ids[place] = topk_index.flatten()[row]


def _parents(parent_list: Sequence[int], selected: Sequence[int], topk: int) -> list[int]:
    """The parent of every node of one tree, node 0 being the root: -1 for the root and for a node without one.

    `selected[i]` numbers node i + 1 among all candidates of the draft, which come in groups of `topk`: group 0 hangs on
    the root, group g on the candidate `parent_list[g]`.
    """
    node_of = {candidate: node for node, candidate in reversed(list(enumerate(selected, start=1)))}
    parents = [-1]
    for candidate in selected:
        group = candidate // topk
        parents.append(0 if group == 0 else node_of.get(parent_list[group], -1))
    return parents


def _ancestry(parents: Sequence[int], depth: int) -> tuple[Tensor, list[int]]:
    """Which nodes each node sees (itself and its ancestors), and how many positions it is below the root."""
    sees = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    sees[:, 0] = True
    below = [0]
    for node in range(1, len(parents)):
        level, at = 0, node
        while at > 0 and level < depth:
            sees[node, at] = True
            level, at = level + 1, parents[at]
        below.append(level)
    return sees, below


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Turn the chosen candidates of an EAGLE draft into trees: mask, positions, first-child and next-sibling links.

    The links and the mask's columns of the prefix come filled (-1, True). Mode 0 is a mask of `prefix + tree` columns,
    mode 1 one of the tree alone.
    """
    if tree_mask_mode not in (0, 1):
        raise NotImplementedError(f"tree mask mode {tree_mask_mode} has no stand-in")
    width, at = draft_token_num, 0
    numbers = torch.arange(len(verified_seq_len) * width).view(-1, width)
    retrieve_index.copy_(numbers.view_as(retrieve_index))
    for row, length in enumerate(verified_seq_len.tolist()):
        parents = _parents(parent_list[row].tolist(), selected_index[row].tolist(), topk)
        sees, below = _ancestry(parents, depth)
        positions.view(-1, width)[row] = length + torch.tensor(below)
        for node in range(width - 1, 0, -1):
            if parents[node] >= 0:
                retrieve_next_sibling[row, node] = retrieve_next_token[row, parents[node]]
                retrieve_next_token[row, parents[node]] = node
        columns = width + (length if tree_mask_mode == 0 else 0)
        block = tree_mask[at : at + width * columns].view(width, columns)
        block[:, columns - width :] = sees.to(tree_mask.dtype)
        at += width * columns


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Walk each tree from its root along the children that carry the target's own choice.

    Written are: the numbers of the nodes walked over (`accept_index`), the target's choice at each of them
    (`predicts`, by node number) and how many there are without the root (`accept_token_num`).
    """
    choice = target_predict.flatten().tolist()
    table = (candidates, retrive_index, retrive_next_token, retrive_next_sibling)
    for row, (tokens, numbers, child, sibling) in enumerate(zip(*(t.tolist() for t in table), strict=True)):
        path = [0]
        while len(path) < accept_index.shape[1]:
            node, wanted = child[path[-1]], choice[numbers[path[-1]]]
            while node != -1 and tokens[node] != wanted:
                node = sibling[node]
            if node == -1:
                break
            path.append(node)
        for step, node in enumerate(path):
            accept_index[row, step] = numbers[node]
            predicts[numbers[node]] = choice[numbers[node]]
        accept_token_num[row] = len(path) - 1
