"""A sentence-transformers folder: an encoder's folder, and how its last hidden state becomes one vector per text.

    modules.json                              the steps, in order, each with a folder of its own
    config.json, model.safetensors, ...       step 0, the encoder; at the top or in 0_Transformer/
    1_Pooling/config.json, 2_Dense/, ...      the steps behind it

Source: sentence-transformers 5, SentenceTransformer.py and models/{Transformer,Pooling,Dense,Normalize,Dropout}.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from porting.errors import CheckpointError, UnsupportedModel
from porting.types import StoredTensor

from .files import read_whole
from .folder import CONFIG, MAX_JSON_BYTES, FolderCheckpoint
from .strict_json import parse_list, parse_object

MODULES = "modules.json"
SENTENCE = "sentence_transformers"  # the key of the config that holds what this file read
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = tuple(  # the first that is there, as upstream
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
POOLINGS = {  # upstream's flag -> (what `pooling_mode` calls it, ours)
    "pooling_mode_cls_token": ("cls", "cls"),
    "pooling_mode_max_tokens": ("max", "max"),
    "pooling_mode_mean_tokens": ("mean", "mean"),
    "pooling_mode_mean_sqrt_len_tokens": ("mean_sqrt_len_tokens", "mean_sqrt_len"),
    "pooling_mode_weightedmean_tokens": ("weightedmean", None),
    "pooling_mode_lasttoken": ("lasttoken", None),
}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
MODEL_OF = re.compile(
    r"(Bert|Roberta|XLMRoberta)(Model|For\w+)"
)  # upstream loads the bare encoder, whatever head the config names
BY_TYPE = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
# Settings that leave the embedding as it is with these values only.
ONLY_WHEN: dict[str, tuple[Any, ...]] = {
    "model_args": ({}, None),
    "tokenizer_args": ({}, None),
    "config_args": ({}, None),
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings", "sentence_embedding", None),
    "module_input_name": ("sentence_embedding", None),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "include_prompt": (True,),  # without the prompt's tokens: a mask that the graph does not get
    "similarity_fn_name": ("cosine", "dot", "euclidean", "manhattan", None),  # what to do with two embeddings
    "model_type": ("SentenceTransformer",),
}


class SentenceTransformersCheckpoint:
    """A `porting.types.Checkpoint`: the encoder's, with the steps behind it in its config and their tensors beside its own.

    config: the encoder's, with the bare encoder as its architecture, and under "sentence_transformers":
            pooling ("cls", "mean", "max", "mean_sqrt_len"), steps (in order, {"kind": "dense" or "normalize", "name", ...}),
            max_seq_length (int or None), do_lower_case (bool), prompt (str that goes before every text)
    tensors of a dense step are called after its folder: "2_Dense.linear.weight"
    raises: CheckpointError for what is damaged or contradictory, UnsupportedModel for a step or setting that is not covered
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        modules = _modules(self.path / MODULES)
        self._encoder = FolderCheckpoint(self.path / modules[0][1])
        self._dense: dict[str, FolderCheckpoint] = {}
        self.format = self._encoder.format
        settings, settings_files = _settings(self.path, self._encoder.path)
        pooling, pooling_file = _pooling(self.path / modules[1][1], self._encoder.config)
        steps = [step for kind, place in modules[2:] if (step := self._step(kind, place)) is not None]
        sentence = {"pooling": pooling, "steps": steps, **settings}
        self.config = {**self._encoder.config, "architectures": [_architecture(self._encoder)], SENTENCE: sentence}
        dense_files = [file for checkpoint in self._dense.values() for file in checkpoint.files]
        self.files: Sequence[Path] = (
            self.path / MODULES,
            *settings_files,
            pooling_file,
            *dense_files,
            *self._encoder.files,
        )
        self.tensors: Mapping[str, StoredTensor] = {
            **self._encoder.tensors,
            **{
                f"{place}.{name}": replace(tensor, name=f"{place}.{name}")
                for place, checkpoint in self._dense.items()
                for name, tensor in checkpoint.tensors.items()
            },
        }

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """As `FolderCheckpoint.rows`."""
        place, _, inner = name.partition(".")
        if place in self._dense:
            return self._dense[place].rows(inner, start, stop)
        return self._encoder.rows(name, start, stop)

    def side_files(self) -> Mapping[str, bytes]:
        """The encoder's: tokenizer.json and what lies beside it."""
        return self._encoder.side_files()

    def close(self) -> None:
        """Close the weight files. Safe to call twice; not beside a running `rows`."""
        for checkpoint in (self._encoder, *self._dense.values()):
            checkpoint.close()

    def __enter__(self) -> SentenceTransformersCheckpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _step(self, kind: str, place: str) -> dict[str, Any] | None:
        """A module behind the pooling, as `encoder_parts.sentence_embedding` reads it; None for one that only trains."""
        if kind == "Dropout":
            return None
        if kind == "Normalize":
            return {"kind": "normalize", "name": place}
        if kind != "Dense":
            raise UnsupportedModel(
                f"the sentence-transformers module {kind!r} is not covered here", where=str(self.path / MODULES), next=_COVERED
            )
        checkpoint = FolderCheckpoint(self.path / place)
        where = str(checkpoint.path / CONFIG)
        config = _only_known(checkpoint.config, ("in_features", "out_features", "bias", "activation_function"), where)
        activation = config.get("activation_function")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UnsupportedModel(
                f"the activation {short(activation)} of a dense module is not covered", where=where, next=", ".join(ACTIVATIONS)
            )
        sizes = (config.get("in_features"), config.get("out_features"))
        if not all(type(n) is int and 0 < n < 2**31 for n in sizes) or type(config.get("bias", True)) is not bool:
            raise CheckpointError(f"a dense module needs in_features, out_features and bias, got {short(config)}", where=where)
        self._dense[place] = checkpoint
        return {
            "kind": "dense",
            "name": place,
            "out_features": sizes[1],
            "bias": config.get("bias", True),
            "activation": ACTIVATIONS[activation],
        }


