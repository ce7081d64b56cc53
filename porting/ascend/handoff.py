"""The folder that is carried to a machine with CANN, and comes back with a compiled model.

    targets/SOC-CANN-HOST/   model.onnx  weights/  the command's files   what is compiled
                             atc.txt     the command      build.sh   runs it      README.txt   what to type
                             handoff.json   SoC, release, command, every file with size and sha256, rules cited, notes, inputs, outputs, gears, evidence
    after build.sh ran       model.om (or model_linux_aarch64.om)  model.om.sha256  atc.log; `finish_handoff` records them

Equal ports give equal bytes. No path leaves the folder. Nothing here ran on hardware. handoff.json holds no hash of itself, which a file cannot,
and nothing else does: a build writes into it. What it says is checked key by key when it is read, so blanks that were added change nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import porting
from porting.ascend.atc_command import MODEL, OUTPUT, AtcCommand, parse_arguments
from porting.ascend.handoff_contents import CONTENTS, Contents, require_contents
from porting.ascend.handoff_graph import place_graph
from porting.ascend.handoff_readme import readme
from porting.ascend.soc import Soc, find_cann, find_soc, soc_in
from porting.checked_json import integer, object_with, table
from porting.errors import InputError, PortError, UsageError
from porting.port_folder import require_inside, sha256_of
from porting.port_staging import os_errors, write_synced

SCHEMA = "porting.handoff/3"
TARGETS, MANIFEST = "targets", "handoff.json"
BUILD, COMMAND, README = "build.sh", "atc.txt", "README.txt"
LOG, HASHES, LIST = "atc.log", "model.om.sha256", "files.sha256"
OWN_NAMES = (MODEL, MANIFEST, BUILD, COMMAND, README, LOG, HASHES, LIST, "weights", "weight", "kernel_meta")
ANY_CANN = "any"
NOT_COMPARED = "this graph was not compared with its source: `porting validate PORT --against SOURCE` does that"
MAX_MANIFEST_BYTES = 16 << 20
LARGEST_FILE = 1 << 62
OM_MAGIC, OM_HEADER = b"IMOD", struct.Struct("<76x I 104x Q 64x")  # of a .om: length of what follows, in 32 and in 64 bits
OWN_FILES = {  # what every hand-off has -> what it is, for README.txt
    MODEL: "the graph that is compiled, as it was compared on the CPU",
    "weights/": "its numbers",
    COMMAND: "the command",
    BUILD: "runs it in CANN's own environment",
    LIST: "hashes of what is compiled: build.sh refuses files that are others",
    MANIFEST: "the same for programs: SoC, command, inputs, outputs, gears, what was shown, every other file with its hash",
    README: "this",
}
KEYS = (
    *("schema", "soc", "family", "cann", "host_cpu", "quantised", "command", "files", "rules", "notes", "tools", "build"),
    *CONTENTS,
)


@dataclass(frozen=True)
class Handoff:
    """A hand-off on disk whose handoff.json was read.

    manifest: handoff.json; build: what `finish_handoff` recorded, None before
    """

    path: Path
    manifest: Mapping[str, Any]
    command: AtcCommand

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def build(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.manifest["build"]
        return found

    def verify(self) -> None:
        """Every file is there and unchanged, and build.sh is what this version writes for the command: nobody's own script.

        raises: PortError naming the first that differs
        """
        for entry in self.manifest["files"]:
            _require_entry(self.path, entry)
        listed = {e["path"]: e["sha256"] for e in self.manifest["files"] if e["path"] not in (README, BUILD, LIST)}
        expected = {BUILD: build_script(self.command), COMMAND: self.command.text(), LIST: _listed(listed)}
        for name, text in expected.items():
            if (self.path / name).read_bytes() != text.encode("utf-8"):
                raise PortError(
                    f"{name} is not what this version of porting writes for the command in {MANIFEST}",
                    where=str(self.path),
                    next=f"read it, and run `bash {BUILD}` in the folder yourself if you trust it; or make the hand-off again",
                )


def write_handoff(
    port: Path,
    command: AtcCommand,
    *,
    model: Path | None = None,
    side_files: Mapping[str, bytes] | None = None,
    cann: str | None = None,
    quantised: bool = False,
    rules: Sequence[str] = (),
    notes: Sequence[str] = (),
    contents: Contents | None = None,
    force: bool = False,
) -> Path:
    """Make `targets/SOC-CANN-HOST/` inside a port, whole or not at all.

    port:       the folder of the port, finished or being made
    model:      the graph that is compiled; the port's own model.onnx when left out
    side_files: name -> bytes of every file that the command names, and of those that these name
    cann:       the release that it is for; None: any
    rules:      ids of the rules that the graph was judged by and changed for
    notes:      what whoever runs it should be told
    contents:   what the compiled model takes and gives, where it came from, and what was shown of it
    raises:     UsageError (it is there already and not `force`, the command does not fit the files), PortError (the graph)
    """
    side = dict(side_files or {})
    _require_files(command, side)
    release = find_cann(cann)
    soc = soc_in(find_soc(str(command.value("soc_version"))), release)
    folder = port / TARGETS / f"{soc.name}-{release or ANY_CANN}-{command.host_cpu}"
    with os_errors(folder):
        if os.path.lexists(folder) and not force:
            raise UsageError(f"already exists: {folder}", where=str(port), next="--force replaces it")
        folder.parent.mkdir(exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial")
        _remove(partial)
        partial.mkdir()
        about = contents or Contents()
        try:
            names = place_graph(model or port / MODEL, partial, about.flat)
            own = {name: text for name, text in OWN_FILES.items() if name != "weights/" or any("/" in name for name in names)}
            texts = {
                COMMAND: command.text(),
                BUILD: build_script(command),
                README: readme(command, release, [*names, *side], about, notes, BUILD, own),
            }
            for name, content in {**side, **{n: t.encode("utf-8") for n, t in texts.items()}}.items():
                (partial / name).write_bytes(content)
            (partial / BUILD).chmod(0o755)
            entries = [_entry(partial, name) for name in sorted([*names, *side, *texts])]
            (partial / LIST).write_text(_listed({e["path"]: e["sha256"] for e in entries if e["path"] not in (README, BUILD)}))
            entries.append(_entry(partial, LIST))
            manifest = {**_manifest(command, soc, release, entries, quantised, rules, notes), **about.to_json()}
            write_synced(partial / MANIFEST, _bytes(manifest))
            _remove(folder)
            partial.rename(folder)
        except BaseException:
            _remove(partial)
            raise
    return folder


def _manifest(
    command: AtcCommand,
    soc: Soc,
    cann: str | None,
    files: Sequence[Mapping[str, Any]],
    quantised: bool,
    rules: Sequence[str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """handoff.json before a build, without `Contents`. No times in it."""
    return {
        "schema": SCHEMA,
        "soc": soc.name,
        "family": soc.family,
        "cann": cann or ANY_CANN,
        "host_cpu": command.host_cpu,
        "quantised": quantised,
        "command": list(command.arguments),
        "files": list(files),
        "rules": sorted(set(rules)),
        "notes": list(notes),
        "tools": {"porting": porting.__version__},
        "build": None,
    }


def _require_files(command: AtcCommand, side: Mapping[str, bytes]) -> None:
    """The command compiles our graph to our name, and each file that it names is handed over. raises: UsageError"""
    fixed = {"model": MODEL, "output": OUTPUT, "mode": "0"}
    for option, expected in fixed.items():
        if command.value(option) not in (expected, None):
            raise UsageError(f"--{option} is {command.value(option)}, and a hand-off has {expected}", where="hand-off")
    for name in side:
        require_inside(name, "hand-off")
        if "/" in name or name in OWN_NAMES or name.startswith((".", f"{OUTPUT}.", f"{OUTPUT}_")):
            raise UsageError(f"a file of a hand-off may not be called {name!r}", where="hand-off", next="name it otherwise")
    for option, name in command.files.items():
        if name != MODEL and name not in side:
            raise UsageError(f"--{option} names {name}, which is not handed over", where="hand-off", next="give its bytes too")


def _listed(hashes: Mapping[str, str]) -> str:
    """As sha256sum --check reads it: a line whose name has a backslash or a newline begins with a backslash, and has them escaped."""
    escaped = {name: name.replace("\\", "\\\\").replace("\n", "\\n") for name in hashes}
    return "".join(f"{'' if escaped[name] == name else chr(92)}{sha256}  {escaped[name]}\n" for name, sha256 in hashes.items())


def build_script(command: AtcCommand) -> str:
    """build.sh for a command."""
    template = (Path(__file__).parent / "data" / "build.sh").read_text(encoding="utf-8")
    return template.replace("@SOC@", str(command.value("soc_version"))).replace("@COMMAND@", command.text().rstrip("\n"))


# --- read ---------------------------------------------------------------------------------------------------------


def handoffs_of(port: Path) -> list[Handoff]:
    """The hand-offs of a port, by name. raises: PortError for one that is damaged"""
    folder = port / TARGETS
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    return [open_handoff(folder / name) for name in names if (folder / name).is_dir()]


def open_handoff(folder: Path) -> Handoff:
    """Read handoff.json, and see that its command is one and its files are there. raises: PortError"""
    path = folder / MANIFEST
    try:
        if folder.is_symlink() or path.is_symlink() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise PortError(f"{MANIFEST} is a link, or far too large", where=str(folder))
        value = json.loads(path.read_bytes())
        manifest = object_with(value, KEYS, MANIFEST)
        command = _checked(manifest)
        for entry in manifest["files"]:
            _require_size(folder, entry)
    except OSError as error:
        raise PortError(f"no hand-off: {MANIFEST} cannot be read: {error.strerror or error}", where=str(folder)) from error
    except (ValueError, RecursionError) as error:
        raise PortError(f"{MANIFEST} is no JSON: {error}", where=str(folder)) from error
    except PortError:
        raise
    except (InputError, UsageError) as error:
        raise PortError(f"{MANIFEST} is malformed: {error.what}", where=str(folder), next="make the hand-off again") from error
    return Handoff(folder, manifest, command)


def _checked(manifest: Mapping[str, Any]) -> AtcCommand:
    """raises: InputError, UsageError, PortError"""
    if manifest["schema"] != SCHEMA:
        raise InputError(f"expected schema {SCHEMA}", where=MANIFEST)
    require_contents(manifest, MANIFEST)
    arguments = manifest["command"]
    if not isinstance(arguments, list) or not all(isinstance(a, str) for a in arguments) or len(arguments) > 1000:
        raise InputError("the command is no list of texts", where=MANIFEST)
    command = parse_arguments(arguments, quantised=manifest["quantised"] is True)
    said = (command.value("soc_version"), command.host_cpu)
    if said != (manifest["soc"], manifest["host_cpu"]):
        raise InputError("soc and host_cpu are not those of the command", where=MANIFEST)
    for key in ("rules", "notes"):
        if not isinstance(manifest[key], list) or not all(isinstance(text, str) for text in manifest[key]):
            raise InputError(f"{key} is no list of texts", where=MANIFEST)
    if not isinstance(manifest["quantised"], bool):
        raise InputError("quantised is neither true nor false", where=MANIFEST)
    table(manifest["tools"], MANIFEST)
    if manifest["build"] is not None:
        object_with(manifest["build"], ("om", "files", "log"), MANIFEST)
    if not isinstance(manifest["files"], list):
        raise InputError("files is no list", where=MANIFEST)
    for entry in manifest["files"]:
        _require_well_formed(entry)
    if not {MODEL, BUILD, COMMAND, LIST} <= {entry["path"] for entry in manifest["files"]}:
        raise InputError(f"files lacks {MODEL}, {BUILD}, {COMMAND} or {LIST}", where=MANIFEST)
    return command


def _require_well_formed(entry: Any) -> None:
    object_with(entry, ("path", "size", "sha256"), MANIFEST)
    if not isinstance(entry["path"], str) or not isinstance(entry["sha256"], str):
        raise InputError("a file without a path or hash", where=MANIFEST)
    require_inside(entry["path"], MANIFEST)
    integer(entry["size"], 0, LARGEST_FILE, MANIFEST)


def _require_size(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["path"]
    if any((folder / part).is_symlink() for part in (entry["path"], *map(str, Path(entry["path"]).parents))):
        raise PortError(f"a hand-off may not hold symbolic links: {entry['path']}", where=str(folder))
    if not path.is_file() or path.stat().st_size != entry["size"]:
        raise PortError(f"file of the hand-off is missing or has changed: {entry['path']}", where=str(folder))


def _require_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    _require_size(folder, entry)
    if sha256_of(folder / entry["path"]) != entry["sha256"]:
        raise PortError(f"file of the hand-off has changed: {entry['path']}", where=str(folder), next="make the hand-off again")


# --- after build.sh ran -------------------------------------------------------------------------------------------


def compiled_files(folder: Path) -> list[str]:
    """What build.sh left: the .om first, then weights that atc put beside it."""
    om = [name for name in sorted(os.listdir(folder)) if name == f"{OUTPUT}.om" or _is_host_om(name)]
    beside = [name for name in sorted(os.listdir(folder)) if name.startswith(f"{OUTPUT}_weight_combined")]
    weight = folder / "weight"
    if weight.is_dir() and not weight.is_symlink():
        beside += sorted(f"weight/{name}" for name in os.listdir(weight))
    return [name for name in (*om, *beside) if (folder / name).is_file() and not (folder / name).is_symlink()]


def _is_host_om(name: str) -> bool:
    return name.startswith(f"{OUTPUT}_linux_") and name.endswith(".om")


def not_whole(om: Path) -> str:
    """What shows that a compiled model is not whole, in a phrase; "" where nothing does.

    source: hicann/ge, model_parser_base: a model is loaded where its size is that of the header and of what the header says. A file that
            begins otherwise is not looked at.
    """
    size = om.stat().st_size
    if not size:
        return "is empty: nothing was compiled"
    with om.open("rb") as file:
        header = file.read(OM_HEADER.size)
    if not header.startswith(OM_MAGIC):
        return ""
    if len(header) < OM_HEADER.size:
        return f"is cut short: {size} bytes, and its header alone has {OM_HEADER.size}"
    said = [OM_HEADER.size + length for length in OM_HEADER.unpack(header)]  # two places: the newer counts more than 4 GiB
    return "" if size in said else f"is cut short: {size} bytes, and its header says {max(said)}"


def finish_handoff(folder: Path) -> Handoff:
    """Record what build.sh made in handoff.json, with the hashes that it wrote down then.

    raises: PortError when nothing, a part of a model or more than one was made, a file of the hand-off has changed, or the hashes do not agree
    """
    handoff = open_handoff(folder)
    handoff.verify()
    made = compiled_files(folder)
    om = [name for name in made if name.endswith(".om")]
    if len(om) != 1:
        found = ", ".join(om) or "none"
        raise PortError(f"expected one compiled model, found {found}", where=str(folder), next=f"run `bash {BUILD}` there")
    entries = [_entry(folder, name) for name in made]
    if why := not_whole(folder / om[0]):
        raise PortError(f"{om[0]} {why}", where=str(folder), next=f"run `bash {BUILD}` there again")
    written = _hashes(folder / HASHES)
    wrong = [e["path"] for e in entries if written.get(e["path"]) != e["sha256"]]
    if wrong or written.keys() != {e["path"] for e in entries}:
        raise PortError(
            f"{HASHES} does not fit {', '.join(wrong) or 'the files'}: not all that lies here is from one run of {BUILD}",
            where=str(folder),
            next=f"run `bash {BUILD}` there again",
        )
    log = _entry(folder, LOG) if (folder / LOG).is_file() and not (folder / LOG).is_symlink() else None
    manifest = {**handoff.manifest, "build": {"om": om[0], "files": entries, "log": log}}
    with os_errors(folder):
        write_synced(folder / MANIFEST, _bytes(manifest))
    return open_handoff(folder)


def _hashes(path: Path) -> dict[str, str]:
    """What sha256sum wrote: name -> hash; nothing where there is no such file."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
        return {}
    pairs = [line.split("  ", 1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _entry(folder: Path, name: str) -> dict[str, Any]:
    return {"path": name, "size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}


def _bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode("utf-8") + b"\n"


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
