"""What it costs to bring a file of 3,000 nodes to a port: reading, checking, canonical form, lowering, writing.

    python benchmarks/graph_work.py [--nodes 3000] [--repeats 3]

The file is made here as old exporters make them: opset 13, IR 7, no node names, a Constant node for every number, shapes computed at run
time, normalisation in pieces, 65 MB of weights. Each conversion is a process of its own, interpreter and imports included. Bars, held
against the best repeat: 10 seconds; no weight copied, that is at most 1 % of the weights' bytes written. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
SECONDS_BAR = 10.0
WRITTEN_BAR = 0.01
WIDTH = 256
CONVERT = "import sys, porting; porting.convert(sys.argv[1], sys.argv[2])"


class _Writer:
    """Nodes in order, each value named by its number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        return self.node("Constant", value=numpy_helper.from_array(value))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array = self.rng.standard_normal(shape).astype(np.float32) / WIDTH**0.5
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def block(self, x: str) -> str:
        """Normalise in pieces, multiply, reshape by a shape that is computed, add. 23 nodes. x: (batch, step, WIDTH)"""
        mean = self.node("ReduceMean", x, axes=[-1], keepdims=1)
        centred = self.node("Sub", x, mean)
        squared = self.node("Pow", centred, self.constant(np.array(2, np.float32)))
        variance = self.node("ReduceMean", squared, axes=[-1], keepdims=1)
        scale = self.node("Sqrt", self.node("Add", variance, self.constant(np.array(1e-5, np.float32))))
        normal = self.node("Mul", self.node("Div", centred, scale), self.weight(WIDTH))
        made = self.node("Add", self.node("MatMul", normal, self.weight(WIDTH, WIDTH)), self.weight(WIDTH))
        shape = self.node("Shape", x)
        batch = self.node("Gather", shape, self.constant(np.array(0)), axis=0)
        rows = self.node("Unsqueeze", batch, self.constant(np.array([0])))
        target = self.node("Concat", rows, self.constant(np.array([-1, WIDTH])), axis=0)
        reshaped = self.node("Reshape", self.node("Relu", made), target)
        return self.node("Add", x, reshaped)


def write_model(path: Path, nodes: int) -> int:
    """A file of at least `nodes` nodes; returns the bytes of its weights."""
    writer = _Writer()
    x = "x"
    while len(writer.nodes) < nodes:
        x = writer.block(x)
    shape = ["batch", "step", WIDTH]
    graph = helper.make_graph(
        writer.nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, path)
    print(f"{len(writer.nodes)} nodes, {len(writer.weights)} weights, {path.stat().st_size / 1e6:.0f} MB")
    return sum(len(w.raw_data) for w in writer.weights)


def convert(source: Path, port: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of one conversion in a child process, which is waited for by its own id."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", CONVERT, str(source), str(port)], cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the conversion ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> int:
    """Print each repeat and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    best, share = float("inf"), 1.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        weights = write_model(source, arguments.nodes)
        for i in range(arguments.repeats):
            port = Path(folder) / f"{i}.port"
            seconds, peak = convert(source, port)
            best = min(best, seconds)
            placed = json.loads((port / "port.json").read_text())["weights"]
            share = placed["written_bytes"] / weights
            print(
                f"{seconds:6.2f} s, peak {peak / 1e6:.0f} MB, linked {placed['linked_bytes'] / 1e6:.1f} MB, "
                f"written {placed['written_bytes'] / 1e6:.3f} MB"
            )
    held = best <= SECONDS_BAR, share <= WRITTEN_BAR
    print(f"{'PASS' if held[0] else 'FAIL'} {best:.2f} s (bar {SECONDS_BAR:.0f} s)")
    print(f"{'PASS' if held[1] else 'FAIL'} {share:.2%} of the weights written (bar {WRITTEN_BAR:.0%})")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
