"""What `session.run` adds to onnxruntime on the same graph with the same settings.

    python benchmarks/session_overhead.py [--repeats 5]

Raw and ours alternate in small blocks within one run, so that a busy machine slows both; each number is the median over the
blocks of a repeat, and the bar is held against the median over the repeats. Exit code 1 when a bar is missed.
Bars: 10 microseconds more on a tiny graph; a ratio of 1.02 at about one millisecond of work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime

from porting.backends.onnx_program import program_from_onnx
from porting.session import open_session

TINY_BAR_US = 10.0
RATIO_BAR = 1.02
TINY = '<ir_version: 10, opset_import: ["": 21]> g (float[N] x, float[N] y) => (float[N] z) { z = Add(x, y) }'
WORK = '<ir_version: 10, opset_import: ["": 21]> g (float[N,K] x, float[K,K] y) => (float[N,K] z) { z = MatMul(x, y) }'


def median_seconds(first: Callable[[], object], second: Callable[[], object], runs: int, blocks: int) -> tuple[float, float]:
    """Median seconds per call of two functions, measured in alternating blocks of `runs` calls."""
    samples: tuple[list[float], list[float]] = ([], [])
    for block in range(blocks + 2):
        order = ((0, first), (1, second)) if block % 2 else ((1, second), (0, first))
        for which, call in order:
            start = time.perf_counter()
            for _ in range(runs):
                call()
            if block >= 2:  # the first blocks warm up
                samples[which].append((time.perf_counter() - start) / runs)
    return statistics.median(samples[0]), statistics.median(samples[1])


def pair(text: str, feeds: dict[str, np.ndarray]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same graph and thread settings as a plain onnxruntime session and as ours."""
    model = onnx.parser.parse_model(text).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    raw = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ours = open_session(program_from_onnx(model), "cpu,threads=1")
    np.testing.assert_array_equal(raw.run(["z"], feeds)[0], ours.run(feeds)["z"])
    return lambda: raw.run(["z"], feeds), lambda: ours.run(feeds)


def main() -> int:
    """Print both numbers with their bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    small = np.ones(4, np.float32)
    tiny = pair(TINY, {"x": small, "y": small})
    work = pair(WORK, {"x": np.ones((320, 512), np.float32), "y": np.ones((512, 512), np.float32)})
    extras, ratios = [], []
    for _ in range(repeats):
        raw, ours = median_seconds(*tiny, runs=200, blocks=40)
        extras.append((ours - raw) * 1e6)
        raw_work, ours_work = median_seconds(*work, runs=10, blocks=60)
        ratios.append(ours_work / raw_work)
        print(
            f"tiny: raw {raw * 1e6:6.1f} us, ours {ours * 1e6:6.1f} us, +{extras[-1]:.1f} us   "
            f"work: raw {raw_work * 1e3:.3f} ms, ours {ours_work * 1e3:.3f} ms, x{ratios[-1]:.4f}"
        )
    extra, ratio = statistics.median(extras), statistics.median(ratios)
    held = extra <= TINY_BAR_US, ratio <= RATIO_BAR
    print(f"{'PASS' if held[0] else 'FAIL'} tiny graph: +{extra:.1f} us (bar {TINY_BAR_US:.0f} us)")
    print(f"{'PASS' if held[1] else 'FAIL'} about 1 ms of work: x{ratio:.4f} (bar x{RATIO_BAR})")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
