"""Tiny seeded models for tests: written by transformers' own save_pretrained, run by transformers in float32 on the CPU.

Weights are drawn so large that logits are about 8 in size: a wrong head, window or frequency then shows a thousand times above
the rounding of float32, and no test passes because everything is near zero.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from porting.types import Graph, Program, State, StoredTensor, TensorSpec

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # large enough to show when it is wrong
}
# What each architecture needs beside SIZES to show what is its own.
OWN: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 7},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 16},
}
# Two float32 computations of logits of size 8 that sum in another order differ by 1e-5 or so (measured: at most 4.1e-5 over all
# cases here); the smallest mistake that the tests make on purpose moves them by more than 1e-3.
BOUND = 1e-4
SHOWS = 1e-3


class Tiny:
    """A tiny checkpoint and the torch model that it holds.

    folder: config.json and model.safetensors, as transformers saved them
    model:  the torch module, float32, eval
    """

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder = folder
        self.model = model

    def config(self) -> dict[str, Any]:
        """config.json as it is on disk."""
        return json.loads((self.folder / "config.json").read_text())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace config.json; the torch model stays as it is."""
        (self.folder / "config.json").write_text(json.dumps(config))

    def logits(self, ids: np.ndarray, chunks: Sequence[int] | None = None) -> np.ndarray:
        """transformers' logits of all positions.

        ids:     (batch, length) int64
        chunks:  lengths of consecutive runs over one cache; None for a single run without one
        returns: (batch, length, vocab) float32
        """
        import torch

        self._forget()
        with torch.no_grad():
            if chunks is None:
                return self.model(torch.from_numpy(ids), use_cache=False).logits.numpy()
            cache, parts, done = None, [], 0
            for size in chunks:
                out = self.model(torch.from_numpy(ids[:, done : done + size]), past_key_values=cache, use_cache=True)
                cache, done = out.past_key_values, done + size
                parts.append(out.logits.numpy())
        assert done == ids.shape[1], "chunks should cover the ids"
        return np.concatenate(parts, axis=1)

    def _forget(self) -> None:
        """Undo what upstream's dynamic rope remembers of longer sequences that it saw before."""
        rotary = self.model.model.rotary_emb
        rotary.inv_freq = rotary.original_inv_freq.clone()
        rotary.max_seq_len_cached = rotary.original_max_seq_len


def scratch() -> Path:
    """A fresh folder for what a test module keeps in a cache; removed when Python ends."""
    folder = TemporaryDirectory(prefix="porting-tiny-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def make(folder: Path, architecture: str, **changes: Any) -> Tiny:
    """A checkpoint of `architecture` in `folder`; `changes` are keys of upstream's config."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of odd rope factors, which are meant here
    torch.set_num_threads(1)  # a second thread costs more than it brings at this size
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**{**SIZES, **OWN[architecture], **changes})).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(20)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if "norm" in name else 0.3 * noise
    model.save_pretrained(folder)
    return Tiny(folder, model)


def token_ids(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """(batch, length) int64, all of the vocabulary."""
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length))


def run_chunks(session: Any, ids: np.ndarray, chunks: Sequence[int], state: State | None = None) -> np.ndarray:
    """Logits of all positions from a `porting.session.Session`, in consecutive runs over one state."""
    state = state or session.new_state(batch=len(ids))
    parts, done = [], 0
    for size in chunks:
        parts.append(session.run({"input_ids": ids[:, done : done + size]}, state)["logits"])
        done += size
    assert done == ids.shape[1], "chunks should cover the ids"
    return np.concatenate(parts, axis=1)


def program_of(graph: Graph) -> Program:
    """A graph with its weights inside, for backends."""
    import onnx_ir as ir

    def spec(value: ir.Value) -> TensorSpec:
        dims = tuple(d if isinstance(d, int) else d.value for d in value.shape or ())
        return TensorSpec(str(value.name), value.dtype.numpy().name, dims)  # type: ignore[union-attr]

    body = graph.model.graph
    inputs, outputs = tuple(map(spec, body.inputs)), tuple(map(spec, body.outputs))
    return Program(serialised(graph), inputs, outputs, graph.state, graph.defaults)


def serialised(graph: Graph) -> bytes:
    """The ONNX file of a graph, weights included, the same bytes for the same graph."""
    import onnx_ir as ir

    return ir.to_proto(graph.model).SerializeToString(deterministic=True)


class MemoryCheckpoint:
    """A `porting.types.Checkpoint` of arrays; a shape instead of an array stands for a tensor that nobody may read."""

    format = "memory"
    path = Path("memory")
    files: Sequence[Path] = ()

    def __init__(self, config: dict[str, Any], tensors: Mapping[str, np.ndarray | tuple[int, ...]], dtype: str = "F32") -> None:
        self.config = config
        self.arrays = tensors
        self.tensors = {}
        for name, tensor in tensors.items():
            shape = tensor if isinstance(tensor, tuple) else tensor.shape
            self.tensors[name] = StoredTensor(name, dtype, shape, self.path, 0, 0, plain=False)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self.arrays[name]
        assert not isinstance(array, tuple), f"{name} has only a shape"
        return array[start:stop] if array.ndim else array

    def side_files(self) -> Mapping[str, bytes]:
        return {}


def memory_checkpoint(tiny: Tiny) -> MemoryCheckpoint:
    """The same checkpoint without files, so that a test can change it."""
    from safetensors.numpy import load_file

    return MemoryCheckpoint(tiny.config(), load_file(tiny.folder / "model.safetensors"))
