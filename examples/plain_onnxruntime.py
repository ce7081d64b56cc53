"""Run a port with onnxruntime alone: no import of porting, numpy and (for text) tokenizers beside it.

    python examples/plain_onnxruntime.py PORT "The capital of France is" [--max-new-tokens 16]

A port is an ONNX file, its weights beside it, and port.json, which says how the graph is to be called. For a language model:

    input_ids        (batch, sequence) int64: the new tokens
    past_length      (batch,) int64: how many positions of the cache are filled
    logits_to_keep   () int64: logits of that many last positions; 0 for all
    cache.N.key      (batch, heads, capacity, head size) float32, and cache.N.value: buffers made by the caller
    -> logits        (batch, kept, vocabulary) float32
    -> cache.N.key.new ...: the same buffers with the new positions written at past_length

`state.pairs` in port.json names the input and output of each buffer. Bound to one buffer, the cache is written in place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime

DTYPES = {"float32": np.float32, "float16": np.float16}


class Decoder:
    """The graph of a port with a cache of fixed capacity, one row."""

    def __init__(self, port: Path, capacity: int) -> None:
        self.manifest = json.loads((port / "port.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(str(port / "model.onnx"), providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.filled = 0
        self.capacity = capacity
        sizes = {"batch": 1, "capacity": capacity}
        specs = {spec["name"]: spec for spec in self.manifest["inputs"]}
        self.binding.bind_output("logits")  # first: get_outputs() keeps the order of binding, not that of the graph
        self.buffers = []
        for pair in self.manifest["state"]["pairs"]:
            spec = specs[pair["input"]]
            shape = [sizes[size] if isinstance(size, str) else size for size in spec["shape"]]
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, DTYPES[spec["dtype"]]))
            self.binding.bind_ortvalue_input(pair["input"], buffer)
            self.binding.bind_ortvalue_output(pair["output"], buffer)  # in place
            self.buffers.append(buffer)

    def next_logits(self, ids: list[int]) -> np.ndarray:
        """Feed tokens, return the logits after the last one, (vocabulary,)."""
        if self.filled + len(ids) > self.capacity:
            raise ValueError(f"{self.filled} + {len(ids)} positions do not fit into a cache of {self.capacity}")
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "past_length": np.array([self.filled], np.int64),
            "logits_to_keep": np.array(1, np.int64),
        }
        for name, array in feeds.items():  # onnxruntime reads these arrays during the run: they have to live until then
            self.binding.bind_cpu_input(name, array)
        self.binding.bind_output("logits")  # anew, since its size changes with every run
        self.session.run_with_iobinding(self.binding)
        self.filled += len(ids)
        return self.binding.get_outputs()[0].numpy()[0, -1]


def greedy(port: Path, ids: list[int], max_new_tokens: int) -> list[int]:
    """The most likely continuation, token by token, up to the end token of the model's config."""
    decoder = Decoder(port, capacity=len(ids) + max_new_tokens)
    end = decoder.manifest["config"].get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    made: list[int] = []
    feed = ids
    while len(made) < max_new_tokens:
        made.append(int(decoder.next_logits(feed).argmax()))
        if made[-1] in ends:
            break
        feed = made[-1:]
    return made


def main() -> None:
    """Tokenize, decode, print."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    wanted = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(wanted.port / "tokenizer.json"))
    ids = tokenizer.encode(wanted.prompt).ids
    print(tokenizer.decode(ids + greedy(wanted.port, ids, wanted.max_new_tokens)))


if __name__ == "__main__":
    main()
