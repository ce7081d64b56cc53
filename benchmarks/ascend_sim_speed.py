"""What the simulated Ascend costs beside the CPU, and what route `om` adds to the C API that it calls.

    python benchmarks/ascend_sim_speed.py [--repeats 3]

Bars, all ratios of one run: `ascend-sim` in fp32 takes at most 1.5 times as long as the device `cpu` on graphs of 10 ms and more; a session of
route `om` at most 5 % longer than the bare calls (copy in, execute, copy out, wait) on the same model, stream and pinned memory; the
libraries are built within 60 s. Both sides run in turn in short blocks. Exit code 1 when a bar is missed. All of it is of this machine's CPU, and says
nothing of an NPU.
"""

from __future__ import annotations

import argparse
import ctypes as C
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from porting.backends.ascend_sim_models import compiled
from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine
from porting.backends.onnx_program import program_from_onnx
from porting.graph_bench import in_turn
from porting.session import open_session

SIM_BAR, OM_BAR, BUILD_BAR_S = 1.5, 1.05, 60.0
OM = "PORTING_BENCHMARK_OM"
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


def perceptron(rows: int, width: int, layers: int) -> bytes:
    """float32 [rows, width] -> the same, through `layers` products with a ReLU behind each."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weights.append(numpy_helper.from_array(rng.normal(0, (2 / width) ** 0.5, (width, width)).astype(np.float32), f"w{i}"))
        nodes += [helper.make_node("MatMul", [last, f"w{i}"], [f"p{i}"]), helper.make_node("Relu", [f"p{i}"], [f"r{i}"])]
        last = f"r{i}"
    return _model(nodes, weights, [rows, width], last)


def convolutions(channels: int, size: int, layers: int) -> bytes:
    """float32 [1, channels, size, size] -> the same, through 3x3 convolutions with a ReLU behind each."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        kernel = rng.normal(0, (2 / (9 * channels)) ** 0.5, (channels, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"p{i}"], pads=[1] * 4),
            helper.make_node("Relu", [f"p{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    return _model(nodes, weights, [1, channels, size, size], last)


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[int], output: str) -> bytes:
    io = [[helper.make_tensor_value_info(name, 1, shape)] for name in ("x", output)]
    graph = helper.make_graph(nodes, "g", *io, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def shape_of(model: bytes) -> tuple[int, ...]:
    (spec,) = program_from_onnx(model).inputs
    return tuple(int(size) for size in spec.shape if size is not None)


def beside_the_cpu(model: bytes, repeats: int) -> tuple[float, float]:
    """Milliseconds of a run on the CPU, and the median ratio of the simulator to it."""
    x = np.random.default_rng(1).normal(size=shape_of(model)).astype(np.float32)
    with (
        open_session(program_from_onnx(model), "cpu") as cpu,
        open_session(program_from_onnx(model), "ascend-sim,precision=origin") as sim,
    ):
        (expected,), (got,) = cpu.run({"x": x}).values(), sim.run({"x": x}).values()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        return _ratio(lambda: cpu.run({"x": x}), lambda: sim.run({"x": x}), repeats)


def _ratio(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    took, ratios = [], []
    for _ in range(repeats):
        a, b = in_turn([first, second])
        took.append(statistics.median(a))
        ratios.append(statistics.median(b) / statistics.median(a))
    return statistics.median(took), statistics.median(ratios)


# --- route om beside the bare calls, in a process that has the simulated CANN -----------------------------------------


def bare(om: Path, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that runs the model by the C API alone: what any program has to call."""
    acl = C.CDLL("libascendcl.so")
    for name in ("aclmdlCreateDesc", "aclmdlCreateDataset", "aclCreateDataBuffer"):
        getattr(acl, name).restype = C.c_void_p

    def ok(code: int) -> None:
        assert code == 0, code

    model, stream, context = C.c_uint32(), C.c_void_p(), C.c_void_p()
    ok(acl.aclrtCreateContext(C.byref(context), 0))
    ok(acl.aclmdlLoadFromFile(str(om).encode(), C.byref(model)))
    ok(acl.aclrtCreateStream(C.byref(stream)))
    sets, places, pinned = [], [], []
    for _ in ("input", "output"):
        device, host = C.c_void_p(), C.c_void_p()
        ok(acl.aclrtMalloc(C.byref(device), C.c_size_t(x.nbytes), 0))
        ok(acl.aclrtMallocHost(C.byref(host), C.c_size_t(x.nbytes)))
        data = C.c_void_p(acl.aclmdlCreateDataset())
        ok(acl.aclmdlAddDatasetBuffer(data, C.c_void_p(acl.aclCreateDataBuffer(device, C.c_size_t(x.nbytes)))))
        sets.append(data)
        places.append(device)
        pinned.append((host, np.frombuffer((C.c_char * x.nbytes).from_address(host.value or 0), np.float32).reshape(x.shape)))
    size = C.c_size_t(x.nbytes)

    def run() -> np.ndarray:
        ok(acl.aclrtSetCurrentContext(context))  # the session in turn with it has its own
        pinned[0][1][...] = x
        ok(acl.aclrtMemcpyAsync(places[0], size, pinned[0][0], size, HOST_TO_DEVICE, stream))
        ok(acl.aclmdlExecuteAsync(model, sets[0], sets[1], stream))
        ok(acl.aclrtMemcpyAsync(pinned[1][0], size, places[1], size, DEVICE_TO_HOST, stream))
        ok(acl.aclrtSynchronizeStream(stream))
        return pinned[1][1].copy()

    return run


def inside(model: bytes, repeats: int) -> int:
    """In the child: prints milliseconds of the bare calls, and the ratio of a session to them."""
    om = Path(os.environ[OM])
    x = np.random.default_rng(1).normal(size=shape_of(model)).astype(np.float32)
    with open_session(program_from_onnx(model), f"ascend,om={om}") as session:
        raw = bare(om, x)
        np.testing.assert_array_equal(raw(), next(iter(session.run({"x": x}).values())))
        print(json.dumps(_ratio(raw, lambda: session.run({"x": x}), repeats)))
    return 0


def beside_bare_calls(name: str, repeats: int) -> tuple[float, float]:
    machine = Machine()
    environment = simulated_environment(machine)
    om = compiled(program_from_onnx(MODELS[name]()), None, machine, environment, "origin", None)
    words = [sys.executable, __file__, "--inside", name, "--repeats", str(repeats)]
    done = subprocess.run(words, env={**os.environ, **environment, OM: str(om)}, stdout=subprocess.PIPE, check=True)
    took, ratio = json.loads(done.stdout.splitlines()[-1])
    return took, ratio


def build_seconds() -> float:
    """Of the libraries, into an empty cache."""
    code = "from porting.backends.cann_simulator.build import library_folder; library_folder()"
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": cache}, check=True)
        return time.perf_counter() - start


MODELS: dict[str, Callable[[], bytes]] = {
    "products": lambda: perceptron(256, 1024, 6),
    "convolutions": lambda: convolutions(64, 56, 14),
}


def main() -> int:
    """Print every ratio with its bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inside", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(MODELS[arguments.inside](), arguments.repeats)
    held = []
    seconds = build_seconds()
    held.append(seconds <= BUILD_BAR_S)
    print(f"{'PASS' if held[-1] else 'FAIL'} libraries built in {seconds:.1f} s (bar {BUILD_BAR_S:.0f} s)")
    for name, make in MODELS.items():
        took, ratio = beside_the_cpu(make(), arguments.repeats)
        held.append(ratio <= SIM_BAR and took >= 10)
        print(
            f"{'PASS' if held[-1] else 'FAIL'} {name}: cpu {took:.1f} ms, ascend-sim x{ratio:.3f} (bar x{SIM_BAR}, at 10 ms and more)"
        )
    for name in MODELS:
        took, ratio = beside_bare_calls(name, arguments.repeats)
        held.append(ratio <= OM_BAR)
        print(f"{'PASS' if held[-1] else 'FAIL'} {name}: bare calls {took:.1f} ms, route om x{ratio:.4f} (bar x{OM_BAR})")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