_COVERED = "covered: Transformer, then Pooling, then Dense, Normalize and Dropout in any order"


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of every module, in order. raises: CheckpointError, UnsupportedModel"""
    listed = parse_list(read_whole(path, MAX_JSON_BYTES), path)
    found: list[tuple[str, str]] = []
    for entry in listed:
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str):
            raise CheckpointError(f"{MODULES} should list objects with type and path, got {short(entry)}", where=str(path))
        if re.search(r"[/\\.\0]", place) or (found and not place):
            raise CheckpointError(f"{MODULES} names {place[:200]!r}: expected a folder directly beside it", where=str(path))
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise UnsupportedModel(f"{MODULES} names {kind[:200]!r}, which is code of its own", where=str(path), next=_COVERED)
        found.append((name, place))
    if [kind for kind, _ in found[:2]] != ["Transformer", "Pooling"]:
        shown = ", ".join(kind for kind, _ in found[:8]) or "nothing"
        raise UnsupportedModel(f"{MODULES} lists {shown}", where=str(path), next=_COVERED)
    if len({place for _, place in found}) != len(found):
        raise CheckpointError(f"{MODULES} names a folder twice", where=str(path))
    return found


def _settings(folder: Path, encoder: Path) -> tuple[dict[str, Any], list[Path]]:
    """(max_seq_length, do_lower_case and prompt; the files they are from). raises: CheckpointError, UnsupportedModel"""
    files = []
    found: dict[str, Any] = {"max_seq_length": None, "do_lower_case": False, "prompt": ""}
    for file in [encoder / name for name in TRANSFORMER_SETTINGS if os.path.lexists(encoder / name)][:1]:
        files.append(file)
        given = _only_known(_object(file), ("max_seq_length", "do_lower_case"), str(file))
        length, lower = given.get("max_seq_length"), given.get("do_lower_case", False)
        if not (length is None or (type(length) is int and 0 < length < 2**31)) or type(lower) is not bool:
            raise CheckpointError(f"expected a length and a bool, got {short(given)}", where=str(file))
        found |= {"max_seq_length": length, "do_lower_case": lower}
    file = folder / SETTINGS
    if os.path.lexists(file):
        files.append(file)
        given = _only_known(_object(file), ("__version__", "prompts", "default_prompt_name"), str(file))
        prompts, name = given.get("prompts") or {}, given.get("default_prompt_name")
        known = isinstance(prompts, dict) and isinstance(name, str) and isinstance(prompts.get(name), str)
        if name is not None and not known:
            raise CheckpointError(f"default_prompt_name is {short(name)}, which is none of the prompts", where=str(file))
        found["prompt"] = prompts[name] if name is not None else ""
    return found, files


def _pooling(folder: Path, encoder: Mapping[str, Any]) -> tuple[str, Path]:
    """(which one, the file that says so). raises: CheckpointError, UnsupportedModel"""
    file = folder / CONFIG
    sizes = ("word_embedding_dimension", "embedding_dimension")
    config = _only_known(_object(file), (*POOLINGS, "pooling_mode", *sizes), str(file))
    for key in sizes:
        if config.get(key) not in (None, encoder.get("hidden_size")):
            raise CheckpointError(
                f"{key} is {short(config[key])}, the encoder's hidden_size {short(encoder.get('hidden_size'))}", where=str(file)
            )
    if config.get("pooling_mode") is not None:  # one name, which goes before the flags
        wanted = [config["pooling_mode"]]
    else:
        wanted = [name for flag, (name, _) in POOLINGS.items() if config.get(flag, name == "mean")]
    covered = {name: ours for name, ours in POOLINGS.values() if ours}
    if len(wanted) != 1 or not isinstance(wanted[0], str) or wanted[0] not in covered:
        raise UnsupportedModel(
            f"pooling by {' and '.join(map(str, wanted))[:200] or 'nothing'} is not covered",
            where=str(file),
            next=f"covered: one of {', '.join(covered)}",
        )
    return covered[wanted[0]], file


def _architecture(encoder: FolderCheckpoint) -> str:
    """The bare encoder's name. raises: UnsupportedModel"""
    listed = encoder.config.get("architectures") or [BY_TYPE.get(str(encoder.config.get("model_type")), "")]
    match = MODEL_OF.fullmatch(str(listed[0])) if isinstance(listed, list) and len(listed) == 1 else None
    if match is None:
        raise UnsupportedModel(
            f"a sentence-transformers folder around {short(listed)} is not covered",
            where=str(encoder.path / CONFIG),
            next="covered: BERT, RoBERTa and XLM-RoBERTa",
        )
    return f"{match[1]}Model"


def _object(file: Path) -> dict[str, Any]:
    return parse_object(read_whole(file, MAX_JSON_BYTES), file)


def _only_known(config: dict[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    """The config, once every key is in `known` or harmless with its value. raises: UnsupportedModel"""
    unknown = [f"{k}={short(v)}" for k, v in config.items() if k not in known and (k not in ONLY_WHEN or v not in ONLY_WHEN[k])]
    if unknown:
        raise UnsupportedModel(
            f"settings that may change the embedding and are not covered: {', '.join(unknown)}"[:2000],
            where=where,
            next="remove a key only if you know that it has no effect",
        )
    return config
