"""Every causal-LM family of the installed transformers, tiny and random, run with specplug and without.

`python tests/hf/families.py [--json FILE] [family ...]` prints which are served, which are refused, and why.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specplug import SpecplugError, Speculator
from specplug_hf.draft import node_forward
from specplug_hf.probe import VERIFIED, is_verified, tree_error

WINDOW = 8  # of every family that has one; prompts and outputs go beyond it
VOCABULARY = 96
NEW_TOKENS = 24
LENGTHS = (13, 6)  # of the two prompts, the second padded on the left

# Names of the same thing in many configurations.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 64),
    **dict.fromkeys(("ffn_hidden_size", "d_inner", "dim_ff", "intermediate_size_mlp", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("head_dim", "d_head", "dim_head", "kv_channels", "attention_head_dim", "swa_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 256),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("attention_window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("layer_types", "mlp_layer_types"), None),  # cycled, see _value
    "qk_head_dim": 16,
    "v_head_dim": 12,
    "is_decoder": True,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MIXED = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
_ROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3])
_ROPE_BY_KIND = dict(full_attention=_ROPE, sliding_attention=_ROPE)
_GEMMA_3N = dict(num_kv_shared_layers=0, laurel_rank=8, vocab_size_per_layer_input=VOCABULARY, layer_types=_MIXED)
_GEMMA_4 = dict(global_head_dim=32, vocab_size_per_layer_input=VOCABULARY, layer_types=_MIXED[::-1])
_NGRAMS = dict(indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16, indexer_compress_ratio=4)

# What a family needs beside that; a dict at a `..._config` goes to that part.
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": dict(
        encoder_hash_byte_group_vocab=64,
        **{part: dict(vocab_size=VOCABULARY) for part in ("patcher_config", "encoder_config", "decoder_config")},
    ),
    "cohere_compass_text": dict(layer_types=_MIXED, rope_parameters=_ROPE_BY_KIND),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(hidden_size=64, ffn_hidden_size=64),
    ),
    "deepseek_v2": dict(num_experts_per_tok=2, topk_group=1),
    "dots3_note": dict(
        vision_config=dict(adapter_in_dim=64, adapter_out_dim=64),
        audio_config=dict(adapter_input_size=64, adapter_out_dim=64),
    ),
    "dots1": dict(n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1),
    "gemma3n": dict(text_config=_GEMMA_3N),
    "gemma3n_text": _GEMMA_3N,
    "gemma4": dict(text_config=_GEMMA_4),
    "gemma4_text": _GEMMA_4,
    "gemma4_unified": dict(text_config=_GEMMA_4),
    "gemma4_unified_text": _GEMMA_4,
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "hunyuan_v1_dense": dict(head_dim=16),
    "hunyuan_v1_moe": dict(head_dim=16),
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "conv", "full_attention"]),
    "mamba2": dict(num_heads=8, head_dim=16),
    "ministral": dict(head_dim=16),
    "nemotron": dict(num_key_value_heads=2),
    "qwen4_exp": dict(text_config=_NGRAMS),
    "qwen4_exp_text": _NGRAMS,
    "reformer": dict(axial_pos_shape=[16, 16], axial_pos_embds_dim=[32, 32], is_decoder=True),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(
        num_key_value_heads=4, layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"]
    ),
    "zamba2": dict(layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"]),
    "zaya": dict(num_experts_per_tok=1),
}


def _longrope(pairs: int) -> dict[str, Any]:
    """Rotary embeddings that change for all positions once the sequence is longer than 20."""
    return dict(
        rope_type="longrope",
        rope_theta=1e4,
        short_factor=[1.0] * pairs,
        long_factor=[4.0] * pairs,
        original_max_position_embeddings=20,
    )


# Settings of a family that its default configuration does not show: (model type, settings).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert:encoder": ("bert", dict(is_decoder=False)),
    "doge:sparse": ("doge", dict(keep_window_size=WINDOW)),
    "falcon:alibi": ("falcon", dict(alibi=True)),
    "falcon:new": ("falcon", dict(new_decoder_architecture=True)),
    "gemma3_text:bidirectional": ("gemma3_text", dict(use_bidirectional_attention=True)),
    "gemma4_text:shared": ("gemma4_text", dict(num_kv_shared_layers=2)),
    "gemma3n_text:shared": ("gemma3n_text", dict(num_kv_shared_layers=2)),
    "lfm2:conv": ("lfm2", dict(layer_types=["conv", "full_attention", "conv", "full_attention"])),
    "minimax_m3_vl_text:sparse": (
        "minimax_m3_vl_text",
        dict(layer_types=["full_attention", "minimax_m3_sparse"] * 2, index_block_size=4, index_topk_blocks=2),
    ),
    "minicpm3:longrope": ("minicpm3", dict(rope_parameters=_longrope(4))),
    "opt:350m": ("opt", dict(word_embed_proj_dim=32, do_layer_norm_before=False)),
    "phi3:longrope": ("phi3", dict(rope_parameters=_longrope(8), original_max_position_embeddings=20)),
    "phi3:window": ("phi3", dict(sliding_window=WINDOW)),
    "qwen2:window": ("qwen2", dict(use_sliding_window=True, max_window_layers=2)),
    "qwen3:window": ("qwen3", dict(use_sliding_window=True, max_window_layers=2)),
    "starcoder2:window": ("starcoder2", dict(sliding_window=WINDOW)),
    "stablelm:parallel": ("stablelm", dict(use_parallel_residual=True, qk_layernorm=True)),
}


REFUSED_VARIANTS = {
    "doge:sparse",
    "falcon:alibi",
    "lfm2:conv",
    "minicpm3:longrope",
    "minimax_m3_vl_text:sparse",
    "phi3:longrope",
}

# What everybody knows, and each mechanism once: run by default.
NAMED = (
    *("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text:shared", "gemma4_text"),
    *("gemma4_text:shared", "qwen2", "qwen2:window", "qwen2_moe", "qwen3", "qwen3:window", "qwen3_moe", "gpt_oss"),
    *("olmo3", "phi3", "phi3:window", "gpt2", "gpt_neox", "falcon", "falcon:new", "opt", "stablelm", "cohere2"),
    *("deepseek_v3", "llama4_text", "granite", "starcoder2:window", "glm4", "smollm3", "doge", "modernbert-decoder"),
)


def expected_served(family: str) -> bool:
    """Whether specplug promises to serve this family, or variant of one, in this set-up."""
    return VARIANTS.get(family, (family,))[0] in VERIFIED and family not in REFUSED_VARIANTS


@dataclass(slots=True)
class Outcome:
    """What became of one family. `status`: served, refused, wrong, crashed, or unbuilt (plain generate does not run)."""

    family: str
    status: str
    detail: str = ""
    accepted: float = 0.0  # draft tokens a round, self-draft over the whole cache
    distinct: int = 0  # tokens in the plain output: a constant one would prove nothing
    error: float = 0.0  # of a tree's logits against its paths', as a share of their spread (probe.tree_error)
    faults: tuple[float, float] = (
        0.0,
        0.0,
    )  # the same with the mask, with the positions forgotten: what is seen of a fault
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def family_names() -> list[str]:
    """Model types of the installed version that generate text."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> Any:
    """A small configuration of a model type, or of a variant of one."""
    model_type, extra = VARIANTS.get(family, (family, {}))
    return _shrunk(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **extra})


