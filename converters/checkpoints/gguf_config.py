"""GGUF metadata as the keys of a Hugging Face config.json; a key that may change the maths is used or refused.

Source: the GGUF specification (ggml, docs/gguf.md), the key names of gguf 0.19 (constants.Keys), and for defaults llama.cpp's
loader (src/llama-model.cpp). Defaults are llama.cpp's, since a GGUF file means what llama.cpp computes from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import CheckpointError, UnsupportedModel

from .gguf_header import BLOCK_SIZES, Header, Value

# general.architecture -> Hugging Face's class and model_type; "llama" with a sliding window is Mistral
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
ROPE_FREQS = "rope_freqs.weight"  # one divisor per frequency: how llama.cpp stores the scaling of Llama 3

# `{arch}.` keys without an effect on the maths
IGNORED = {
    "rope.scaling.finetuned": "says that the model was trained with its scaling, does not change it",
    "rope.scaling.original_context_length": "used by yarn; no other covered scaling looks at it",
}

# `{arch}.` keys that change the maths unless they hold one of these values
ONLY_WHEN: dict[str, tuple[Any, ...]] = {
    "tensor_data_layout": ("reference", "Meta AI original pth"),  # the second: q and k permuted, as "llama" always has them
    "attention.causal": (True,),
    "attention.scale": (0.0,),  # 0: 1 / sqrt(head_dim)
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.sliding_window": (0,),  # Mistral's is read before this table
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),  # 0: none
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),  # another value: the outputs are embeddings, not logits
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),  # -1: yarn's own, which is 1
    "rope.scaling.alpha": (0.0,),
}

# Keys outside `{arch}.` describe the file, its origin or its tokenizer, except these families
REFUSED_FAMILIES = ("adapter.", "clip.", "diffusion.", "xielu.")


def hf_config(header: Header, path: Path) -> dict[str, Any]:
    """The keys of config.json that the metadata and the tensor names amount to.

    raises: UnsupportedModel for an architecture, file type or key that is not covered, CheckpointError for a missing,
            mistyped or contradictory value
    """
    arch = _architecture(header, path)
    keys = _Keys(header.metadata, arch, path)
    klass, model_type = ARCHITECTURES[arch]
    heads = keys.integer("attention.head_count")
    hidden = keys.integer("embedding_length")
    window = keys.integer("attention.sliding_window", 0) if arch == "llama" else 0
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if window else klass],
        "model_type": "mistral" if window else model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": _head_dim(keys, hidden, heads),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "vocab_size": _vocab_size(keys, header, path),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
    }
    if window:
        config["sliding_window"] = window
    elif arch != "qwen2":  # its class has no such keys: q, k and v always have biases there
        config["attention_bias"] = _any_named(header, ".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_output.bias")
    if arch == "llama" and not window:
        config["mlp_bias"] = _any_named(header, ".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias")
    scaling = _rope_scaling(keys, ROPE_FREQS in header.tensors)
    if scaling:
        config["rope_scaling"] = scaling
    config.update(_token_ids(header.metadata, path))
    keys.require_all_known()
    return config


def _architecture(header: Header, path: Path) -> str:
    """general.architecture, after refusing what is no whole model in one file."""
    metadata = header.metadata
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise CheckpointError(f"{path.name} has no general.architecture", where=str(path), next="use a file that holds a model")
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {_short(arch)} is not covered",
            where=str(path),
            next=f"covered: {', '.join(sorted(ARCHITECTURES))}",
        )
    kind = metadata.get("general.type", "model")
    if not _is_one_of(kind, "model"):
        raise UnsupportedModel(f"{path.name} holds a GGUF of type {_short(kind)}, not a model", where=str(path))
    parts = metadata.get("split.count", 0)
    if not _is_one_of(parts, 0, 1):
        raise UnsupportedModel(
            f"{path.name} is one of {_short(parts)} parts; a model in parts is not covered",
            where=str(path),
            next="join the parts with llama.cpp's `llama-gguf-split --merge`",
        )
    version = metadata.get("general.quantization_version", 2)
    blocks = sorted({t.dtype for t in header.tensors.values() if BLOCK_SIZES[t.dtype][0] > 1})
    if blocks and not _is_one_of(version, 2):
        raise UnsupportedModel(
            f"quantization version {_short(version)} of {', '.join(blocks)} is not covered; version 2 is", where=str(path)
        )
    refused = [key for key in metadata if key.startswith(REFUSED_FAMILIES)]
    if refused:
        raise UnsupportedModel(f"GGUF keys that are not covered: {', '.join(refused)}", where=str(path))
    return arch


class _Keys:
    """The `{arch}.` keys of the metadata, typed; remembers which were read."""

    def __init__(self, metadata: Mapping[str, Value], arch: str, path: Path) -> None:
        self.arch = arch
        self.path = path
        self._values = {k[len(arch) + 1 :]: v for k, v in metadata.items() if k.startswith(f"{arch}.")}
        self._read: set[str] = set()

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {what}", where=str(self.path))

    def get(self, name: str) -> Value | None:
        """A value; one number for an array that repeats it for every layer."""
        self._read.add(name)
        value = self._values.get(name)
        if isinstance(value, np.ndarray):
            if not value.size or (value != value[0]).any():
                raise UnsupportedModel(
                    f"GGUF key {self.arch}.{name} differs from layer to layer: {_short(value)}", where=str(self.path)
                )
            return value[0].item()
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number >= 0; `default` when the key is missing, an error without one."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 <= value < 2**40:
            raise self.error(f"{self.arch}.{name} should be a whole number, got {_short(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; `default` when the key is missing, an error without one.

        A float32 comes as its shortest decimal: 1e-05, which the author wrote, not 9.999999747378752e-06.
        """
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise self.error(f"{self.arch}.{name} should be a number, got {_short(value)}")
        assert isinstance(value, int | float)
        if abs(value) > np.finfo(np.float32).max or float(np.float32(value)) != value:
            return float(value)
        return float(str(np.float32(value)))

    def require_all_known(self) -> None:
        """raises: UnsupportedModel naming every key that was neither read nor is known to be harmless"""
        unknown = []
        for name, value in self._values.items():
            if name in IGNORED or (name in self._read and name not in ONLY_WHEN):
                continue
            if name in ONLY_WHEN and (name in self._read or self.get(name) in ONLY_WHEN[name]):
                continue
            unknown.append(f"{self.arch}.{name}={_short(value)}")
        if unknown:
            raise UnsupportedModel(
                f"GGUF keys that may change the maths and are not covered: {', '.join(unknown)}", where=str(self.path)
            )


