"""Models for the simulated CANN: compiled by the stand-in for `atc` from a hand-off, or from any .onnx, and kept in the user's cache.

~/.cache/porting/ascend_sim/KEY/model.om      KEY: the files that are compiled, the command, SoC and release, and our own sources
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from porting.ascend.atc_command import AtcCommand, atc_command
from porting.ascend.explanations import explain_code, looks_like_code
from porting.ascend.gear_requests import named_sizes
from porting.ascend.gears import Gears, gears_of_sizes
from porting.ascend.handoff import MODEL, Handoff, handoffs_of
from porting.ascend.handoff_graph import place_graph
from porting.ascend.precision import PRECISIONS, mode_for
from porting.ascend.soc import Soc, find_soc
from porting.backends.ascend.om_files import port_of
from porting.backends.cann_simulator.machine import Machine
from porting.backends.cann_simulator.om_file import MAGIC, MOST_HEADER, PREFIX
from porting.errors import OutOfResources, PortError, PortingError, RuntimeFailed, UsageError, nearest
from porting.port_folder import sha256_of
from porting.port_staging import os_errors
from porting.types import Program, TensorSpec
from porting.verdict import printable

OM = "model.om"
MOST_BYTES = 16 << 30  # of the cache; what was used the longest ago goes
SAID = 600  # characters of atc's own words
GRAPH_DTYPES = {"float16": "fp16", "bfloat16": "bf16"}


def chosen_handoff(program: Program, soc: str | None, name: str | None) -> Handoff | None:
    """The hand-off that a program is compiled from; None for a program without any. raises: UsageError (which one?), PortError"""
    port = port_of(program)
    handoffs = {handoff.name: handoff for handoff in handoffs_of(port)} if port else {}
    if name is not None:
        if name not in handoffs:
            raise UsageError(f"this port has no hand-off {name!r}", where="handoff=", next=nearest(name, list(handoffs)))
        found = [handoffs[name]]
    else:
        found = list(handoffs.values())
    wanted = find_soc(soc).name if soc is not None else None
    fit = [handoff for handoff in found if wanted in (None, handoff.manifest["soc"])]
    if found and not fit:
        raise PortError(
            f"no hand-off of this port is for {wanted}: {', '.join(handoff.name for handoff in found)}",
            where=str(port),
            next=f"`porting port SOURCE --target {wanted} -o PORT` makes one",
        )
    if len(fit) > 1:
        raise UsageError(
            "this port has several hand-offs", where="handoff=", next=f"name one: {', '.join(handoff.name for handoff in fit)}"
        )
    return fit[0] if fit else None


def compiled(
    program: Program,
    handoff: Handoff | None,
    machine: Machine,
    environment: Mapping[str, str],
    precision: str | None,
    gears: str | None,
) -> Path:
    """The .om of a program for a machine, out of the cache or made now.

    precision, gears: of a program without a hand-off
    raises: UsageError (no precision, no shapes), PortError (files that have changed), RuntimeFailed (refused), OutOfResources
    """
    if handoff is not None:
        for option, value in (("precision", precision), ("gears", gears)):
            if value is not None:
                raise UsageError(
                    f"{option}= is for a model without a hand-off; {handoff.name} says it",
                    where="device ascend-sim",
                    next="leave it out; `porting port --target SOC` makes a port with another hand-off",
                )
        digests = [(str(entry["path"]), str(entry["sha256"])) for entry in handoff.manifest["files"]]
        changed = [name for name, digest in digests if sha256_of(handoff.path / name) != digest]
        if changed:
            raise PortError(
                f"file of the hand-off has changed: {changed[0]}", where=str(handoff.path), next="make the hand-off again"
            )
        return _kept(handoff.path, handoff.command, digests, machine, environment)
    with tempfile.TemporaryDirectory(prefix="porting-om-") as scratch:
        folder = Path(scratch)
        if isinstance(program.model, bytes):
            (folder / MODEL).write_bytes(program.model)
            names = [MODEL]
        else:
            names = place_graph(program.model, folder)
        digests = [(name, sha256_of(folder / name)) for name in names]
        return _kept(folder, command_for(program, machine.soc, precision, gears), digests, machine, environment)


def command_for(program: Program, soc_name: str, precision: str | None, gears: str | None) -> AtcCommand:
    """What atc is told of an .onnx. raises: UsageError"""
    soc = find_soc(soc_name)
    if precision is None:
        raise UsageError(
            "a model without a hand-off needs precision=: atc's own default makes fp16 of it in silence",
            where="device ascend-sim",
            next="precision=origin keeps the graph's dtypes; or fp32, fp16, bf16. A port gets its hand-off where every size is settled: --gears",
        )
    if precision in PRECISIONS:
        mode = mode_for(soc, precision, stored=_stored(program))
        if mode.blocker:
            raise UsageError(f"precision={precision} on {soc.name}: {mode.blocker}", where="device ascend-sim", next=mode.next)
        chosen = (mode.option, mode.value)
    else:
        chosen = ("precision_mode_v2", precision)
    return atc_command(soc, chosen, _gears(program, soc, gears).options)


def _stored(program: Program) -> str:
    floats = {spec.dtype for spec in (*program.inputs, *program.outputs) if "float" in spec.dtype}
    return GRAPH_DTYPES.get(floats.pop(), "fp32") if len(floats) == 1 else "fp32"


def _gears(program: Program, soc: Soc, text: str | None) -> Gears:
    """raises: UsageError"""
    if text is not None:
        return gears_of_sizes(program.inputs, soc, named_sizes(text.replace("&", ",")))
    named = tuple(_named(spec) for spec in program.inputs)
    if program.gears:
        sizes = [{f"{s.name}.{axis}": size for s in named for axis, size in enumerate(gear[s.name])} for gear in program.gears]
        free = {dim for spec in named for dim in spec.shape if isinstance(dim, str)}
        return gears_of_sizes(named, soc, [{n: size for n, size in gear.items() if n in free} for gear in sizes])
    free_dims = [
        f"{spec.name}[{axis}]" for spec in program.inputs for axis, d in enumerate(spec.shape) if not isinstance(d, int)
    ]
    if free_dims:
        raise UsageError(
            f"a compiled model knows the shapes that it was compiled for, and {', '.join(map(printable, free_dims))} have none",
            where="device ascend-sim",
            next="gears=NAME=SIZE&NAME=SIZE;... gives sizes by name; or make a port with --gears",
        )
    return gears_of_sizes(named, soc, [{}])


def _named(spec: TensorSpec) -> TensorSpec:
    """Each free dimension with a name of its own."""
    shape = tuple(dim if isinstance(dim, int) else f"{spec.name}.{axis}" for axis, dim in enumerate(spec.shape))
    return replace(spec, shape=shape)


# --- the cache ----------------------------------------------------------------------------------------------------


def _kept(
    folder: Path,
    command: AtcCommand,
    digests: Sequence[tuple[str, str]],
    machine: Machine,
    environment: Mapping[str, str],
) -> Path:
    facts = sha256_of(Path(machine.facts)) if machine.facts else ""
    content = json.dumps([sorted(digests), command.arguments, machine.soc, machine.cann, facts, _our_sources()])
    root = _cache()
    kept = root / hashlib.sha256(content.encode()).hexdigest()[:32]
    om = kept / OM
    if om.is_file():
        os.utime(kept)
        return om
    with os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            _run_atc(folder, command, made, environment)
            try:
                made.rename(kept)
            except OSError:
                if not om.is_file():  # else another process was quicker, with the same bytes
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _make_room(root, kept)
    return om


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "porting" / "ascend_sim"


def _make_room(root: Path, kept: Path) -> None:
    """Remove what was used the longest ago, beyond MOST_BYTES."""
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if total <= MOST_BYTES or entry == kept:
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= sizes[entry]


@cache
def _our_sources() -> str:
    """What decides how a model is compiled: another version of it makes another model."""
    import porting.ascend
    import porting.backends.cann_simulator

    digest = hashlib.sha256()
    for package in (porting.ascend, porting.backends.cann_simulator):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*")):
            if path.suffix in (".py", ".json"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _run_atc(folder: Path, command: AtcCommand, made: Path, environment: Mapping[str, str]) -> None:
    """Compile in `folder` into `made`. raises: RuntimeFailed, OutOfResources"""
    variables = {**os.environ, **environment}
    atc = shutil.which("atc", path=variables["PATH"])
    arguments = [f"--output={made / 'model'}" if a.startswith("--output=") else a for a in command.arguments]
    done = subprocess.run(
        [str(atc), *arguments],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    models = sorted(made.glob("*.om"))
    if done.returncode or len(models) != 1:
        raise _refused(done.returncode, done.stdout)
    models[0].rename(made / OM)


def _refused(status: int, said: str) -> PortingError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    coded = next((line for line in lines if any(looks_like_code(word.strip(":[]")) for word in line.split())), "")
    words = printable(coded or " ".join(lines[-3:]) or f"exit code {status}, and no word", SAID)
    if status < 0:
        return OutOfResources(f"the stand-in for atc was killed by signal {-status}", where="compiling for ascend-sim")
    return RuntimeFailed(
        f"the simulated compiler refuses this model: {words}", where="compiling for ascend-sim", next=_advice(coded)
    )


def _advice(line: str) -> str:
    for word in line.split():
        try:
            return explain_code(word.strip(":[]")).do
        except UsageError:
            continue
    return "`porting check MODEL --target SOC` lists what is in the way"


def ai_cpu_nodes(om: Path) -> frozenset[str]:
    """Nodes that run on the AI CPU by the documents; none for a file that is no simulated model, which is refused when it is loaded."""
    try:
        with open(om, "rb") as file:
            magic, size, *_ = PREFIX.unpack(file.read(PREFIX.size))
            content = json.loads(file.read(size)) if magic == MAGIC and size <= MOST_HEADER else {}
        return frozenset(map(str, content.get("ai_cpu", ())))
    except (OSError, struct.error, ValueError, AttributeError, TypeError):
        return frozenset()