def _shrunk(cls: Any, extra: dict[str, Any]) -> Any:
    try:
        default = cls()
    except Exception:
        return cls(**extra)
    values: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if name in cls.sub_configs:
            part = getattr(default, name)
            if part is not None and not isinstance(part, dict):
                values[name] = {**_shrunk(type(part), extra.get(name, {})).to_dict(), **extra.get(name, {})}
        elif name in SMALL and value is not None:
            values[name] = _value(name, value)
    values |= {name: value for name, value in extra.items() if name not in cls.sub_configs}
    if "kv_lora_rank" in values:  # latent attention: keys and values of every head
        values["num_key_value_heads"] = values["num_attention_heads"]
        values |= {"head_dim": values["qk_rope_head_dim"]} if "head_dim" in values else {}
    return cls(**values)


def _value(name: str, default: Any) -> Any:
    """The small value; of kinds of layers, each kind in turn."""
    if isinstance(default, list) and name.endswith("layer_types"):
        kinds = list(dict.fromkeys(default))
        return [kinds[i % len(kinds)] for i in range(SMALL["num_hidden_layers"])]
    return SMALL[name]


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose output depends on what it reads: a default initialisation repeats one token."""
    config = tiny_config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    spread(model)
    ends = model.generation_config
    ends.eos_token_id, ends.pad_token_id, ends.bos_token_id, ends.max_length = None, 0, 1, None
    return model


@torch.no_grad()
def spread(model: PreTrainedModel, gain: float = 1.5) -> None:
    """Weights wide enough for attention to be sharp; and what all positions say in common is taken out of the head."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            std = 1.0 if "embed" in name or "wte" in name else gain / weight.shape[-1] ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        elif name.rsplit(".", 1)[-1] in ("sinks", "bias", "A"):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or model._is_stateful:  # which are refused, and slow without kernels
        return
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(input_ids=torch.randint(3, VOCABULARY, (4, 24), generator=generator), use_cache=False)
    except Exception:
        return  # a model that does not run shows it in plain generation
    finally:
        hook.remove()
    common = seen[0].flatten(0, -2).mean(0)
    if common.shape != head.weight.shape[1:]:
        return
    head.weight.sub_((head.weight @ common)[:, None] * common / common.norm() ** 2)


