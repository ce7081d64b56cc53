"""What it costs to check a model for Ascend, lowering included: SmolLM2-135M-Instruct (538 MB), and a graph of 3,000 nodes.

    python benchmarks/ascend_speed.py [--repeats 5]

Bars: the median is at most 5 s for SmolLM2 and 10 s for the graph, imports included, of CPU time, which is what passes on a machine that does
nothing else: nothing in it waits or runs in parallel; the time that passed here is printed too. And no weight is read that no pass changes: a
check may read 10 MB more than that of a graph of one block, which reads the code of all libraries, and hold 400 MB. Each run is a process of its
own. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SMOLLM2_BAR_S, GRAPH_BAR_S = 5.0, 10.0
READ_BAR_BYTES, PEAK_BAR_BYTES = 10_000_000, 400_000_000
BLOCKS = 250  # of 12 nodes each
TARGET = "Ascend910B3"
CHECK = """
import json, sys, time
start = time.perf_counter()
import porting
verdict = porting.check(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - start
def said(path, name):
    return next(int(line.split()[1]) for line in open(path) if line.startswith(name))
# not ru_maxrss, which starts at what the process that started this one held
print(json.dumps({"seconds": seconds, "cpu": time.process_time(), "read": said("/proc/self/io", "rchar"), "peak": said("/proc/self/status", "VmHWM") * 1024,
                  "portability": verdict.details["portability"], "rewritten": len(verdict.details["passes"])}))
"""


@dataclass(frozen=True)
class Cost:
    """Of one check. read: bytes through read(), code of libraries included; a file that is mapped shows in peak"""

    seconds: float
    cpu: float
    read: int
    peak: int
    portability: str
    rewritten: int


def measure(source: Path) -> Cost:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(source), TARGET], cwd=ROOT, stdout=subprocess.PIPE, check=True, env=os.environ
    )
    return Cost(**json.loads(done.stdout))


def layered_graph(path: Path, blocks: int = BLOCKS, width: int = 16) -> None:
    """Blocks of a transformer's kind, of operators above opset 18 and with traps, each with weights of its own."""
    make = onnx.helper.make_node
    nodes, weights, x = [], [], "x"
    rng = np.random.default_rng(0)
    weights.append(onnx.numpy_helper.from_array(np.array([0, -1, 4, width // 4]), "heads"))
    for b in range(blocks):
        weights += [
            onnx.numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), f"w{b}"),
            onnx.numpy_helper.from_array(np.ones(width, np.float32), f"g{b}"),
        ]
        n = [f"b{b}.{i}" for i in range(12)]
        nodes += [
            make("RMSNormalization", [x, f"g{b}"], [n[0]], name=n[0], axis=-1),
            make("MatMul", [n[0], f"w{b}"], [n[1]], name=n[1]),
            make("Gelu", [n[1]], [n[2]], name=n[2]),
            make("Reshape", [n[2], "heads"], [n[3]], name=n[3]),
            make("Transpose", [n[3]], [n[4]], name=n[4], perm=[0, 2, 1, 3]),
            make("Softmax", [n[4]], [n[5]], name=n[5], axis=-1),
            make("Transpose", [n[5]], [n[6]], name=n[6], perm=[0, 2, 1, 3]),
            make("Shape", [x], [n[7]], name=n[7]),
            make("Reshape", [n[6], n[7]], [n[8]], name=n[8]),
            make("Swish", [n[8]], [n[9]], name=n[9]),
            make("ReduceMax", [n[9]], [n[10]], name=n[10], keepdims=1),
            make("Add", [n[9], x], [n[11]], name=n[11]),
        ]
        nodes.append(make("Sub", [n[11], n[10]], [f"x{b}"], name=f"x{b}"))
        x = f"x{b}"
    nodes.pop()
    nodes.append(make("Sub", [f"b{blocks - 1}.11", f"b{blocks - 1}.10"], ["y"], name="y"))
    infos = [onnx.helper.make_tensor_value_info(name, 1, [1, 8, width]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "layers", infos[:1], infos[1:], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=11), str(path))


def bar(label: str, value: float, limit: float, unit: str) -> bool:
    """Print a number with its bar; whether it holds."""
    print(f"{'PASS' if value <= limit else 'FAIL'} {label}: {value:.2f} {unit} (bar {limit:.0f} {unit})", flush=True)
    return value <= limit


def judged(label: str, costs: Sequence[Cost], seconds: float, least: Cost) -> list[bool]:
    print(f"{label}: {costs[0].portability}, {costs[0].rewritten} passes changed something")
    print(f"     {label}, median of the time that passed: {statistics.median(c.seconds for c in costs):.2f} s")
    return [
        costs[0].portability != "blocked",
        bar(f"{label}, median of {len(costs)}", statistics.median(c.cpu for c in costs), seconds, "s"),
        bar(f"{label}, read", (max(c.read for c in costs) - least.read) / 1e6, READ_BAR_BYTES / 1e6, "MB"),
        bar(f"{label}, peak RSS", max(c.peak for c in costs) / 1e6, PEAK_BAR_BYTES / 1e6, "MB"),
    ]


def main() -> int:
    """Print every number with its bar."""
    from tests.models import smollm2_folder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        layered_graph(path, 1)
        least = measure(path)
        held = judged("SmolLM2", [measure(smollm2_folder()) for _ in range(repeats)], SMOLLM2_BAR_S, least)
        layered_graph(path)
        held += judged(f"{12 * BLOCKS}-node graph", [measure(path) for _ in range(repeats)], GRAPH_BAR_S, least)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
