"""Tiny vision-language models, and prompts for them: text alone, and text with an image."""

from __future__ import annotations

from typing import Any

import torch
from families import VOCABULARY, WINDOW, spread
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMAGE = 90  # the image's token; the ids behind it are other special tokens
PATCHES = 4  # tokens that the image becomes

_TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256, tie_word_embeddings=False, eos_token_id=2,
    bos_token_id=1, pad_token_id=0,
)  # fmt: skip
_MROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]))
_SIGLIP = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)
_CLIP = _SIGLIP | dict(model_type="clip_vision_model", projection_dim=16)
_GEMMA = _TEXT | dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
_QWEN_IDS = dict(image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
_QWEN_VISION = dict(depth=1, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": dict(
        text_config=_TEXT | dict(model_type="llama"), vision_config=_CLIP, image_token_index=IMAGE,
        vision_feature_layer=-1, image_seq_length=PATCHES,
    ),
    "paligemma": dict(
        text_config=_TEXT | dict(model_type="gemma"), vision_config=_SIGLIP | dict(model_type="siglip_vision_model"),
        image_token_id=IMAGE, image_token_index=IMAGE, projection_dim=32, hidden_size=32,
    ),
    "gemma3": dict(
        text_config=_GEMMA, vision_config=_SIGLIP, image_token_index=IMAGE, boi_token_index=92, eoi_token_index=93,
        mm_tokens_per_image=PATCHES,
    ),
    "qwen2_vl": dict(
        text_config=_TEXT | _MROPE, vision_config=_QWEN_VISION | dict(embed_dim=16, hidden_size=32, mlp_ratio=2), **_QWEN_IDS
    ),
    "qwen2_5_vl": dict(
        text_config=_TEXT | _MROPE,
        vision_config=_QWEN_VISION
        | dict(hidden_size=16, intermediate_size=16, out_hidden_size=32, fullatt_block_indexes=[0], window_size=16),
        **_QWEN_IDS,
    ),
}  # fmt: skip


def vision_model(family: str) -> PreTrainedModel:
    """A tiny random one."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**CONFIGS[family], tie_word_embeddings=False)
    model = AutoModelForImageTextToText.from_config(config).eval()
    spread(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def vision_inputs(family: str, image: bool) -> dict[str, Tensor]:
    """Two prompts of different lengths, padded on the left, each with an image near its beginning."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 80, (2, 14), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :3] = mask[1, :3] = 0
    if not image:
        return {"input_ids": ids, "attention_mask": mask}
    ids[:, 5 : 5 + PATCHES] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": mask}
    kinds = (ids == IMAGE).long()
    if family.startswith("qwen"):
        ids[:, 4] = 92
        side = 4  # patches; merged two by two
        inputs["pixel_values"] = torch.randn(2 * side * side, 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * 2)
        inputs["mm_token_type_ids"] = kinds
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 8, 8, generator=generator)
        if family in ("gemma3", "paligemma"):
            inputs["token_type_ids"] = kinds
    return inputs