def prompts(vocabulary: int) -> dict[str, Tensor]:
    """Two prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(2)
    width = max(LENGTHS)
    ids = torch.randint(3, vocabulary, (len(LENGTHS), width), generator=generator)
    mask = torch.stack([torch.arange(width) >= width - length for length in LENGTHS]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


SETUPS: dict[str, dict[str, Any]] = {
    "tree": dict(drafter="self", kv_policy="full", tree="kary:branch=2,depth=3"),
    "window": dict(drafter="self", kv_policy="streaming:sink=2,window=5", tree="sequoia:size=7,depth=3"),
}


def run(family: str, dtype: torch.dtype = torch.float32, kernel: str = "auto") -> Outcome:
    """Build, generate plainly and with every set-up, compare."""
    start = perf_counter()
    outcome = _run(family, dtype, kernel)
    outcome.seconds = perf_counter() - start
    return outcome


def _run(family: str, dtype: torch.dtype, kernel: str) -> Outcome:
    try:
        model = tiny_model(family, dtype)
    except Exception as error:
        return Outcome(family, "unbuilt", _line(error))
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    inputs = prompts(VOCABULARY)
    call = dict(max_new_tokens=NEW_TOKENS, do_sample=False)
    outcome, outputs = Outcome(family, "served"), {}
    for name, setup in SETUPS.items():
        speculator = Speculator(**setup, controller="fixed", kernel=kernel)
        try:
            outputs[name] = model.generate(**inputs, **call, assistant=speculator)
        except SpecplugError as error:
            before = is_verified(model) and forwards and kernel == "auto"  # pages are tried on the model first
            return Outcome(family, "crashed" if before else "refused", str(error) + (" (too late)" if before else ""))
        except Exception as error:
            return _broken(family, model, {**inputs, **call}, name, error)
        outcome.accepted = outcome.accepted or speculator.stats.accepted_length - 1
    plain = model.generate(**inputs, **call)
    outcome.distinct = len(plain[:, inputs["input_ids"].shape[1] :].unique())
    for name, ours in outputs.items():
        if ours.shape != plain.shape or not torch.equal(ours, plain):
            same = [int((a == b).long().cumprod(0).sum()) for a, b in zip(ours, plain, strict=False)]
            outcome.status = "wrong"
            outcome.detail = f"{name}: rows equal up to columns {same} of {plain.shape[1]}"
            return outcome
    outcome.error = tree_error(model, node_forward(model, kernel))
    outcome.faults = (tree_error(model, ForgetsMask(model)), tree_error(model, ForgetsPositions(model)))  # type: ignore[arg-type]
    return outcome


def _broken(family: str, model: PreTrainedModel, call: dict[str, Any], name: str, error: Exception) -> Outcome:
    """Ours failed with something that is no `SpecplugError`: no fault of ours if plain generation fails likewise."""
    try:
        model.generate(**call)
    except Exception as same:
        if type(same) is type(error):
            return Outcome(family, "unbuilt", f"plain generate fails: {_line(same)} {_place(same)}")
    return Outcome(family, "crashed", f"{name}: {_line(error)} {_place(error)}")


class ForgetsMask:
    """A node forward with a fault: every node sees all nodes before it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.forward = node_forward(model)
        self.full_width, self.storage = self.forward.full_width, self.forward.storage

    def __call__(self, store: Any, step: Any, tokens: Tensor, positions: Tensor) -> Any:
        step._ancestors = torch.ones_like(step._ancestors).tril()
        return self.forward(store, step, tokens, positions)


class ForgetsPositions(ForgetsMask):
    """A node forward with a fault: nodes stand one behind the other."""

    def __call__(self, store: Any, step: Any, tokens: Tensor, positions: Tensor) -> Any:
        behind = torch.arange(tokens.shape[1], device=tokens.device)
        return self.forward(store, step, tokens, positions[:, :1] + behind)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _place(error: BaseException) -> str:
    trace, last = error.__traceback__, ""
    while trace is not None:
        last = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"({last})"


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Lines of the summary."""
    for status in ("served", "refused", "unbuilt", "wrong", "crashed"):
        those = [o for o in outcomes if o.status == status]
        if not those:
            continue
        yield f"{status} ({len(those)})"
        if status == "served":
            yield "  " + ", ".join(o.family for o in those)
            continue
        width = max(len(o.family) for o in those)
        yield from (f"  {o.family:{width}}  {o.detail}" for o in those)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="model types; default: all")
    parser.add_argument("--json", help="write the outcomes here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    importlib.import_module("transformers").logging.set_verbosity_error()
    torch.set_num_threads(1)
    outcomes = []
    for family in options.families or [*family_names(), *VARIANTS]:
        outcomes.append(run(family))
        o = outcomes[-1]
        print(
            f"{o.family:24} {o.status:8} {o.accepted:4.1f} {o.distinct:3d} {o.error:7.0e} {o.faults[0]:4.0%} {o.faults[1]:4.0%} {o.seconds:5.1f}s {o.detail}",
            flush=True,
        )
    print("\n".join(table(outcomes)))
    if options.json:
        with open(options.json, "w") as out:
            json.dump([asdict(o) for o in outcomes], out, indent=1)
    return int(any(o.status in ("wrong", "crashed") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
