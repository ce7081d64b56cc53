"""Which model a config describes, whatever container it came in: the facts that decide the maths, in one normal form.

A GGUF file and a Hugging Face folder of one model have different config texts: defaults are spelled out or not, numbers are 10000 or
10000.0, switched-off features are named or left out. A golden that was recorded from one must judge a port of the other, and refuse a
port of anything else. Whether the head is tied and which layers have biases is not in here: those are weights, and the numbers show them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from porting.errors import InputError

# Spelled out by one container and left to the weights by the other: GGUF has no such keys but tensors.
_SEEN_IN_THE_WEIGHTS = frozenset(("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias"))
_OF_THE_WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_OF_THE_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_LENGTH = "max_position_embeddings"  # changes the maths only where a rope scaling looks at it
_DEFAULT_THETA = 10000.0  # transformers 5.23, configuration of every family here; GGUF's specification too


def model_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a config, in a form that two containers of one model share. An unknown key is a fact, as it stands."""
    from porting.converters.config import IGNORED, ONLY_WHEN

    facts = {
        key: _number(value)
        for key, value in config.items()
        if key not in IGNORED
        and key not in _SEEN_IN_THE_WEIGHTS
        and key not in (*_OF_THE_WINDOW, *_OF_THE_ROPE, _LENGTH)
        and value not in (None, False)
        and not (key in ONLY_WHEN and value in ONLY_WHEN[key])
    }
    heads, hidden = facts.get("num_attention_heads"), facts.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        facts.setdefault("num_key_value_heads", heads)
        facts.setdefault("head_dim", hidden // heads)
    facts.setdefault("hidden_act", "silu")
    return {**facts, **_window(config), "rope": _rope(config)}


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the facts as canonical JSON."""
    text = json.dumps(model_facts(config), sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def graph_hash(config: Mapping[str, Any]) -> str:
    """sha256 of what a model that came as a graph takes and gives: the numbers show the rest."""
    text = json.dumps({key: config[key] for key in ("inputs", "outputs")}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_same_facts(port: Mapping[str, Any], reference: Mapping[str, Any], where: str) -> None:
    """Refuse a reference whose config describes another model than the port's. raises: InputError naming what differs"""
    ours, theirs = model_facts(port), model_facts(reference)
    differing = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    if differing:
        shown = "; ".join(f"{k} is {ours.get(k)!r} in the port and {theirs.get(k)!r} in the reference" for k in differing[:5])
        raise InputError(
            f"the reference is another model: {shown}", where=where, next="validate against the port's own source or golden"
        )


def window_of(config: Mapping[str, Any]) -> int | None:
    """Positions that a sliding window lets a layer see; None where no window is in use."""
    window = _window(config).get("sliding_window")
    return window if isinstance(window, int) and window > 0 else None


def dynamic_from(config: Mapping[str, Any]) -> int | None:
    """The length from which on a dynamic rope scaling changes the frequencies; None for another scaling."""
    length = config.get(_LENGTH)
    return length if _rope(config)["kind"] == "dynamic" and isinstance(length, int) else None


def _number(value: Any) -> Any:
    """10000.0 as 10000: JSON writers differ."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _window(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of sliding windows, none where none is in use."""
    kinds = config.get("layer_types")
    kinds = kinds if isinstance(kinds, list) else []
    slides = "sliding_attention" in kinds
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False or (kinds and not slides):
        return {}
    facts = {"sliding_window": config["sliding_window"]}
    if slides:
        return {**facts, "layer_types": kinds} if "full_attention" in kinds else facts
    first = config.get("max_window_layers") if config.get("use_sliding_window") else None
    return {**facts, "max_window_layers": first} if first else facts


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling. Divisors per frequency are numbers in a GGUF file and a rule ("llama3") in a folder: only their kind is compared,
    and so are yarn's fine points, whose defaults one container spells out. The logits show the rest."""
    given = config.get("rope_parameters") or config.get("rope_scaling")
    scaling = given if isinstance(given, Mapping) else {}
    theta = scaling.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    facts: dict[str, Any] = {"theta": _number(theta), "kind": "llama3" if kind == "freq_factors" else kind}
    if kind in ("linear", "dynamic", "yarn"):
        facts["factor"] = _number(scaling.get("factor"))
    if kind in ("dynamic", "yarn"):
        facts["length"] = scaling.get("original_max_position_embeddings") or config.get(_LENGTH)
    return facts
