"""How long one run of a port takes that is no language model; beside another port, or beside the untouched .onnx file in plain onnxruntime.

Both sides run in turn in short blocks of one process, because a shared machine drifts: the ratio of a round is of two neighbouring blocks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from porting.devices import parse_device
from porting.errors import InputError, UsageError, nearest
from porting.feed_values import feeds_for
from porting.feeds import find_cases, roles_of
from porting.host import available_cores
from porting.port_folder import Port
from porting.progress import silent
from porting.session import Session
from porting.types import Program, StateSpec

ROUNDS = (15, 200)  # at least, at most; in between as many as fit into SECONDS
SECONDS = 4.0
BLOCK_SECONDS = 0.005  # of runs in a row: long beside the clock, short enough that a neighbour leaves most blocks alone
PAUSE_SECONDS = 0.003  # between blocks: the other side's threads spin on for a while


def summary(name: str, precision: str, load_seconds: float, samples_ms: Sequence[float]) -> dict[str, Any]:
    """One side of the report."""
    ordered = sorted(samples_ms)
    p90 = ordered[int(0.9 * (len(ordered) - 1) + 0.5)]
    return {
        "name": name,
        "precision": precision,
        "load_seconds": round(load_seconds, 3),
        "run_ms": {"p50": round(statistics.median(ordered), 4), "p90": round(p90, 4)},
        "runs_per_second": round(1e3 / statistics.median(ordered), 1),
    }


def in_turn(calls: Sequence[Callable[[], object]], rounds: int | None = None, progress: Any = silent) -> list[list[float]]:
    """Milliseconds per call of each function, one number per round; blocks of each in turn, the order turning round by round.

    rounds: None takes as many as fit into SECONDS, within ROUNDS
    """
    once = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        once.append(time.perf_counter() - start)
    runs = max(1, int(BLOCK_SECONDS / max(min(once), 1e-7)))
    if rounds is None:
        a_round = sum(PAUSE_SECONDS + (runs + 1) * seconds for seconds in once)
        rounds = min(max(int(SECONDS / a_round), ROUNDS[0]), ROUNDS[1])
    samples: list[list[float]] = [[] for _ in calls]
    with progress("bench", rounds + 1, unit="rounds") as advance:
        for round_ in range(rounds + 1):
            for i in range(len(calls))[:: 1 if round_ % 2 else -1]:
                time.sleep(PAUSE_SECONDS)
                calls[i]()  # brings its weights back into the cache
                start = time.perf_counter()
                for _ in range(runs):
                    calls[i]()
                if round_ > 0:  # the first warms up
                    samples[i].append((time.perf_counter() - start) / runs * 1e3)
            advance(1)
    return samples


def inputs_of(session: Session, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Generated inputs that the session takes.

    sizes:  dimension -> size, for those that the user chose; the others are found by trying
    raises: UsageError for a dimension that no input has, InputError when nothing that was tried runs, or the sizes do not
    """
    known = roles_of(session.inputs)
    for name in sizes:
        if name not in known:
            raise UsageError(f"no input has a dimension {name!r}", where="--size", next=nearest(name, list(known)))
    recipe = next(iter(find_cases(session.inputs, session.run, ranges=session.program.ranges, wanted=1).recipes.values()))
    if not sizes:
        return recipe.feeds()
    feeds = feeds_for(session.inputs, {**recipe.sizes, **sizes}, recipe.seed, recipe.ranges, recipe.choices)
    session.run(feeds)
    return feeds


def measured_program(program: Program) -> Program:
    """The program as its runs are measured: with buffers that runs append to, whose runs would last longer each time, as inputs of a fixed size."""
    grows = any(pair.appended is not None for pair in program.state.pairs)
    return replace(program, state=StateSpec()) if grows else program


def stepper(session: Session, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """One run on `feeds`; of a recurrent model the next step of one stream."""
    if not session.program.state.pairs:
        return lambda: session.run(feeds)
    rows = session.rows(feeds)
    state = session.new_state(batch=rows)
    return lambda: session.run(feeds, state)


class Untouched:
    """An .onnx file in plain onnxruntime: all optimisations, its own defaults, as many threads as the port has."""

    def __init__(self, path: Path, device: str, program: Program) -> None:
        """
        device:  what the port runs on; its threads are taken
        program: the port's; its state pairs are fed back here too
        raises:  UsageError for a device that is not the CPU; InputError, RuntimeFailed
        """
        from porting.backends.onnxruntime import import_runtime, translated

        wanted = parse_device(device)
        if wanted.name != "cpu":
            raise UsageError(
                f"an .onnx file is measured on the CPU, not on {device}", next="compare with a port, or use --device cpu"
            )
        if not path.is_file():
            raise InputError(f"no such file: {path}", where="--compare")
        self.name = path.name
        runtime = import_runtime("cpu")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = int(wanted.options.get("threads", available_cores()))
        start = time.perf_counter()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise translated(error, path.name, "prepare") from error
        self.load_seconds = time.perf_counter() - start
        self._pairs = program.state.pairs
        hidden = {pair.output for pair in self._pairs}
        self._outputs = [*(o.name for o in program.outputs if o.name not in hidden), *(pair.output for pair in self._pairs)]
        self._translated = translated

    def stepper(self, feeds: Mapping[str, Any], state: Mapping[str, Any]) -> Callable[[], object]:
        """As the function of that name; state: what it starts from. raises: InputError when the file does not take the feeds"""
        given = {**feeds, **state}
        count = len(self._outputs) - len(self._pairs)

        def step() -> None:
            results = self._session.run(self._outputs, given)
            for pair, array in zip(self._pairs, results[count:], strict=True):
                given[pair.input] = array

        try:
            step()
        except Exception as error:
            raise InputError(
                f"{self.name} does not take the inputs of the port: {self._translated(error, self.name, 'run')}",
                where="--compare",
            ) from error
        return step


def bench_graph(
    opened: Sequence[tuple[Port, Session, float]],
    untouched: Path | None,
    device: str,
    sizes: Mapping[str, int],
    rounds: int | None,
    progress: Any = silent,
) -> dict[str, Any]:
    """The parts of a report that differ between a graph and a language model: policy, inputs, port, compare, run_speed_ratio.

    opened:    the port, and the one to compare with: port, session, seconds it took to load
    untouched: an .onnx file to compare with
    """
    session = opened[0][1]
    feeds = inputs_of(session, sizes)
    calls = [stepper(s, feeds) for _, s, _ in opened]
    sides = [(p.path.name, p.precision, load) for p, _, load in opened]
    if untouched is not None:
        peer = Untouched(untouched, device, session.program)
        state = session.new_state(batch=session.rows(feeds)) if session.program.state.pairs else None
        calls.append(peer.stepper(feeds, session.read_state(state) if state else {}))
        sides.append((peer.name, "source", peer.load_seconds))
    samples = in_turn(calls, rounds, progress)
    measured = [summary(*side, values) for side, values in zip(sides, samples, strict=True)]
    report: dict[str, Any] = {
        "policy": f"{len(samples[0])} rounds after one to warm up, medians; blocks of {BLOCK_SECONDS * 1e3:.0f} ms in turn, generated inputs",
        "inputs": {name: [len(v)] if isinstance(v, list) else list(v.shape) for name, v in feeds.items()},
        "port": measured[0],
    }
    if len(measured) > 1:
        report["compare"] = measured[1]
        report["run_speed_ratio"] = ratio([b / a for a, b in zip(*samples, strict=True)])
    return report


def ratio(values: Sequence[float]) -> dict[str, float]:
    """Median and spread of ratios, one per round."""
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}
