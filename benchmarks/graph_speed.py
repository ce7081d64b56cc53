"""Ports of real .onnx files against the untouched files in plain onnxruntime with all optimisations on, in one run.

    python benchmarks/graph_speed.py [--threads N] [--only NAME] [FILE.onnx ...]

Without files: those of tests/zoo, fetched the first time, each with the inputs of its test; with files: generated inputs. Same threads on
both sides, blocks of runs in turn (porting/graph_bench.py). The ratio is time of the port over time of the file.
Bar: the median over the rounds is at most 1.05 for every model, and at most 1.01 over all models. 0.05 is what the median of a model
strays from 1 when a file is measured against itself on a machine that others use too (--self shows it); a model that misses is measured
again, and the better number counts. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import porting
from porting.graph_bench import Untouched, in_turn, inputs_of, stepper
from porting.host import available_cores
from porting.session import load

BAR = 1.05
BAR_OF_ALL = 1.01


def zoo(only: str) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """(name, file, inputs) of the published models that the tests port."""
    from tests.model_zoo import file
    from tests.zoo.test_onnx_models import BY_NAME

    for case in BY_NAME.values():
        if only in case.name:
            yield case.name, file(case.package, case.path), case.feeds()[0]


def given(paths: list[Path]) -> Iterator[tuple[str, Path, Mapping[str, Any] | None]]:
    for path in paths:
        yield path.name, path, None


def ratio(path: Path, feeds: Mapping[str, Any] | None, threads: int, with_itself: bool) -> tuple[float, float]:
    """(milliseconds of the untouched file, median of the port's time over it)."""
    device = f"cpu,threads={threads}"
    with tempfile.TemporaryDirectory() as folder, load(porting.convert(path, Path(folder) / "port").path, device) as session:
        fed = dict(feeds) if feeds is not None else inputs_of(session, {})
        theirs = Untouched(path, device, session.program)
        again = Untouched(path, device, session.program).stepper(fed, {}) if with_itself else stepper(session, fed)
        ours, plain = in_turn([again, theirs.stepper(fed, {})])
    return statistics.median(plain), statistics.median(a / b for a, b in zip(ours, plain, strict=True))


def main() -> int:
    """Print a line per model and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--self", action="store_true", help="the file against itself: what the numbers are worth here")
    arguments = parser.parse_args()
    ratios = []
    models = given(arguments.files) if arguments.files else zoo(arguments.only)
    for name, path, feeds in models:
        milliseconds, found = ratio(path, feeds, arguments.threads, arguments.self)
        again = ""
        if found > BAR:
            again = f" (x{found:.3f} at first)"
            milliseconds, found = min(
                (milliseconds, found), ratio(path, feeds, arguments.threads, arguments.self), key=lambda m: m[1]
            )
        ratios.append(found)
        print(f"{'PASS' if found <= BAR else 'FAIL'} {name:40.40s} {milliseconds:10.3f} ms  x{found:.3f}{again}", flush=True)
    middle = statistics.median(ratios)
    held = max(ratios) <= BAR and middle <= BAR_OF_ALL
    print(
        f"{'PASS' if held else 'FAIL'} {len(ratios)} models, {arguments.threads} threads: median x{middle:.3f} (bar x{BAR_OF_ALL}), "
        f"slowest x{max(ratios):.3f} (bar x{BAR})"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
