"""Reading an upstream config.json into an architecture's Config: every key is used, known to be harmless, or refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from reprlib import repr as short  # a hostile value does not become a page of message
from typing import Any, TypeVar

from porting.errors import CheckpointError, UnsupportedModel

C = TypeVar("C")

# Above every size, count and length of a model; kernels hold such numbers in 32 bits.
TOO_LARGE = 2**31

# Keys that any config.json of a decoder may carry and that have no effect on the maths of inference.
IGNORED = {
    "architectures": "chose this file",
    "model_type": "chose this file",
    "auto_map": "names remote code, which is never run",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it came from",
    "_attn_implementation_autoset": "runtime only",
    "attn_implementation": "runtime only",
    "torch_dtype": "the files say their own dtypes",
    "dtype": "the files say their own dtypes",
    "use_cache": "runtime only",
    "initializer_range": "training only",
    "attention_dropout": "training only",
    "hidden_dropout": "training only",
    "resid_pdrop": "training only",
    "embd_pdrop": "training only",
    "pretraining_tp": "how the training was split; the product is the same",
    "bos_token_id": "tokens, kept for generation",
    "eos_token_id": "tokens, kept for generation",
    "pad_token_id": "tokens, kept for generation",
    "unsloth_fixed": "a mark of a fine-tuning tool",
    "unsloth_version": "a mark of a fine-tuning tool",
    "transformers.js_config": "for another runtime",
    "return_dict": "runtime only",
    "output_attentions": "runtime only",
    "output_hidden_states": "runtime only",
    "id2label": "labels of a head that is not there",
    "label2id": "labels of a head that is not there",
    "task_specific_params": "generation only",
    "keys_to_ignore_at_inference": "runtime only",
    "max_length": "generation only",
    "problem_type": "of classification heads",
    "finetuning_task": "where it came from",
    "tokenizer_class": "which tokenizer, not which maths",
    "prefix": "generation only",
    "sep_token_id": "tokens",
    "decoder_start_token_id": "tokens",
    "forced_bos_token_id": "generation only",
    "forced_eos_token_id": "generation only",
    "suppress_tokens": "generation only",
    "begin_suppress_tokens": "generation only",
    "bad_words_ids": "generation only",
    "min_length": "generation only",
    "early_stopping": "generation only",
    "num_beams": "generation only",
    "num_beam_groups": "generation only",
    "num_return_sequences": "generation only",
    "diversity_penalty": "generation only",
    "length_penalty": "generation only",
    "repetition_penalty": "generation only",
    "encoder_no_repeat_ngram_size": "generation only",
    "no_repeat_ngram_size": "generation only",
    "remove_invalid_values": "generation only",
    "exponential_decay_length_penalty": "generation only",
    "output_scores": "generation only",
    "return_dict_in_generate": "generation only",
    "typical_p": "generation only",
    "do_sample": "generation only",
    "temperature": "generation only",
    "top_k": "generation only",
    "top_p": "generation only",
}

# Keys that change the maths unless they hold one of these values.
ONLY_WHEN: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_decoder": (True, False, None),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "torchscript": (False, None),
    "use_bfloat16": (False, None),
    "tf_legacy_loss": (False, None),
    "tie_encoder_decoder": (False, None),
    "quantization_config": (None,),
    "logit_scale": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "mup_enabled": (None, False),
    "is_llama_config": (None, True),
}


def read_config(kind: type[C], config: Mapping[str, Any], *, ignored: Mapping[str, str], special: tuple[str, ...] = ()) -> C:
    """Fill the dataclass `kind` from config.json.

    kind:    fields carry upstream's key names; a field without a default must be there
    ignored: further harmless keys of this architecture, with the reason
    special: keys that the architecture reads itself
    raises:  UnsupportedModel for an unknown key or a value that changes the maths, CheckpointError for a missing or
             mistyped one
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown, changed = [], []
    for key, value in config.items():
        if key in fields or key in special or key in IGNORED or key in ignored:
            continue
        if key not in ONLY_WHEN:
            unknown.append(f"{key}={short(value)}")
        elif value not in ONLY_WHEN[key]:
            changed.append(f"{key}={short(value)}")
    if unknown or changed:
        raise UnsupportedModel(
            f"config keys that may change the maths and are not covered: {', '.join(changed + unknown)}",
            where=f"config.json, read as {kind.__module__.rpartition('.')[2]}",
            next="remove a key only if you know that it has no effect; otherwise this model needs an architecture file of its own",
        )
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and config.get(n) is None]
    if missing:
        raise CheckpointError(f"config keys are missing: {', '.join(missing)}", where="config.json")
    values = {n: config[n] for n in fields if n in config and (config[n] is not None or fields[n].default is None)}
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        _require_type(name, value, hints[name])
    return kind(**values)


def require_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer of at least `least`. raises: CheckpointError"""
    if type(value) is not int or not least <= value < TOO_LARGE:
        raise CheckpointError(
            f"config key {name!r} should be an integer from {least} up, got {short(value)}", where="config.json"
        )


def require_positive(name: str, value: Any, below: float = TOO_LARGE) -> None:
    """Refuse what is no positive, finite number. raises: CheckpointError"""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"config key {name!r} should be a number, got {short(value)}", where="config.json")
    if not 0 < value < below:  # so is NaN
        raise CheckpointError(
            f"config key {name!r} should be positive and below {below}, got {short(value)}", where="config.json"
        )


def _require_type(name: str, value: Any, hint: Any) -> None:
    """Hold a value against the type of its field; numbers must be positive and sane. raises: CheckpointError"""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    fits = type(value) in allowed or (type(value) is int and float in allowed)  # `type`, for a bool is an int to isinstance
    if not fits:
        expected = " or ".join("null" if t is types.NoneType else t.__name__ for t in allowed)
        raise CheckpointError(f"config key {name!r} should be {expected}, got {short(value)}", where="config.json")
    if type(value) in (int, float):
        require_positive(name, value)
