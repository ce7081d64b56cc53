"""A GGUF file as a checkpoint: Hugging Face's tensor names and row order, blocks decoded a few rows at a time.

Source: the GGUF specification and the tensor names of gguf 0.19 (constants.TENSOR_NAMES); blocks are decoded by that package.
The parts: gguf_header.py (the file), gguf_config.py (metadata -> config.json), gguf_tokenizer.py (metadata -> tokenizer.json).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import CheckpointError, DeviceUnavailable, InputError
from porting.types import StoredTensor
from porting.weights import NUMPY_DTYPES

from .files import OpenFiles
from .gguf_config import hf_config
from .gguf_header import BLOCK_SIZES, read_header
from .gguf_tokenizer import side_files

DECODE_ELEMENTS = 1 << 18  # at a time: what stays in a core's cache; twice as fast as gguf's own groups of 16 rows

# GGUF's name -> Hugging Face's; under `blk.{i}.` and `model.layers.{i}.`, each with `.weight` or `.bias`
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(\w+)\.(weight|bias)", re.ASCII)
PERMUTED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)")


class GgufCheckpoint:
    """A GGUF model of a covered architecture (`porting.types.Checkpoint`).

    tensors: by Hugging Face's name; a tensor without one keeps GGUF's name, so that accounting reports it as left over
    raises:  CheckpointError for a damaged or contradictory file, UnsupportedModel for an architecture, key, tensor type or
             tokenizer that is not covered, DeviceUnavailable when blocks need the gguf package and it is not installed
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.files = (self.path,)
        header = read_header(self.path)
        self.config: dict[str, Any] = hf_config(header, self.path)
        self._metadata = header.metadata
        named = [replace(t, name=hf_name(name)) for name, t in header.tensors.items()]
        tensors = {t.name: t for t in named}
        if len(tensors) != len(named):
            raise CheckpointError(f"{self.path.name} gives a tensor under GGUF's and Hugging Face's name", where=str(self.path))
        # "llama" stores q and k with the two halves of a head interleaved, which is how its rotary embedding pairs them
        self._permuted = _permuted_heads(tensors, self.config) if header.metadata["general.architecture"] == "llama" else {}
        for name in self._permuted:
            tensors[name] = replace(tensors[name], plain=False)
        self.tensors: Mapping[str, StoredTensor] = tensors
        blocks = next((t for t in named if BLOCK_SIZES[t.dtype][0] > 1), None)
        if blocks is not None:
            _require_gguf(blocks)
        self._files = OpenFiles()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along axis 0 in Hugging Face's order; F32, F16 and BF16 as stored, blocks as float32.

        raises: InputError for rows that the tensor does not have, CheckpointError when the file got shorter or unreadable
        """
        tensor = self.tensors[name]
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise InputError(f"rows [{start}, {stop}) of {name!r}, which has {tensor.shape[0]}", where=str(self.path))
        head_dim = self._permuted.get(name)
        if head_dim is None or start == stop:
            return self._stored_rows(tensor, start, stop)
        source = stored_order(np.arange(start, stop), head_dim)
        first = int(source.min())  # never more than one head before `start`, nor after `stop`
        return self._stored_rows(tensor, first, int(source.max()) + 1)[source - first]

    def side_files(self) -> Mapping[str, bytes]:
        """tokenizer.json, tokenizer_config.json and generation_config.json, made from the metadata; {} without a tokenizer.

        raises: UnsupportedModel for a tokenizer that is not covered, CheckpointError for one that contradicts itself
        """
        return self._side_files

    @cached_property
    def _side_files(self) -> Mapping[str, bytes]:
        return side_files(self._metadata, self.path)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._files.close()

    def _stored_rows(self, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in the file's own order, decoded."""
        per_block, block_bytes = BLOCK_SIZES[tensor.dtype]
        width = math.prod(tensor.shape[1:])
        begin, end = start * width, stop * width  # elements; in a 1-D tensor of blocks a row may start inside a block
        first, last = begin // per_block, -(-end // per_block)
        raw = self._files.read(tensor.file, tensor.offset + first * block_bytes, (last - first) * block_bytes)
        values = _decoded(raw, tensor.dtype)
        return values[begin - first * per_block : end - first * per_block].reshape(stop - start, *tensor.shape[1:])


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name that is not known stays as it is."""
    part, _, kind = name.rpartition(".")
    if part in TOP_NAMES and kind in ("weight", "bias"):
        return f"{TOP_NAMES[part]}.{kind}"
    found = LAYER_NAME.fullmatch(name)
    if found and found.group(2) in LAYER_NAMES:
        return f"model.layers.{found.group(1)}.{LAYER_NAMES[found.group(2)]}.{found.group(3)}"
    return name


def stored_order(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Where llama.cpp's conversion of "llama" put rows of q or k.

    rows:    (n,) int64, Hugging Face's row numbers: in each head all first elements of the rotated pairs, then all second ones
    returns: (n,) int64, row numbers in the file: pair after pair
    source:  llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute
    """
    head, within = np.divmod(rows, head_dim)
    second, pair = np.divmod(within, head_dim // 2)
    return head * head_dim + 2 * pair + second


def _permuted_heads(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Name -> elements per head of every q and k projection.

    raises: CheckpointError when the rows are not heads * head_dim
    """
    head_dim = config["head_dim"]
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    permuted = {}
    for name, tensor in tensors.items():
        found = PERMUTED.fullmatch(name)
        if not found:
            continue
        expected = heads[found.group(1)] * head_dim
        if tensor.shape[0] != expected or head_dim % 2:
            raise CheckpointError(
                f"{name} has {tensor.shape[0]} rows, expected {expected}: "
                f"{heads[found.group(1)]} heads of {head_dim} elements (an even number)",
                where=str(tensor.file),
            )
        permuted[name] = head_dim
    return permuted


def _require_gguf(tensor: StoredTensor) -> None:
    try:
        import gguf.quants  # noqa: F401
    except ImportError as error:
        raise DeviceUnavailable(
            f"tensor {tensor.name!r} is stored as {tensor.dtype}, and the package that decodes it is not installed",
            where=str(tensor.file),
            next='pip install "porting[gguf]"',
        ) from error


def _decoded(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes of whole blocks -> (elements,) of the stored dtype for plain ones, else float32."""
    if dtype in NUMPY_DTYPES:
        return raw.view(NUMPY_DTYPES[dtype])
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    per_block, block_bytes = BLOCK_SIZES[dtype]
    values = np.empty(raw.size // block_bytes * per_block, np.float32)
    step = DECODE_ELEMENTS // per_block
    with np.errstate(all="ignore"):  # a damaged scale may be inf or NaN: found by the check of values, not by a warning here
        for first in range(0, raw.size // block_bytes, step):
            part = raw[first * block_bytes : (first + step) * block_bytes].reshape(1, -1)
            values[first * per_block : (first + step) * per_block] = dequantize(part, GGMLQuantizationType[dtype])[0]
    return values
