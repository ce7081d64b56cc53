"""Does a long context slow decoding down? One decode step of SmolLM2 at 2,000 tokens of context against one at 50, in one run.

Bar: fp32 at most 1.4x. int8 and int4 are shown beside it without a bar. Steps alternate between both contexts, medians; each state is rewound after
its step, so that the context stays what it is called.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for tests.models, the cache of downloaded models

import porting
from porting.session import Session
from porting.types import State
from tests.models import smollm2_gguf

BAR = 1.4
SHORT, LONG = 50, 2000


def filled(session: Session, length: int, rng: np.random.Generator) -> State:
    """A state that holds `length` random tokens."""
    state = session.new_state(length + 1)
    for start in range(0, length, 128):
        ids = rng.integers(0, 49152, (1, min(128, length - start)), dtype=np.int64)
        session.run({"input_ids": ids, "logits_to_keep": np.array(1)}, state)
    return state


def step_ms(session: Session, state: State, token: int) -> float:
    """One decode step, the state rewound after it."""
    start = time.perf_counter()
    session.run({"input_ids": np.array([[token]]), "logits_to_keep": np.array(1)}, state)
    elapsed = time.perf_counter() - start
    state.length = state.length - 1
    return elapsed * 1e3


def measure(port: Path, steps: int, threads: int) -> tuple[float, float]:
    """Median milliseconds of a step at SHORT and at LONG tokens of context."""
    rng = np.random.default_rng(0)
    times: dict[int, list[float]] = {SHORT: [], LONG: []}
    with porting.load(port, f"cpu,threads={threads}") as session:
        states = {length: filled(session, length, rng) for length in times}
        for i in range(steps + 3):
            for length, state in states.items():
                elapsed = step_ms(session, state, int(rng.integers(0, 49152)))
                if i >= 3:  # warm-up
                    times[length].append(elapsed)
    return statistics.median(times[SHORT]), statistics.median(times[LONG])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "int4"])
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions:
            port = Path(folder) / precision
            porting.convert(smollm2_gguf(), port, "cpu", precision)
            short, long = measure(port, arguments.steps, arguments.threads)
            ratio = long / short
            verdict = ("PASS" if ratio <= BAR else "FAIL") if precision == "fp32" else "-"
            failed |= verdict == "FAIL"
            print(
                f"{precision}: {short:.1f} ms at {SHORT}, {long:.1f} ms at {LONG}: {ratio:.2f}x (bar for fp32 {BAR}x) {verdict}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
