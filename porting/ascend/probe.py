"""porting.probe: what an NPU, its compiler and its runtime do with one small graph per rule of the base and per trap.

    rules, traps -> graphs compiled (a graph and its options once) -> run, one at a time -> facts

Every graph is compiled and run in processes of their own: one that hangs or dies is noted, and the others go on. Never run on hardware.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import porting
from porting.ascend.facts_file import CONFIRMED, NOT_PROBED, REFUTED, RULE, TRAP, UNDECIDED, Fact, Facts
from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_place import Bench, Compiled, Place, Seen, compile_in, place_of, require_device, run_in
from porting.ascend.probe_plain import RELU
from porting.ascend.probe_rules import RuleTest, fact_of, shown, test_of
from porting.ascend.probe_traps import TRAPS, Trap
from porting.ascend.rules import rules
from porting.ascend.soc import Soc, find_cann, find_soc
from porting.devices import parse_device
from porting.errors import DeviceUnavailable, UsageError, nearest
from porting.progress import silent
from porting.verdict import printable

MOST_LOSSES = 8  # processes that hang, die or lose the device, and then nothing more is asked
ONE_IS_LOST = 2  # of them one after the other without a run between
OTHER_SOCS = ("Ascend310P3", "Ascend910B3")
NOTHING_DOCUMENTED = "no document says how it goes"


def probe(device: str, *, only: Collection[str] = (), progress: Any = silent) -> Facts:
    """Ask an NPU for what the rule base says.

    device: "ascend:0", or "ascend-sim" with the machine's options
    only:   ids of rules and traps; () for all
    returns: facts, not complete where the device was lost on the way
    raises: UsageError (no NPU, an id that is none), DeviceUnavailable (no CANN, no device, no atc), RuntimeFailed (not even the simplest graph runs)
    """
    known = {rule.id for rule in rules()} | {trap.id for trap in TRAPS}
    for name in only:
        if name not in known:
            raise UsageError(
                f"no rule and no trap is called {printable(name, 60)!r}", where="--only", next=nearest(name, tuple(known))
            )
    place = place_of(parse_device(device))
    with tempfile.TemporaryDirectory(prefix="porting-probe-") as folder, Bench(place) as bench:
        told = bench.describe()
        soc = _soc(str(told["soc"]))
        session = _Session(bench, soc, _release(str(told["cann"])), Path(folder))
        session.require_usable()
        wanted = _Wanted.of(soc, session.cann, only)
        results, stopped = session.results(wanted, progress)
    return _facts(place, told, session, results, stopped)


def _facts(place: Place, told: Mapping[str, Any], session: _Session, results: tuple[Fact, ...], stopped: str) -> Facts:
    return Facts(
        level="simulated" if told["simulated"] else place.level,
        device=place.name,
        soc=session.soc.name,
        cann=session.cann or "",
        found=str(told["cann"]),
        driver=str(told["driver"]),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=f"porting {porting.__version__}",
        complete=not stopped,
        stopped=stopped,
        results=results,
    )


def _soc(name: str) -> Soc:
    try:
        return find_soc(name)
    except UsageError as error:
        raise DeviceUnavailable(
            f"the device calls itself {printable(name, 60)!r}, which is no known SoC", where="probe"
        ) from error


def _release(found: str) -> str | None:
    try:
        return find_cann(found or None)
    except UsageError:
        return None


@dataclass(frozen=True)
class _Wanted:
    """What is asked of a chip, and what is not, with the reasons."""

    tests: tuple[RuleTest, ...]
    traps: tuple[Trap, ...]
    skipped: tuple[Fact, ...]

    @property
    def asked(self) -> list[RuleTest | Trap]:
        return [*self.tests, *self.traps]

    @classmethod
    def of(cls, soc: Soc, cann: str | None, only: Collection[str]) -> _Wanted:
        planned = [test_of(rule, soc, cann) for rule in rules() if not only or rule.id in only]
        traps = [trap for trap in TRAPS if not only or trap.id in only]
        skipped = [one for one in planned if isinstance(one, Fact)]
        skipped += [
            Fact(t.id, TRAP, NOT_PROBED, "", why=f"the matrix unit of {soc.name} takes fp16 only")
            for t in traps
            if t.expected(soc) is None
        ]
        asked = tuple(t for t in traps if t.expected(soc) is not None)
        return cls(tuple(one for one in planned if isinstance(one, RuleTest)), asked, tuple(skipped))


@dataclass(frozen=True)
class _Build:
    """A graph with what it is compiled with."""

    graph: ProbeGraph
    options: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...] = ()
    gears: tuple[int, ...] = ()
    soc: str = ""

    @property
    def key(self) -> str:
        said = repr((sorted(self.graph.files().items()), self.options, self.files, self.gears, self.soc))
        return hashlib.sha256(said.encode()).hexdigest()[:24]


class _Gone(Exception):
    """The device, or too much of what asks it. Its text says why."""


@dataclass(eq=False)
class _Session:
    """A chip that is asked. Nothing is compiled or run twice."""

    bench: Bench
    soc: Soc
    cann: str | None
    folder: Path
    compiled: dict[str, Compiled] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    in_a_row: int = 0

    def require_usable(self) -> None:
        """raises: RuntimeFailed, DeviceUnavailable"""
        require_device(self.bench, self.run(_Build(RELU, (("precision_mode_v2", "fp16"),))))

    def results(self, wanted: _Wanted, progress: Any) -> tuple[tuple[Fact, ...], str]:
        """Facts in the order of the base, and why some are missing."""
        found: list[Fact] = []
        builds = [*(b for t in wanted.tests for b in _builds_of(t)), *(self.build_of(t) for t in wanted.traps)]
        stopped = ""
        with progress("probe", len(builds) + len(wanted.asked), unit="graphs") as advance:
            try:
                self.compile_all(builds, advance)
                for asked in wanted.asked:
                    found.append(self.fact(asked))
                    advance(1)
            except _Gone as gone:
                stopped = str(gone)
        missing = {asked.rule.id if isinstance(asked, RuleTest) else asked.id for asked in wanted.asked}
        order = {name: place for place, name in enumerate((*(r.id for r in rules()), *(t.id for t in TRAPS)))}
        if stopped:
            stopped += f"; {len(missing - {fact.id for fact in found})} of {len(missing)} were not asked"
        return tuple(sorted((*found, *wanted.skipped), key=lambda fact: order[fact.id])), stopped

    def fact(self, asked: RuleTest | Trap) -> Fact:
        """raises: _Gone"""
        if isinstance(asked, Trap):
            return self.fact_of_trap(asked)
        hit, control = (self.run(build) for build in _builds_of(asked))
        return fact_of(asked, hit, control, self.soc, self.cann, self.bench.place.unmodelled(asked.rule, self.soc))

    def fact_of_trap(self, trap: Trap) -> Fact:
        """raises: _Gone"""
        seen = self.run(self.build_of(trap), trap)
        went, expected = trap.behaviour(seen), trap.expected(self.soc) or ""
        why = self.bench.place.unmodelled(trap.id, self.soc)
        if why:
            why = f"{why}; measured: {went or 'nothing'}"
        elif not went or not expected:
            why = NOTHING_DOCUMENTED if went else seen.sentence()
        verdict = UNDECIDED if why else CONFIRMED if went == expected else REFUTED
        text = f"{trap.says}; {seen.sentence()}"
        return Fact(trap.id, TRAP, verdict, expected, went, "", seen.code, printable(text, 600), why, shown(seen.outputs))

    # --- compiling and running ------------------------------------------------------------------------------------

    def build_of(self, trap: Trap) -> _Build:
        soc = next(name for name in OTHER_SOCS if name != self.soc.name) if trap.other_soc else ""
        return _Build(trap.graph, tuple(trap.options.items()), tuple(trap.files.items()), trap.gears, soc)

    def compile_all(self, builds: Iterable[_Build], advance: Any) -> None:
        """Side by side where build.sh does it. raises: _Gone"""
        builds = list(builds)
        if self.bench.place.in_child:
            for build in builds:
                self.compile(build)
                advance(1)
            return
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
            try:
                for _ in pool.map(self.compile, {build.key: build for build in builds}.values()):
                    advance(1)
            except BaseException:  # an interrupt too: what still waits is not begun, what runs is ended
                self.bench.stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def compile(self, build: _Build) -> Compiled:
        """raises: _Gone"""
        if build.key not in self.compiled:
            folder = self.folder / build.key
            folder.mkdir()
            for name, data in build.graph.files().items():
                (folder / name).write_bytes(data)
            for option, lines in build.files:
                (folder / f"{option}.cfg").write_text(lines)
            made = compile_in(folder, _arguments(build, self.soc), self.bench)
            self.compiled[build.key] = made
            if made.refusal is not None:
                self.count(made.refusal)
        return self.compiled[build.key]

    def run(self, build: _Build, trap: Trap | None = None) -> Seen:
        """raises: _Gone"""
        key = f"{build.key} {trap.id if trap else ''}"
        if key not in self.seen:
            made = self.compile(build)
            if made.om is None:
                assert made.refusal is not None
                self.seen[key] = made.refusal
            else:
                om = _half(made.om) if trap is not None and trap.cut else made.om
                self.seen[key] = run_in(self.bench, om, build.graph.fed(), set_gear=not build.gears)
                self.count(self.seen[key])
        return self.seen[key]

    def count(self, seen: Seen) -> None:
        """raises: _Gone where the device does not come back"""
        if seen.answered:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row > ONE_IS_LOST or self.bench.losses >= MOST_LOSSES:
            raise _Gone(f"{self.bench.losses} processes hung, ended or lost the device; the last: {seen.sentence()}")


def _builds_of(test: RuleTest) -> tuple[_Build, _Build]:
    hit, control = (_Build(graph, tuple(test.options(place == 1).items())) for place, graph in enumerate(test.pair))
    return hit, control


def _half(om: Path) -> Path:
    cut = om.with_suffix(".cut")
    data = om.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    return cut


def _arguments(build: _Build, soc: Soc) -> tuple[tuple[str, str], ...]:
    """Of atc, by its own names: also what a careful command never holds."""
    shapes = {name: list(array.shape) for name, array in build.graph.fed().items() if name not in build.graph.unranked}
    if build.gears:
        shapes = {name: [-1, *shape[1:]] for name, shape in shapes.items()}
    for name in build.graph.defaults:
        shapes.pop(name, None)
    listed = ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
    options = [("framework", "5"), ("model", "model.onnx"), ("output", "model"), ("soc_version", build.soc or soc.name)]
    options += [("input_shape", listed), ("input_format", "ND")] if listed else []
    options += [("dynamic_batch_size", ",".join(map(str, build.gears)))] if build.gears else []
    return (*options, *build.options, *((name, f"{name}.cfg") for name, _ in build.files), ("log", "error"))


def summary(facts: Facts) -> dict[str, dict[str, int]]:
    """Kind -> verdict -> how many."""
    found: dict[str, dict[str, int]] = {RULE: {}, TRAP: {}}
    for fact in facts.results:
        found[fact.kind][fact.verdict] = found[fact.kind].get(fact.verdict, 0) + 1
    return found
