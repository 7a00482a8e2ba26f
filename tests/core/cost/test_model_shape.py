import json

import pytest

from specplug.cost.model_shape import ModelShape
from specplug.cost.presets import MODELS, model_shape
from specplug.errors import OptionError, UnknownNameError

LLAMA = MODELS["llama-3.1-8b"]

# as counted from the published checkpoints
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    assert model_shape(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_is_read(name):
    shape = model_shape(name)
    assert shape.name == name
    assert 0 < shape.step_bytes <= shape.stored_bytes


def test_what_a_step_reads_and_computes():
    shape = model_shape("llama-3.1-8b")
    assert shape.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert shape.stored_bytes - shape.step_bytes == 128256 * 4096 * 2  # the embedding table is read by rows
    assert shape.linear_flops == 2 * shape.linear_weights
    assert shape.attention_flops == 4 * 32 * 32 * 128


def test_a_tied_embedding_is_stored_once_and_read_as_the_head():
    shape = model_shape("llama-3.2-1b")
    assert shape.step_bytes == shape.stored_bytes


@pytest.mark.parametrize("folder", [True, False])
def test_a_file_or_its_folder(tmp_path, folder):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    path = tmp_path if folder else tmp_path / "config.json"
    assert model_shape(str(path)).parameters == 8_030_261_248
    assert ModelShape.from_config(path).name == str(path)


def test_a_dictionary_and_old_names():
    config = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "dtype")} | {
        "torch_dtype": "float32"
    }
    shape = ModelShape.from_config(config)
    assert (shape.name, shape.head_dim, shape.weight_bytes) == ("llama", 128, 4.0)


def test_one_kv_head_a_query_head_where_nothing_is_said():
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert ModelShape.from_config(config).kv_heads == 32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": None}, "model_type None"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"n_routed_experts": 64}, "n_routed_experts"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"text_config": {"hidden_size": 1}}, "text_config"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 5}, "5 KV heads"),
        ({"dtype": "int3"}, "dtype (torch_dtype) is 'int3'"),
        ({"dtype": None}, "dtype (torch_dtype) is None"),
    ],
)
def test_what_is_not_covered_is_refused_by_its_field(change, named):
    with pytest.raises(OptionError) as caught:
        ModelShape.from_config(LLAMA | change, "mine")
    assert named in str(caught.value)
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


def test_a_window_that_is_switched_off_is_none():
    plain = ModelShape.from_config(LLAMA, "mine")
    for switched_off in (
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 32, "num_experts": None},
    ):
        assert ModelShape.from_config(LLAMA | switched_off, "mine") == plain


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match="config.json"):
        model_shape(str(file))


def test_unknown_names_and_missing_files():
    with pytest.raises(UnknownNameError, match="Did you mean 'llama-3.1-8b'"):
        model_shape("llama-3.1-8")
    with pytest.raises(OptionError, match="no/where"):
        model_shape("no/where")
