"""The GGUF reader: tensors and config as upstream has them, every block type, and every lie in the header refused by name."""

import struct
import sys
import tracemalloc
from dataclasses import replace

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from porting.converters.checkpoints.gguf import GgufCheckpoint, stored_order
from porting.converters.checkpoints.gguf_config import ONLY_WHEN, hf_config
from porting.converters.checkpoints.gguf_header import BLOCKS, read_header
from porting.converters.checkpoints.gguf_tokenizer import side_files
from porting.errors import CheckpointError, DeviceUnavailable, InputError, PortingError, UnsupportedModel
from porting.types import Checkpoint

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 4, 2, 64, 32
QUANTISED = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
K_QUANTS = [Type.Q4_K, Type.Q5_K, Type.Q6_K]


# --- a tiny model, written by gguf's own writer -------------------------------------------------------------------


def weights(seed=0, **shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def layer(seed=0):
    """The tensors of one decoder layer, embedding and norm, by GGUF's names and in Hugging Face's row order."""
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (512, HIDDEN),
        "blk.0.ffn_up.weight": (512, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 512),
    }
    return weights(seed, **shapes)


def write(path, tensors, arch="llama", **keys):
    """tensors: name -> float array, or (bytes as uint8 rows, Type); keys: `rope__freq_base=...` under `{arch}.`, None drops one."""
    writer = gguf.GGUFWriter(path, arch)
    values = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": 512,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **{k.replace("__", "."): v for k, v in keys.items()},
    }
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        if value is not None:
            add[type(value)](key[1:] if key.startswith(".") else f"{arch}.{key}", value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        elif value.dtype == ml_dtypes.bfloat16:
            writer.add_tensor(name, value.view(np.uint8), raw_dtype=Type.BF16)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path, tensors=None, arch="llama", **keys):
    return GgufCheckpoint(write(path / "model.gguf", layer() if tensors is None else tensors, arch, **keys))


