"""What rides on SGLang's batches as `spec_info`: the relay between two rounds, a verify and a draft forward's input."""

from __future__ import annotations

import torch
from sglang.srt.speculative.ngram_info import NgramVerifyInput
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType
from torch import Tensor

from specplug_sglang.view import NodeView

# SGLang's attention backends that decode over given slot lists, and the type of their lists.
INDEX_DTYPES = {"TritonAttnBackend": torch.int64, "FlashInferAttnBackend": torch.int32}


class RoundRelay(NgramVerifyInput):
    """What a round leaves for the next one, rows in step with the batch's: the new tokens and how many they are.

    `accept_tokens` [B * width] int64, `accept_lens` [B] int32 (bonus included), `new_seq_lens` [B] int64. The width is
    fixed, since SGLang keeps these rows in one buffer for all requests; rows are padded to it.
    """

    def __init__(self, width: int, accept_tokens: Tensor, accept_lens: Tensor, new_seq_lens: Tensor) -> None:
        super().__init__(
            draft_token_num=width, accept_tokens=accept_tokens, accept_lens=accept_lens, new_seq_lens=new_seq_lens
        )


class TreeInput(NgramVerifyInput):
    """A verify forward: N nodes a row. `custom_mask` for SGLang's GPU kernels, `view` for our own on a CPU."""

    def __init__(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, view: NodeView | None) -> None:
        SpecInput.__init__(self, SpecInputType.NGRAM_VERIFY)
        rows, nodes = tokens.shape
        self.draft_token = tokens.flatten()
        self.positions = positions.flatten()
        self.custom_mask = mask
        self.view = view
        self.draft_token_num = self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = nodes
        self.retrieve_index = torch.arange(rows * nodes, device=tokens.device).view(rows, nodes)
        self.retrieve_next_token = self.retrieve_next_sibling = None
        self.future_indices = self.new_seq_lens = self.accept_tokens = self.accept_lens = None
        self.device = tokens.device


class DraftInput(SpecInput):
    """A draft forward over a sparse view: every node is a decode row of its own with its own list of slots."""

    cuda_graph_compatible = False  # the graphs that SGLang captures are verify forwards

    def __init__(self, view: NodeView, index_dtype: torch.dtype | None) -> None:
        """`index_dtype`: of the slot lists for SGLang's GPU kernels; None: ours on a CPU takes the view."""
        super().__init__(SpecInputType.EAGLE_DRAFT)
        self.view = view
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = 1
        self.kv_indptr = self.kv_indices = None
        if index_dtype is not None:
            self.kv_indptr, indices = view.flat()
            self.kv_indices = indices.to(index_dtype)
