"""Grammars (JSON schema, regex, EBNF) at every tree node: SGLang's own traversal over our trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.speculative.spec_utils import GrammarTree, build_grammar_vocab_mask
from torch import Tensor

from specplug import TreeBatch
from specplug_sglang.links import links


def mask_logits(logits: Tensor, reqs: Sequence[Any], sampling: Any, trees: TreeBatch) -> Tensor:
    """Forbid in `logits` [B, N, V], in place, what each request's grammar forbids behind each node.

    A token behind a node that breaks the grammar keeps its logits: no law reaches it.
    """
    tokens = trees.tokens.cpu()
    if trees.valid is not None:  # a padding node must not be tried on the grammar: out of the vocabulary is passed over
        tokens = tokens.where(trees.valid.cpu(), logits.shape[-1])
    first_child, next_sibling = links(trees)
    mask = build_grammar_vocab_mask(
        reqs=reqs,
        tree=GrammarTree.from_host(first_child, next_sibling, tokens),
        sampling_info=sampling,
        device=logits.device,
        barrier=None,
    )
    if mask is not None:
        mask.apply(logits.view(-1, logits.shape[-1]))
    return logits
