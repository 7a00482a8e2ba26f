"""A look at whether a model can read token trees, for architectures that the family sweep has not seen.

The model reads a short prompt and then a tree that branches, once as we would have it and once path by path, token
after token, as plain generation does. A model that drops masks, or counts positions by itself, answers differently.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specplug import UnsupportedError
from specplug.tree import TreeShape, shape_tensors
from specplug_hf.nodes import NodeForward
from specplug_hf.paged.store import PAGE
from specplug_hf.prefill import check_cache, slots_of, take_over
from specplug_hf.store import KVStore
from specplug_hf.support import device_of, is_half
from specplug_hf.views import FullView

# Model types of transformers that tests/hf/test_families.py runs: nothing is left to find out.
_SEEN = """
afmoe apertus arcee aria_text axk1 beam bert bert-generation big_bird biogpt bitnet camembert codegen cohere cohere2
cohere2_moe cohere_compass_text ctrl cwm data2vec-text dbrx deepseek_v2 deepseek_v3 diffllama doge dots1 electra emu3
ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text
gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite got_ocr2 gpt-sw3
gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe
kolibri1 laguna lfm2 llama llama4 llama4_text longcat_flash megatron-bert mellum mimo_v2_flash minicpm3 minimax_m2
minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe
opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe rembert roberta roberta-prelayernorm
roc_bert seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm xlm-roberta xlm-roberta-xl xmod youtu
"""
VERIFIED = frozenset(_SEEN.split())

_PROMPT = 4
_PROMPT_IN_PAGES = 5 * PAGE + 5  # over pages: several of them, and columns enough for a kernel to split its work
# Six children of the root, and a child of the last: its siblings stand between it and what it may see.
_TREE = TreeShape((-1, 0, 0, 0, 0, 0, 0, 6))
_PATHS = ((0, 6, 7), (0, 1, 2))  # of the two rows; the last node of the second stands for no path and is not compared
_COMPARED = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))  # (row, place on its path)
_TOLERANCE, _TOLERANCE_HALF = 0.01, 0.2  # of the logits' own spread

_causes: weakref.WeakKeyDictionary[PreTrainedModel, dict[Any, str | None]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def check_trees(model: PreTrainedModel, forward: NodeForward) -> None:
    """Raise `UnsupportedError` if `model` reads a tree otherwise than path by path.

    Costs five forwards of a few tokens, once a model object and attention implementation; nothing for a verified family, nor
    over pages, where `node_forward` has looked already. Draws no random numbers.
    """
    if is_verified(model) or forward.storage is not KVStore:
        return
    cause = tree_fault(model, forward)
    if cause is not None:
        raise UnsupportedError(f"{type(model).__name__} {cause}; generate without assistant=.")


def tree_fault(model: PreTrainedModel, forward: NodeForward) -> str | None:
    """In what way `forward` reads a tree otherwise than path by path, or None. Looked at once, see `check_trees`."""
    key = (model.config._attn_implementation, model.dtype, forward.full_width, forward.storage is not KVStore)
    with _lock:
        known = _causes.setdefault(model, {})
    if key not in known:
        known[key] = _cause(model, forward)
    return known[key]


def is_verified(model: PreTrainedModel) -> bool:
    """Whether `model` is transformers' own code for a family that the sweep has run."""
    return type(model).__module__.startswith("transformers.models.") and model.config.model_type in VERIFIED


def _cause(model: PreTrainedModel, forward: NodeForward) -> str | None:
    """What is wrong, or None."""
    try:
        error = tree_error(model, forward)
    except torch.cuda.OutOfMemoryError:
        raise
    except UnsupportedError as refusal:
        if forward.storage is KVStore:
            raise
        return f"cannot read a token tree ({refusal})"
    except Exception as failure:
        return f"cannot read a token tree ({type(failure).__name__}: {failure})"
    if error <= (_TOLERANCE_HALF if is_half(model.dtype) else _TOLERANCE):
        return None
    return f"reads a token tree otherwise than its paths (logits differ by {error:.0%} of their spread)"


@torch.no_grad()
def tree_error(model: PreTrainedModel, forward: NodeForward) -> float:
    """Largest difference between the tree's logits and the paths', as a share of the logits' standard deviation."""
    device = device_of(model)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    length = _prompt_length(model, forward)
    # ordinary tokens: the special ones stand at the ends of a vocabulary
    tokens = (vocabulary // 3 + 7 * torch.arange(length + _TREE.num_nodes, device=device)) % vocabulary
    prompt, nodes = tokens[:length].expand(2, -1), tokens[length:].expand(2, -1)
    mask = torch.ones_like(prompt)
    mask[1, 0] = 0  # the second row is padded
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    check_cache(cache)
    _read(model, cache, prompt, mask)
    ours = _tree_logits(model, forward, cache, nodes, mask)
    paths = torch.tensor(_PATHS, device=device)
    theirs = []
    for place in range(paths.shape[1]):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        theirs.append(_read(model, cache, nodes.gather(1, paths[:, place : place + 1]), mask)[:, -1].double())
    rows, places = (torch.tensor(column, device=device) for column in zip(*_COMPARED, strict=True))
    expected = torch.stack(theirs, dim=1)[rows, places]
    found = ours[rows, paths[rows, places]]
    known = expected.isfinite().all(-1)  # padding makes some models' own attention NaN in float64: nothing to compare
    spread = expected.std(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    errors = ((found - expected).square().mean(-1).sqrt() / spread)[known].nan_to_num(nan=float("inf"))
    return max(errors.tolist(), default=float("inf"))


def _prompt_length(model: PreTrainedModel, forward: NodeForward) -> int:
    if forward.storage is KVStore:
        return _PROMPT
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return _PROMPT_IN_PAGES if limit is None else max(_PROMPT, min(_PROMPT_IN_PAGES, limit - _TREE.num_nodes))


def _read(model: PreTrainedModel, cache: DynamicCache, tokens: Tensor, mask: Tensor) -> Tensor:
    """Logits of `tokens` [B, n] read after what is in `cache`, under the 2-D `mask` of all columns."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).logits


def _tree_logits(
    model: PreTrainedModel, forward: NodeForward, cache: DynamicCache, nodes: Tensor, mask: Tensor
) -> Tensor:
    """Logits [2, N, V] of the tree below the prompt in `cache`, which is left as it is."""
    columns = mask.shape[1]
    store = take_over(cache, columns, slots_of(mask), columns + _TREE.num_nodes, False, forward.storage)
    lengths: list[int] = mask.sum(1).tolist()
    derived = shape_tensors(_TREE, nodes.device)
    step = store.step(
        FullView(), lengths, derived.ancestors[None], derived.depths[None], 0, _TREE.num_nodes,
        full_width=forward.full_width,
    )  # fmt: skip
    positions = torch.tensor(lengths, device=nodes.device)[:, None] + derived.depths
    return forward(store, step, nodes, positions).logits.double()