def permute(rows, heads):
    """What llama.cpp's conversion does to q and k of "llama": (2, D/2) in each head becomes (D/2, 2)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def whole(checkpoint, name, step=7):
    """A tensor read in stripes that fit neither heads nor blocks."""
    count = checkpoint.tensors[name].shape[0]
    return np.concatenate([checkpoint.rows(name, i, min(i + step, count)) for i in range(0, count, step)])


# --- the real model -----------------------------------------------------------------------------------------------


def test_smollm2_config_is_upstreams(smollm2_gguf):
    checkpoint = GgufCheckpoint(smollm2_gguf)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.config == {  # HuggingFaceTB/SmolLM2-135M-Instruct, config.json
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "rope_theta": 100000,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


@pytest.mark.parametrize("layers", [(0, 29), pytest.param(range(30), marks=pytest.mark.slow)], ids=["some", "all"])
def test_smollm2_tensors_equal_ggufs_own_reader_bit_for_bit(smollm2_gguf, layers):
    checkpoint = GgufCheckpoint(smollm2_gguf)
    stored = gguf.GGUFReader(smollm2_gguf).tensors
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    seen = set()
    for name, tensor in checkpoint.tensors.items():
        base, _, suffix = name.rpartition(".")
        if "layers" in name and int(name.split(".")[2]) not in layers:
            continue
        theirs = next(t for t in stored if t.name == f"{names.get_name(base)}.{suffix}")
        expected = dequantize(theirs.data, theirs.tensor_type)
        if ".q_proj." in name or ".k_proj." in name:
            heads = 9 if ".q_proj." in name else 3
            expected = expected.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(expected.shape)
        np.testing.assert_array_equal(whole(checkpoint, name, 5000 if name.endswith("tokens.weight") else 250), expected)
        assert tensor.shape == expected.shape
        seen.add(theirs.name)
    assert len(seen) == 2 + 9 * len(layers)
    assert len(checkpoint.tensors) == len(stored) == 2 + 9 * 30


# --- block types --------------------------------------------------------------------------------------------------


def blocks(kind, rows, columns, seed):
    """Random blocks with scales that are small and finite; the quantisers in numpy do not cover K-quants."""
    rng = np.random.default_rng(seed)
    if kind not in K_QUANTS:
        return quantize(rng.standard_normal((rows, columns), np.float32), kind)
    per_block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // per_block, nbytes), np.uint8)
    scales = rng.uniform(0.001, 0.1, (rows, columns // per_block, 2)).astype(np.float16).view(np.uint8)
    if kind == Type.Q6_K:
        raw[..., -2:] = scales[..., :2]
    else:
        raw[..., :4] = scales
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", QUANTISED + K_QUANTS, ids=lambda k: k.name)
def test_every_block_type_decodes_as_the_whole_tensor_does(tmp_path, kind):
    tensors = layer()
    for name, rows, columns in (("ffn_down", HIDDEN, 512), ("attn_q", HEADS * HEAD_DIM, HIDDEN)):
        tensors[f"blk.0.{name}.weight"] = (blocks(kind, rows, columns, 3), kind)
    tensors["output_norm.weight"] = (blocks(kind, 1, HIDDEN, 4)[0], kind)
    checkpoint = opened(tmp_path, tensors)
    down = dequantize(*tensors["blk.0.ffn_down.weight"])
    assert np.isfinite(down).all()
    assert np.unique(down).size > 100
    np.testing.assert_array_equal(whole(checkpoint, "model.layers.0.mlp.down_proj.weight"), down)
    q = dequantize(*tensors["blk.0.attn_q.weight"])
    np.testing.assert_array_equal(permute(whole(checkpoint, "model.layers.0.self_attn.q_proj.weight"), HEADS), q)
    np.testing.assert_array_equal(whole(checkpoint, "model.norm.weight"), dequantize(*tensors["output_norm.weight"]))
    stored = checkpoint.tensors["model.layers.0.mlp.down_proj.weight"]
    assert (stored.dtype, stored.plain, stored.shape) == (kind.name, False, (HIDDEN, 512))


def test_the_table_of_blocks_is_ggufs():
    assert {n: BLOCKS[n][1:] for n in BLOCKS} == {n: tuple(gguf.GGML_QUANT_SIZES[Type(n)]) for n in BLOCKS}
    assert {n: BLOCKS[n][0] for n in BLOCKS} == {n: Type(n).name for n in BLOCKS}
    assert {Type(n) for n in BLOCKS} == {Type.F32, Type.F16, Type.BF16, *QUANTISED, *K_QUANTS}


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "F32"), (np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")])
def test_plain_types_come_as_stored_and_lie_where_the_table_says(tmp_path, dtype, name):
    values = {n: v.astype(dtype) for n, v in layer().items()}
    checkpoint = opened(tmp_path, values)
    got = whole(checkpoint, "model.layers.0.mlp.up_proj.weight")
    assert got.dtype == dtype
    assert got.tobytes() == values["blk.0.ffn_up.weight"].tobytes()
    stored = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    assert (stored.dtype, stored.plain) == (name, True)
    assert stored.file.read_bytes()[stored.offset :][: stored.nbytes] == got.tobytes()


def test_plain_files_need_no_gguf_package_and_blocks_name_the_extra(tmp_path, monkeypatch):
    plain = write(tmp_path / "plain.gguf", layer())
    tensors = layer() | {"blk.0.ffn_up.weight": (blocks(Type.Q4_0, 512, HIDDEN, 0), Type.Q4_0)}
    quantised = write(tmp_path / "q.gguf", tensors)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    assert GgufCheckpoint(plain).rows("model.norm.weight", 0, 1).shape == (1,)
    with pytest.raises(DeviceUnavailable, match=r"Q4_0") as caught:
        GgufCheckpoint(quantised)
    assert caught.value.next == 'pip install "porting[gguf]"'


def test_an_undecoded_type_is_refused_by_name(tmp_path):
    tensors = layer() | {"blk.0.ffn_up.weight": (np.zeros((512, 84), np.uint8), Type.Q2_K)}
    with pytest.raises(UnsupportedModel, match=r"tensor 'blk\.0\.ffn_up\.weight' has the type Q2_K"):
        opened(tmp_path, tensors)


# --- names and row order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rows_come_in_hugging_faces_order(tmp_path, arch):
    """Only "llama" is converted with q and k permuted."""
    ours = layer() | weights(1, **{"blk.0.attn_q.bias": (HEADS * HEAD_DIM,), "blk.0.attn_k.bias": (KV_HEADS * HEAD_DIM,)})
    stored = dict(ours)
    if arch == "llama":
        stored |= {n: permute(v, HEADS if "_q" in n else KV_HEADS) for n, v in ours.items() if "attn_q" in n or "attn_k" in n}
    checkpoint = opened(tmp_path, stored, arch)
    for kind in ("weight", "bias"):
        for part in "qk":
            name = f"model.layers.0.self_attn.{part}_proj.{kind}"
            np.testing.assert_array_equal(whole(checkpoint, name), ours[f"blk.0.attn_{part}.{kind}"])
            assert checkpoint.tensors[name].plain is (arch != "llama")
    np.testing.assert_array_equal(whole(checkpoint, "model.embed_tokens.weight"), ours["token_embd.weight"])


@given(start=st.integers(0, 256), count=st.integers(0, 256))
@settings(max_examples=40, deadline=None)
def test_any_rows_of_a_permuted_tensor_equal_those_of_the_whole(tmp_path_factory, start, count):
    checkpoint = _shared(tmp_path_factory)
    stop = min(start + count, 256)
    expected = layer()["blk.0.attn_q.weight"][start:stop]
    np.testing.assert_array_equal(checkpoint.rows("model.layers.0.self_attn.q_proj.weight", start, stop), expected)


def _shared(factory, made=[]):  # noqa: B006  one file for all examples
    if not made:
        tensors = layer()
        tensors["blk.0.attn_q.weight"] = permute(tensors["blk.0.attn_q.weight"], HEADS)
        made.append(opened(factory.mktemp("shared"), tensors))
    return made[0]


def test_rows_that_are_not_there_are_refused(tmp_path):
    checkpoint = opened(tmp_path)
    assert checkpoint.rows("model.norm.weight", 3, 3).shape == (0,)
    for start, stop in ((-1, 2), (0, HIDDEN + 1), (5, 4)):
        with pytest.raises(InputError, match="which has 256"):
            checkpoint.rows("model.norm.weight", start, stop)


def test_a_permuted_row_reads_no_more_than_its_head():
    for row in range(0, 256, 13):
        source = stored_order(np.array([row]), 64)
        assert row // 64 == source[0] // 64
    assert sorted(stored_order(np.arange(256), 64)) == list(range(256))


def test_qwen3_has_norms_on_q_and_k_and_names_nobody_knows_stay(tmp_path):
    extra = weights(
        2,
        **{
            "blk.0.attn_q_norm.weight": (64,),
            "blk.0.attn_k_norm.weight": (64,),
            "blk.00.ffn_up.weight": (2, 2),
            "blk.0.odd.weight": (2, 2),
            "output.weight": (VOCAB, HIDDEN),
        },
    )
    checkpoint = opened(tmp_path, layer() | extra, "qwen3", attention__key_length=64, attention__value_length=64)
    names = set(checkpoint.tensors)
    assert {"model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight", "lm_head.weight"} <= names
    assert {"blk.00.ffn_up.weight", "blk.0.odd.weight"} <= names
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.config["architectures"] == ["Qwen3ForCausalLM"]


def test_a_tensor_under_both_names_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="under GGUF's and Hugging Face's name"):
        opened(tmp_path, layer() | {"model.norm.weight": np.ones(HIDDEN, np.float32)})


# --- config -------------------------------------------------------------------------------------------------------


def test_a_sliding_window_makes_it_mistral(tmp_path):
    config = opened(tmp_path, attention__sliding_window=4096).config
    assert (config["architectures"], config["model_type"]) == (["MistralForCausalLM"], "mistral")
    assert config["sliding_window"] == 4096
    assert not {"attention_bias", "mlp_bias"} & set(config)  # keys that its class does not have


def test_head_dim_may_differ_from_hidden_over_heads(tmp_path):
    tensors = layer() | weights(
        5,
        **{
            "blk.0.attn_q.weight": (HEADS * 32, HIDDEN),
            "blk.0.attn_k.weight": (KV_HEADS * 32, HIDDEN),
        },
    )
    keys = {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 32}
    assert opened(tmp_path, tensors, **keys).config["head_dim"] == 32


def test_per_layer_arrays_that_repeat_one_number_are_that_number(tmp_path):
    assert opened(tmp_path, attention__head_count_kv=[2, 2]).config["num_key_value_heads"] == 2
    with pytest.raises(UnsupportedModel, match=r"llama\.attention\.head_count_kv differs from layer to layer"):
        opened(tmp_path, attention__head_count_kv=[2, 4])


def test_biases_are_seen_in_the_tensors(tmp_path):
    config = opened(tmp_path, layer() | {"blk.0.attn_v.bias": np.ones(128, np.float32)}).config
    assert (config["attention_bias"], config["mlp_bias"]) == (True, False)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 1.0}, None),
        ({"type": "linear", "factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        ({"factor": 8.0}, {"rope_type": "linear", "factor": 8.0}),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 32, "finetuned": True}, YARN),
        ({"type": "yarn", "factor": 4.0}, YARN | {"original_max_position_embeddings": 128}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32, "yarn_beta_fast": 16.0, "attn_factor": 2.0},
            YARN | {"beta_fast": 16.0, "attention_factor": 2.0 * (0.1 * np.log(4.0) + 1.0)},
        ),
    ],
)
def test_rope_scaling(tmp_path, keys, expected):
    assert opened(tmp_path, **{f"rope__scaling__{k}": v for k, v in keys.items()}).config.get("rope_scaling") == expected


def test_frequency_factors_keep_their_name_and_are_announced(tmp_path):
    factors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    tensors = layer() | {"rope_freqs.weight": factors}
    checkpoint = opened(tmp_path, tensors)
    assert checkpoint.config["rope_scaling"] == {"rope_type": "freq_factors"}
    np.testing.assert_array_equal(whole(checkpoint, "rope_freqs.weight"), factors)
    with pytest.raises(UnsupportedModel, match=r"'linear' together with rope_freqs\.weight"):
        opened(tmp_path, tensors, rope__scaling__type="linear", rope__scaling__factor=2.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 8}, r"llama\.expert_count=8"),
        ({"logit_scale": 0.5}, r"llama\.logit_scale=0\.5"),
        ({"attention__temperature_scale": 0.1}, r"llama\.attention\.temperature_scale=0\.1"),
        ({"attention__causal": False}, r"llama\.attention\.causal=False"),
        ({"rope__dimension_count": 32}, r"llama\.rope\.dimension_count=32"),
        ({"rope__dimension_sections": [1, 2]}, r"llama\.rope\.dimension_sections"),
        ({"rope__scaling__type": "longrope"}, "rope scaling 'longrope'"),
        ({"rope__scaling__attn_factor": 2.0}, "attention factor of 2.0"),
        ({"rope__scaling__yarn_log_multiplier": 0.1}, r"yarn_log_multiplier=0\.1"),
        ({"rope__scaling__factor": 0.5, "rope__scaling__type": "yarn"}, "yarn with a factor of 0.5"),
        ({"attention__key_length": 64, "attention__value_length": 32}, "keys of 64 and values of 32"),
        ({"tensor_data_layout": "other"}, "tensor_data_layout='other'"),
        ({".split.count": 2}, "one of 2 parts"),
        ({".general.type": "adapter"}, "type 'adapter'"),
        ({".clip.use_gelu": True}, r"clip\.use_gelu"),
    ],
)
def test_keys_that_change_the_maths_are_refused_by_name(tmp_path, keys, message):
    with pytest.raises(UnsupportedModel, match=message):
        opened(tmp_path, **keys)


def test_the_same_keys_are_fine_when_they_change_nothing(tmp_path):
    keys = {"expert_count": 0, "logit_scale": 1.0, "attention__causal": True, "rope__dimension_count": 64, "vocab_size": VOCAB}
    assert opened(tmp_path, **keys, **{".other_tool.note": "x"}).config == opened(tmp_path).config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"embedding_length": None}, r"llama\.embedding_length should be a whole number, got None"),
        ({"embedding_length": "256"}, r"llama\.embedding_length should be a whole number, got '256'"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "should be a number, got nan"),
        ({"attention__head_count": 3}, "hidden size 256 does not divide into 3"),
        ({"attention__head_count": 0}, "does not divide into 0"),
        ({"attention__head_count": 2}, r"q_proj\.weight has 256 rows|k_proj\.weight has 128 rows, expected 256"),
        ({"vocab_size": 31}, r"vocab_size is 31, but token_embd\.weight has 32 rows"),
        ({".tokenizer.ggml.tokens": ["a"] * 33}, "the tokenizer has 33 tokens"),
        ({".tokenizer.ggml.eos_token_id": "x"}, "eos_token_id is 'x'"),
    ],
)
def test_contradictions_are_refused(tmp_path, keys, message):
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, **keys)


def test_an_uncovered_architecture_names_the_covered_ones(tmp_path):
    with pytest.raises(UnsupportedModel, match="'gemma3' is not covered") as caught:
        opened(tmp_path, arch="gemma3")
    assert caught.value.next == "covered: llama, qwen2, qwen3"


def test_an_older_quantisation_is_refused(tmp_path):
    tensors = layer() | {"blk.0.ffn_up.weight": (blocks(Type.Q4_0, 512, HIDDEN, 0), Type.Q4_0)}
    with pytest.raises(UnsupportedModel, match="quantization version 1 of Q4_0"):
        opened(tmp_path, tensors, **{".general.quantization_version": 1})


# --- a header by hand, so that any number in it can lie -----------------------------------------------------------


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(name="t", shape=(4,), kind=0, offset=0, dims=None):
    counts = struct.pack("<I", len(shape) if dims is None else dims) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return text(name) + counts + struct.pack("<IQ", kind, offset)


def handmade(keys=(), entries=(), data=b"", version=3, magic=b"GGUF", tensors=None, count=None):
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", len(entries) if tensors is None else tensors, len(keys) if count is None else count)
    head += b"".join((*keys, *entries))
    return head + bytes(-len(head) % 32 if entries else 0) + data


ARRAY_OF = {"u8": 0, "string": 8, "array": 9}


def array(kind, count, raw=b""):
    return text("k") + struct.pack("<IIQ", 9, ARRAY_OF[kind], count) + raw


LIES = {
    "zero bytes": (b"", "expected it to begin with b'GGUF', the file has 0 bytes"),
    "another format": (b"PK\x03\x04" + bytes(99), r"got b'PK\\x03\\x04'"),
    "magic alone": (b"GGUF", "claims 4 bytes of the version, but ends 0 bytes later"),
    "version 1": (handmade(version=1), "is GGUF version 1; versions 2 and 3 are read"),
    "version 4": (handmade(version=4), "is GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2**60 keys": (handmade(count=1 << 60), f"claims {1 << 60} metadata keys"),
    "2**60 tensors": (handmade(tensors=1 << 60), f"claims {1 << 60} tensors"),
    "long string": (handmade([text("k") + struct.pack("<IQ", 8, 1 << 40)]), f"claims {1 << 40} bytes of metadata 'k'"),
    "long key": (handmade([struct.pack("<Q", 1 << 63) + bytes(20)]), f"claims {1 << 63} bytes of a metadata key"),
    "long array": (handmade([array("u8", 1 << 40)]), f"claims {1 << 40} numbers in metadata 'k'"),
    "long array of strings": (handmade([array("string", 1 << 40)]), f"claims {1 << 40} strings in metadata 'k'"),
    "nested array": (handmade([array("array", 1, bytes(12))]), "array of the unknown type 9"),
    "unknown type": (handmade([text("k") + struct.pack("<IQ", 13, 0)]), "unknown type 13"),
    "bool of 2": (handmade([text("k") + struct.pack("<IB", 7, 2)]), "neither 0 nor 1"),
    "key twice": (handmade([text("k") + struct.pack("<IB", 0, 1)] * 2), "metadata key 'k' twice"),
    "key not UTF-8": (handmade([text(b"\xff") + struct.pack("<IB", 0, 1)]), "a metadata key that is not UTF-8"),
    "alignment 0": (handmade([text("general.alignment") + struct.pack("<II", 4, 0)]), "general.alignment 0"),
    "alignment 48": (handmade([text("general.alignment") + struct.pack("<II", 4, 48)]), "general.alignment 48"),
    "alignment -1": (handmade([text("general.alignment") + struct.pack("<Ii", 5, -1)]), "general.alignment -1"),
    "no dimension": (handmade(entries=[entry(shape=())], data=bytes(64)), "0 dimensions"),
    "2**32-1 dimensions": (handmade(entries=[entry(dims=2**32 - 1)], data=bytes(64)), "4294967295 dimensions"),
    "no element": (handmade(entries=[entry(shape=(4, 0))], data=bytes(64)), r"the shape \(4, 0\), without an element"),
    "product wraps": (handmade(entries=[entry(shape=(1 << 62, 4))], data=bytes(64)), "a tensor that ends at byte"),
    "past the end": (handmade(entries=[entry(shape=(16,), offset=32)], data=bytes(64)), "which has 128"),
    "offset 2**64-32": (handmade(entries=[entry(offset=2**64 - 32)], data=bytes(64)), "a tensor that ends at byte"),
    "not aligned": (handmade(entries=[entry(offset=4)], data=bytes(64)), "offset 4, not a multiple of the alignment 32"),
    "overlap": (
        handmade(entries=[entry("a", (16,)), entry("b", (4,), offset=32)], data=bytes(64)),
        "overlaps 'a' at byte 128",
    ),
    "tensor twice": (handmade(entries=[entry("a"), entry("a", offset=32)], data=bytes(64)), "gives the tensor 'a' twice"),
    "half a block": (handmade(entries=[entry(shape=(2, 48), kind=2)], data=bytes(64)), "rows of 48 elements, not a multiple"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lying_header_is_refused_quickly_and_in_little_memory(tmp_path, case):
    data, message = LIES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            read_header(path)
        assert str(path) in caught.value.where
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # bytes; the reader takes a chunk of 1 MiB at a time
    finally:
        tracemalloc.stop()


def test_an_unknown_type_is_refused_with_its_tensor(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(handmade(entries=[entry(kind=4711)], data=bytes(64)))
    with pytest.raises(UnsupportedModel, match="tensor 't' has the type number 4711"):
        read_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read_alike(tmp_path, version):
    path = tmp_path / "model.gguf"
    keys = [
        array("string", 2, text("a") + text("")),
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("half") + struct.pack("<Id", 12, 0.5),
    ]
    entries = [entry("b", (2, 32), 2, 64), entry("a", (4,))]
    path.write_bytes(handmade(keys, entries, bytes(200), version))
    header = read_header(path)
    assert header.version == version
    assert header.metadata == {"k": ["a", ""], "general.alignment": 64, "half": 0.5}
    a, b = header.tensors["a"], header.tensors["b"]
    assert (a.shape, a.nbytes, b.shape, b.nbytes, b.dtype) == ((4,), 16, (2, 32), 36, "Q4_0")
    assert b.offset == a.offset + 64
    assert a.offset % 64 == 0


def test_a_header_that_never_ends_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(handmade([array("u8", 200_000_000)]))
    with open(path, "r+b") as file:
        file.truncate(300_000_000)  # sparse
    with pytest.raises(CheckpointError, match="a header of more than 100000000 bytes"):
        read_header(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "model.gguf"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        GgufCheckpoint(path)


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path):
    checkpoint = opened(tmp_path)
    with open(checkpoint.path, "r+b") as file:
        file.truncate(4096)
    with pytest.raises(CheckpointError, match="ends too early"):
        checkpoint.rows("model.layers.0.mlp.down_proj.weight", 0, 256)


def test_a_row_costs_the_memory_of_a_row(tmp_path):
    tensors = layer() | {"output.weight": np.zeros((VOCAB * 512, HIDDEN), np.float16)}
    checkpoint = opened(tmp_path, tensors)
    tracemalloc.start()
    try:
        checkpoint.rows("lm_head.weight", 9000, 9010)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # bytes; 10 rows are 5,120, the tensor is 8.4 million
    finally:
        tracemalloc.stop()


# --- fuzzing ------------------------------------------------------------------------------------------------------


TOKENIZERS = {
    "gpt2": {"pre": "smollm", "tokens": ["a", "b", "ab", "<s>"], "token_type": [1, 1, 1, 3], "merges": ["a b"]},
    "llama": {"tokens": ["<unk>", "a", "ab", "<s>"], "token_type": [2, 1, 1, 3], "scores": [0.0, -1.0, -2.0, 0.0]},
}


def _small_model(factory, kind="gpt2", made={}):  # noqa: B006  one file for all examples
    if kind not in made:
        tensors = weights(
            0,
            **{
                "token_embd.weight": (4, 8),
                "blk.0.attn_q.weight": (8, 8),
                "blk.0.ffn_up.weight": (4, 8),
            },
        )
        tensors["blk.0.ffn_down.weight"] = (blocks(Type.Q4_0, 2, 32, 0), Type.Q4_0)
        keys = {f".tokenizer.ggml.{k}": v for k, v in TOKENIZERS[kind].items()}
        keys |= {".tokenizer.ggml.model": kind, ".tokenizer.ggml.bos_token_id": 3, ".tokenizer.ggml.add_bos_token": True}
        path = write(factory.mktemp("fuzz") / "model.gguf", tensors, embedding_length=8, **keys)
        made[kind] = path.read_bytes()
    return made[kind]


def use_all(path, data):
    """Open, read every tensor, make the tokenizer: it works, or it ends in an error for the user."""
    path.write_bytes(data)
    try:
        checkpoint = GgufCheckpoint(path)
        for name, tensor in checkpoint.tensors.items():
            assert checkpoint.rows(name, 0, tensor.shape[0]).shape == tensor.shape
        checkpoint.side_files()
    except PortingError as error:
        return error
    return None


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_files_that_are_fuzzed_are_good(tmp_path_factory, tmp_path, kind):
    assert use_all(tmp_path / "m.gguf", _small_model(tmp_path_factory, kind)) is None


ODD = [np.array([1, 2]), np.array([], np.float32), np.array([0.5]), ["x", "y"], "x", "", -1, 2**63, 0, 0.5, np.nan, True, None]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_metadata_value_of_another_type_ends_in_an_error_for_the_user_or_in_a_model(tmp_path_factory, tmp_path, kind):
    path = tmp_path / "model.gguf"
    path.write_bytes(_small_model(tmp_path_factory, kind))
    header = read_header(path)
    extra = [f"llama.{k}" for k in (*ONLY_WHEN, "rope.scaling.type", "rope.scaling.factor", "rope.freq_base", "vocab_size")]
    outside = ["general.type", "split.count", "general.quantization_version", "tokenizer.chat_template"]
    refused = 0
    for key in [*header.metadata, *extra, *outside]:
        for value in ODD:
            metadata = {k: v for k, v in {**header.metadata, key: value}.items() if v is not None}
            try:
                hf_config(replace(header, metadata=metadata), path)
                side_files(metadata, path)
            except PortingError:
                refused += 1
    assert refused > 300


@given(data=st.data())
@settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_file_is_refused(tmp_path_factory, tmp_path, data):
    good = _small_model(tmp_path_factory)
    error = use_all(tmp_path / "m.gguf", good[: data.draw(st.integers(0, len(good) - 33), label="bytes kept")])
    assert isinstance(error, CheckpointError)


@given(
    kind=st.sampled_from(list(TOKENIZERS)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4),
)
@example(kind="gpt2", changes=[(4, 1)])
@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_end_in_an_error_for_the_user_or_in_a_model(tmp_path_factory, tmp_path, kind, changes):
    good = bytearray(_small_model(tmp_path_factory, kind))
    for place, change in changes:
        good[place % len(good)] ^= change
    use_all(tmp_path / "m.gguf", bytes(good))