def _is_one_of(value: Value | None, *choices: Any) -> bool:
    return not isinstance(value, np.ndarray) and value in choices  # an array compares element by element


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    key = keys.integer("attention.key_length", 0)
    value = keys.integer("attention.value_length", key)
    if not heads or (not key and hidden % heads):
        raise keys.error(f"hidden size {hidden} does not divide into {heads} attention heads")
    dim = key or hidden // heads
    if (value or dim) != dim:
        raise UnsupportedModel(
            f"keys of {dim} and values of {value} elements per head are not covered: they must be equal", where=str(keys.path)
        )
    rotated = keys.integer("rope.dimension_count", dim)
    if rotated != dim:
        raise UnsupportedModel(
            f"GGUF key {keys.arch}.rope.dimension_count={rotated} is not covered: a rotary embedding of part of the "
            f"{dim} elements per head",
            where=str(keys.path),
        )
    return dim


def _vocab_size(keys: _Keys, header: Header, path: Path) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path.name} has no tensor 'token_embd.weight'", where=str(path))
    rows = embedding.shape[0]
    said = keys.integer("vocab_size", rows)
    if said != rows:
        raise keys.error(f"vocab_size is {said}, but token_embd.weight has {rows} rows")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise keys.error(f"the tokenizer has {len(tokens)} tokens, but token_embd.weight has {rows} rows")
    return rows


def _any_named(header: Header, *suffixes: str) -> bool:
    return any(name.endswith(suffixes) for name in header.tensors)


def _rope_scaling(keys: _Keys, has_factors: bool) -> dict[str, Any] | None:
    """rope_scaling of config.json, from `{arch}.rope.scaling.*`, the older `{arch}.rope.scale_linear` and the factors."""
    factor, older = keys.number("rope.scaling.factor", 0.0), keys.number("rope.scale_linear", 0.0)
    factor = factor or older or 1.0  # 0: none
    kind = keys.get("rope.scaling.type")
    if kind is None:  # llama.cpp's default
        kind = "linear"
    # llama.cpp multiplies the two
    attention = keys.number("rope.scaling.attn_factor", 1.0) * keys.number("rope.scaling.yarn_attn_factor", 1.0)
    fast, slow = keys.number("rope.scaling.yarn_beta_fast", 32.0), keys.number("rope.scaling.yarn_beta_slow", 1.0)
    where = str(keys.path)
    if not _is_one_of(kind, "none", "linear", "yarn"):
        raise UnsupportedModel(f"rope scaling {_short(kind)} is not covered", where=where, next="covered: none, linear, yarn")
    scaled = kind != "none" and factor != 1.0
    if has_factors and scaled:
        raise UnsupportedModel(f"rope scaling {kind!r} together with {ROPE_FREQS} is not covered", where=where)
    if kind != "yarn" and attention != 1.0:
        raise UnsupportedModel(f"an attention factor of {attention} with rope scaling {kind!r} is not covered", where=where)
    if has_factors:
        return {"rope_type": "freq_factors"}
    if kind == "linear" and scaled:
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        return None
    if factor < 1.0:
        raise UnsupportedModel(f"yarn with a factor of {factor} is not covered", where=where)
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", keys.integer("context_length")
        ),
        "beta_fast": fast,
        "beta_slow": slow,
    }
    if attention != 1.0:  # llama.cpp: a factor on yarn's own; upstream: in its place
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return scaling


def _token_ids(metadata: Mapping[str, Value], path: Path) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id, where the file names them."""
    ids = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            continue
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{path.name}: tokenizer.ggml.{key}_token_id is {_short(value)}", where=str(path))
        ids[f"{name}_token_id"] = value
    return ids
