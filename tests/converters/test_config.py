"""config.json: published ones are read, every key is used or known or refused by name, and no value ends in anything but an error."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OWN, SIZES, MemoryCheckpoint, make, memory_checkpoint, scratch

from porting.conversion import canonical_graph
from porting.converters.architectures.decoder_parts import MOST_HEAD_DIM, MOST_LAYERS, WINDOW_KEYS
from porting.converters.architectures.rope import CONFIG_KEYS as ROPE_KEYS
from porting.converters.config import IGNORED, ONLY_WHEN, read_config
from porting.errors import CheckpointError, PortingError, UnsupportedModel

LLAMA3_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
}
# What these models publish, by their keys and values; typed by hand, not copied from a file.
PUBLISHED = {
    "Llama-2-7B": {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    },
    "Llama-3.1-8B-Instruct": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_SCALING,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.42.3",
        "vocab_size": 128256,
    },
    "Llama-3.2-1B": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**LLAMA3_SCALING, "factor": 32.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
        "vocab_size": 128256,
    },
    "SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "DeepSeek-R1-Distill-Llama-8B": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_SCALING,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.43.0.dev0",
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    },
    "Mistral-7B-Instruct-v0.3": {
        **COMMON,
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.42.0.dev0",
        "vocab_size": 32768,
    },
    "Qwen2.5-7B-Instruct": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "transformers_version": "4.43.1",
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen2.5-0.5B": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "transformers_version": "4.44.0",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-8B": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_ask_for_the_tensors_that_upstream_has(name):
    """Names and shapes of the whole model, from upstream's module tree without its weights."""
    import torch
    import transformers

    config = PUBLISHED[name]
    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = kind(kind.config_class(**config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    canonical = canonical_graph(MemoryCheckpoint(config, shapes, "BF16"))
    assert canonical.tensors["used"] == sorted(shapes)
    assert canonical.tensors["dropped"] == []
    heads = {config["num_key_value_heads"]}
    assert {i.shape[1] for i in canonical.graph.model.graph.inputs if i.name.startswith("cache.")} == heads


# --- a tiny config, changed -----------------------------------------------------------------------------------------


@cache
def base(architecture: str) -> MemoryCheckpoint:
    """A tiny checkpoint that is taken as it is."""
    checkpoint = memory_checkpoint(make(scratch(), architecture))
    canonical_graph(checkpoint)
    return checkpoint


def build(architecture: str, changes: dict, without: str = "") -> None:
    whole = base(architecture)
    config = {key: value for key, value in {**whole.config, **changes}.items() if key != without}
    canonical_graph(MemoryCheckpoint(config, whole.arrays))


@pytest.mark.parametrize("architecture", OWN)
@pytest.mark.parametrize("key", ["num_experts", "attn_logit_softcap", "head_norm"])
def test_an_unknown_key_is_refused_by_name(architecture, key):
    with pytest.raises(UnsupportedModel, match=f"{key}=7"):
        build(architecture, {key: 7})


@pytest.mark.parametrize("key", ONLY_WHEN)
def test_a_key_that_changes_the_maths_is_refused_unless_neutral(key):
    with pytest.raises(UnsupportedModel, match=f"{key.replace('.', '[.]')}='other'"):
        build("LlamaForCausalLM", {key: "other"})
    for neutral in ONLY_WHEN[key]:
        build("LlamaForCausalLM", {key: neutral})


def test_all_unknown_keys_are_named_together():
    with pytest.raises(UnsupportedModel, match=r"final_logit_softcapping=30\.0, num_experts=8, router='x'"):
        build("Qwen3ForCausalLM", {"num_experts": 8, "final_logit_softcapping": 30.0, "router": "x"})


def test_a_hostile_value_does_not_fill_the_message():
    with pytest.raises(UnsupportedModel) as caught:
        build("LlamaForCausalLM", {"payload": {str(i): "x" * 1000 for i in range(1000)}})
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("key", [*IGNORED])
def test_a_harmless_key_may_hold_anything(key):
    if key != "architectures":
        build("LlamaForCausalLM", {key: {"any": "thing"}})


@pytest.mark.parametrize("architecture", OWN)
@pytest.mark.parametrize("key", [k for k in SIZES if k != "num_key_value_heads"])
def test_a_missing_key_is_named(architecture, key):
    with pytest.raises(CheckpointError, match=f"config keys are missing: {key}\n"):
        build(architecture, {}, without=key)
    with pytest.raises(CheckpointError, match=f"config keys are missing: {key}\n"):
        build(architecture, {key: None})


@pytest.mark.parametrize("value", ["48", [48], {"a": 1}, True, 48.0, -48, 0, 2**31, 10**30, math.nan, math.inf])
@pytest.mark.parametrize("key", [k for k in SIZES if k != "rms_norm_eps"])
def test_sizes_that_are_no_counts_are_refused(key, value):
    with pytest.raises(CheckpointError, match=f"config key '{key}' should be"):
        build("LlamaForCausalLM", {key: value})


@pytest.mark.parametrize("value", ["1e-5", None, True, -1e-6, 0.0, 1e30, math.nan, math.inf, -math.inf])
def test_an_epsilon_that_is_no_small_number_is_refused(value):
    with pytest.raises(CheckpointError, match="rms_norm_eps"):
        build("Qwen2ForCausalLM", {"rms_norm_eps": value})


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "text"),
    [
        ("LlamaForCausalLM", {"num_key_value_heads": 4}, CheckpointError, "6 is not a multiple of num_key_value_heads 4"),
        ("LlamaForCausalLM", {"num_key_value_heads": 12}, CheckpointError, "6 is not a multiple of num_key_value_heads 12"),
        ("Qwen2ForCausalLM", {"num_attention_heads": 7}, CheckpointError, "48 is not a multiple of num_attention_heads 7"),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, UnsupportedModel, "hidden_act 'gelu' is not covered"),
        ("LlamaForCausalLM", {"hidden_act": 3}, CheckpointError, "'hidden_act' should be str, got 3"),
        ("LlamaForCausalLM", {"attention_bias": 1}, CheckpointError, "'attention_bias' should be bool, got 1"),
        ("LlamaForCausalLM", {"head_dim": 7}, CheckpointError, "even head_dim, got 7"),
        ("LlamaForCausalLM", {"head_dim": 2 * MOST_HEAD_DIM}, CheckpointError, "head_dim is 32768; no model is near that"),
        ("LlamaForCausalLM", {"num_hidden_layers": MOST_LAYERS + 1}, CheckpointError, "num_hidden_layers is 1001"),
        ("LlamaForCausalLM", {"layer_types": ["full_attention"]}, CheckpointError, "1 entries for 2 layers"),
        ("LlamaForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}, UnsupportedModel, "sliding_attention"),
        ("LlamaForCausalLM", {"layer_types": 2}, CheckpointError, "layer_types should be a list of names"),
        ("LlamaForCausalLM", {"sliding_window": 7}, UnsupportedModel, "sliding_window=7"),
        ("MistralForCausalLM", {"sliding_window": 0}, CheckpointError, "'sliding_window' should be positive"),
        ("MistralForCausalLM", {"sliding_window": 2**31}, CheckpointError, "'sliding_window' should be positive and below"),
        ("MistralForCausalLM", {"sliding_window": "7"}, CheckpointError, "'sliding_window' should be int or null, got '7'"),
        ("MistralForCausalLM", {"attention_bias": True}, UnsupportedModel, "attention_bias=True"),
        ("Qwen2ForCausalLM", {"use_mrope": True}, UnsupportedModel, "use_mrope=True is not covered"),
        ("Qwen2ForCausalLM", {"use_sliding_window": "yes"}, CheckpointError, "use_sliding_window should be a bool"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": -3}, CheckpointError, "integer from 1 up, got -3"),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention", "linear_attention"]}, UnsupportedModel, "linear_attention"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention", ["x"]]}, CheckpointError, "should be a list of names"),
        ("Qwen3ForCausalLM", {"layer_types": ["sliding_attention"] * 2}, CheckpointError, "no sliding_window is in use"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(architecture, changes, error, text):
    with pytest.raises(error) as caught:
        build(architecture, changes)
    assert text in caught.value.what
    assert caught.value.where


@pytest.mark.parametrize("value", [None, "28", -1, True, 2**31])
def test_a_senseless_max_window_layers_is_refused(value):
    sliding = {"use_sliding_window": True, "sliding_window": 5, "layer_types": None}
    build("Qwen2ForCausalLM", {**sliding, "max_window_layers": 28})
    with pytest.raises(CheckpointError, match="'max_window_layers' should be an integer from 0 up"):
        build("Qwen2ForCausalLM", {**sliding, "max_window_layers": value})


@pytest.mark.parametrize("key", ["sliding_window", "max_window_layers"])
def test_a_sliding_window_in_use_has_to_be_described(key):
    """Upstream would fill in the numbers of another model."""
    sliding = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None}
    with pytest.raises(CheckpointError, match=f"the config lacks {key}"):
        build("Qwen2ForCausalLM", sliding, without=key)


def test_mistral_has_to_say_its_window():
    with pytest.raises(CheckpointError, match="missing: sliding_window"):
        build("MistralForCausalLM", {}, without="sliding_window")


def test_types_are_checked_however_a_config_class_is_annotated():
    """A plug-in's file may lack `from __future__ import annotations`: its annotations are then types, not strings."""

    @dataclass(frozen=True)
    class Plugin:
        size: int
        scale: float = 1.0
        names: list = None  # type: ignore[assignment]

    Plugin.__annotations__ = {"size": int, "scale": float, "names": list}
    assert read_config(Plugin, {"size": 3, "scale": 2, "names": []}, ignored={}) == Plugin(3, 2, [])
    for wrong in ({"size": "3"}, {"size": True}, {"size": 3, "scale": "x"}, {"size": 3, "names": {}}):
        with pytest.raises(CheckpointError, match="should be"):
            read_config(Plugin, wrong, ignored={})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
KEYS = sorted({*SIZES, *ONLY_WHEN, *IGNORED, *WINDOW_KEYS, *ROPE_KEYS, "head_dim", "hidden_act", "tie_word_embeddings", "x"})


@settings(max_examples=150, deadline=None)
@given(
    architecture=st.sampled_from([*OWN]),
    changes=st.dictionaries(st.sampled_from(KEYS), json_values | st.integers(1, 64) | st.just(True), min_size=1, max_size=4),
)
def test_any_json_in_a_config_is_built_or_refused(architecture, changes):
    """Never another exception, and never for ever."""
    with contextlib.suppress(PortingError):
        build(architecture, changes)
