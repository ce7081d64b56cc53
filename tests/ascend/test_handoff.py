"""Hand-offs: what is in the folder, what build.sh does with it, and what is recorded afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import porting
from porting.ascend.gear_requests import Request
from porting.ascend.handoff import (
    HASHES,
    KEYS,
    LOG,
    MANIFEST,
    build_script,
    compiled_files,
    finish_handoff,
    handoffs_of,
    open_handoff,
    write_handoff,
)
from porting.ascend.handoff_contents import Contents, in_words
from porting.ascend.handoff_graph import place_graph
from porting.errors import PortError, UsageError
from tests.ascend.small_handoffs import command, fake_atc, small_port, with_handoff

NAME = "Ascend310P3-8.5.0-any"
SIDE = {"keep_dtype.cfg": b"n\n"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port with a hand-off. Not to be changed."""
    return with_handoff(tmp_path_factory.mktemp("made"))


@pytest.fixture
def port(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(made, tmp_path / "p.port")
    return tmp_path / "p.port"


@pytest.fixture
def folder(port: Path) -> Path:
    return port / "targets" / NAME


def build(folder: Path, how: str = "ok", bin_: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run build.sh with a fake atc, in an environment of its own."""
    path = "/usr/local/bin:/usr/bin:/bin"
    path = f"{bin_}:{path}" if bin_ else path
    env = {"PATH": path, "HOME": str(folder.parent / "nobody"), "FAKE_ATC": how, **environment}
    script = ["bash", str(folder / "build.sh")]
    return subprocess.run(script, cwd="/", env=env, capture_output=True, text=True, timeout=60)


# --- what is in it ------------------------------------------------------------------------------------------------


def test_the_folder_holds_all_that_the_command_names(made: Path) -> None:
    folder = made / "targets" / NAME
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {
        "model.onnx",
        "weights/m.onnx",
        "keep_dtype.cfg",
        "atc.txt",
        "build.sh",
        "files.sha256",
        "README.txt",
        "handoff.json",
    }
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest.keys() == set(KEYS) and manifest["schema"] == "porting.handoff/3" and manifest["build"] is None
    assert {e["path"] for e in manifest["files"]} == files - {MANIFEST}
    assert (manifest["soc"], manifest["cann"], manifest["host_cpu"], manifest["rules"]) == (
        "Ascend310P3",
        "8.5.0",
        "any",
        ["a-rule"],
    )
    assert command().text() in (folder / "atc.txt").read_text()
    assert command().text().rstrip() in (folder / "build.sh").read_text() and os.access(folder / "build.sh", os.X_OK)
    readme = (folder / "README.txt").read_text()
    for said in (
        "bash build.sh",
        "never run on hardware",
        "CANN 8.5.0",
        "a note",
        "porting explain atc.log",
        "--precision_mode_v2=fp16",
    ):
        assert said in readme
    assert not any(str(made) in (folder / f).read_text() for f in ("atc.txt", "build.sh", "README.txt", MANIFEST))
    assert "works on Ascend" not in readme


def test_the_graph_there_is_the_port_s_and_its_weights_are_linked(made: Path) -> None:
    folder = made / "targets" / NAME
    assert (folder / "model.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    assert (folder / "weights" / "m.onnx").samefile(made / "weights" / "m.onnx")
    assert not (folder / "model.onnx").samefile(made / "model.onnx")


def test_the_port_still_loads_and_runs(made: Path) -> None:
    with porting.load(made) as session:
        (y,) = session.run({"x": np.ones((2, 8), np.float16 if session.inputs[0].dtype == "float16" else np.float32)}).values()
    assert y.shape == (2, 512)
    porting.open_port(made).verify()


def test_equal_ports_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    other = with_handoff(tmp_path) / "targets" / NAME
    for file in (made / "targets" / NAME).rglob("*"):
        if file.is_file():
            assert (other / file.relative_to(made / "targets" / NAME)).read_bytes() == file.read_bytes(), file.name


def test_names_by_soc_release_and_host(port: Path) -> None:
    arm = command("Ascend910B3", host_env_os="linux", host_env_cpu="aarch64")
    assert write_handoff(port, arm, side_files=SIDE).name == "Ascend910B3-any-aarch64"
    assert [h.name for h in handoffs_of(port)] == [NAME, "Ascend910B3-any-aarch64"]
    assert "a machine with aarch64" in (port / "targets" / "Ascend910B3-any-aarch64" / "README.txt").read_text()


def test_checksums_of_external_data_are_taken_out_and_nothing_else(port: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(port / "model.onnx"), load_external_data=False)
    (tensor,) = [t for t in proto.graph.initializer if t.external_data]
    tensor.external_data.add(key="checksum", value="0" * 40)
    (port / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "out").mkdir()
    assert place_graph(port / "model.onnx", tmp_path / "out") == ["model.onnx", "weights/m.onnx"]
    written = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    assert {e.key for t in written.graph.initializer for e in t.external_data} == {"location", "offset", "length"}
    del tensor.external_data[-1]
    assert written == proto


def test_weights_that_a_branch_reads_are_copied(tmp_path: Path) -> None:
    """onnxruntime refuses them in a file that has a second link, and the port shares its file with the hand-off."""
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    body_weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        body_weight.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "b", [], [out], [body_weight])
    cond = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph([branch], "g", [cond], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "out").mkdir()
    place_graph(tmp_path / "model.onnx", tmp_path / "out")
    assert (tmp_path / "out" / "weights.bin").read_bytes() == bytes(16)
    assert (tmp_path / "weights.bin").stat().st_nlink == 1


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "weights/missing.bin", "model.onnx", "link.bin"])
def test_weights_outside_are_refused(port: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(99_999))
    (port / "link.bin").symlink_to(tmp_path / "secret.bin")
    proto = onnx.load(str(port / "model.onnx"), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (port / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(PortError):
        write_handoff(port, command("Ascend910B3"), side_files=SIDE)
    assert os.listdir(port / "targets") == [NAME]


def test_what_does_not_fit_is_refused_and_leaves_nothing(port: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"command": command()}, "names keep_dtype.cfg, which is not handed over"),
        ({"command": command(), "side_files": {**SIDE, "build.sh": b""}}, "may not be called 'build.sh'"),
        ({"command": command(), "side_files": {**SIDE, "model.om": b""}}, "may not be called 'model.om'"),
        ({"command": command(), "side_files": {**SIDE, "a/b": b""}}, "may not be called 'a/b'"),
        ({"command": command(mode="3"), "side_files": SIDE}, "--mode is 3"),
        ({"command": command(), "side_files": SIDE, "cann": "7.9"}, "unknown CANN release"),
        ({"command": command(), "side_files": SIDE, "cann": "8.5.0"}, "already exists"),
    ]
    for arguments, match in refused:
        with pytest.raises(UsageError, match=match):
            write_handoff(port, **arguments)
    with pytest.raises(PortError, match="outside its folder"):
        write_handoff(port, command(), side_files={**SIDE, "../x": b""})
    assert os.listdir(port / "targets") == [NAME]
    write_handoff(port, command(), side_files={"keep_dtype.cfg": b"other\n"}, cann="8.5.0", force=True)
    assert (port / "targets" / NAME / "keep_dtype.cfg").read_bytes() == b"other\n"
    assert os.listdir(port / "targets") == [NAME]


# --- build.sh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ok", "large", "host", "outside"])
def test_a_build_is_recorded_with_its_hashes(folder: Path, tmp_path: Path, how: str) -> None:
    ran = build(folder, how, fake_atc(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    handoff = finish_handoff(folder)
    assert handoff.build is not None and handoff.build["log"]["path"] == LOG
    expected = {
        "ok": ["model.om"],
        "large": ["model.om"],
        "host": ["model_linux_aarch64.om"],
        "outside": ["model.om", "weight/0.bin"],
    }[how]
    assert [e["path"] for e in handoff.build["files"]] == expected == compiled_files(folder)
    assert handoff.build["om"] == expected[0]
    assert "welcome to the next use" in (folder / LOG).read_text() and "python " in (folder / LOG).read_text()
    assert open_handoff(folder).build == handoff.build


def test_build_runs_from_anywhere_whatever_the_folder_is_called(folder: Path, tmp_path: Path) -> None:
    for name in ("a b'c\"d", "$(touch x)", "目录", "-n"):
        moved = tmp_path / name / "sub folder"
        shutil.copytree(folder, moved)
        ran = build(moved, "ok", fake_atc(tmp_path))
        assert ran.returncode == 0, ran.stderr
        assert finish_handoff(moved).build


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [
        ("fail", "atc ended with 255", 1),
        ("nothing", "atc reported no failure and made no model", 4),
        ("two", "made 2 files", 5),
        ("empty", "made an empty model: no byte in model.om", 6),
        ("killed", "atc was killed by signal 9: out of memory?", 137),
    ],
)
def test_a_build_that_fails_says_so_and_leaves_no_old_model(
    folder: Path, tmp_path: Path, how: str, said: str, status: int
) -> None:
    assert build(folder, "outside", fake_atc(tmp_path)).returncode == 0
    ran = build(folder, how, fake_atc(tmp_path))
    assert ran.returncode == status and said in ran.stderr and "porting explain atc.log" in ran.stderr
    assert not (folder / HASHES).exists() and not (folder / "weight").exists()
    with pytest.raises(PortError, match=r"expected one compiled model|does not fit|is empty"):
        finish_handoff(folder)


def test_without_atc_build_ends_with_3_and_says_where_to_go(folder: Path) -> None:
    for environment in ({}, {"ASCEND_HOME_PATH": "/nowhere"}):
        ran = build(folder, **environment)
        assert ran.returncode == 3 and "atc was not found" in ran.stderr and "ops package for Ascend310P3" in ran.stderr
    assert not (folder / LOG).exists()


@pytest.mark.parametrize("place", ["set_env.sh", "../set_env.sh", "home"])
def test_the_environment_of_cann_is_sourced(folder: Path, tmp_path: Path, place: str) -> None:
    bin_ = fake_atc(tmp_path)
    home = tmp_path / "home dir"
    root = home / "Ascend" / "cann"
    root.mkdir(parents=True)
    script = (
        f'export PATH="{bin_}:$PATH" ASCEND_HOME_PATH="{root}"; : $NOT_SET_BY_ANYBODY; false; echo "pythonpath=[$PYTHONPATH]"\n'
    )
    (root / ("set_env.sh" if place == "home" else place)).write_text(script)
    given = {"HOME": str(home)} if place == "home" else {"ASCEND_HOME_PATH": str(root)}
    (root / "version.cfg").write_text("toolkit_running_version=[8.5.0]\n")
    devlib = root / f"{os.uname().machine}-linux" / "devlib"
    devlib.mkdir(parents=True)
    ran = build(folder, **given, PYTHONPATH="/of/ours")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pythonpath=[]" in ran.stdout and "toolkit_running_version" in (folder / LOG).read_text()


def test_a_virtual_environment_is_left_and_another_python_may_be_named(folder: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "venv" / "bin", tmp_path / "their python" / "bin"
    for place, said in ((ours, "OURS"), (theirs, "THEIRS")):
        place.mkdir(parents=True)
        (place / "python3").write_text(f"#!/bin/sh\necho {said}\n")
        (place / "python3").chmod(0o755)
    path = f"{ours}:{fake_atc(tmp_path)}:/usr/bin:/bin"
    ran = build(folder, PATH=path, VIRTUAL_ENV=str(ours.parent), PYTHONHOME="/x", PYTHONPATH="/y")
    assert ran.returncode == 0 and "OURS" not in ran.stdout, ran.stdout + ran.stderr
    ran = build(folder, PATH=path, CANN_PYTHON=str(theirs))
    assert ran.returncode == 0 and "THEIRS" in ran.stdout, ran.stdout + ran.stderr
    ran = build(folder, PATH=path, CANN_PYTHON="/nowhere")
    assert ran.returncode == 2 and "no python3 lies there" in ran.stderr


def test_build_takes_no_arguments(folder: Path) -> None:
    ran = subprocess.run(["bash", str(folder / "build.sh"), "--help"], capture_output=True, text=True)
    assert ran.returncode == 2 and "takes no arguments" in ran.stderr


def test_build_is_bash_without_errors() -> None:
    subprocess.run(["bash", "-n"], input=build_script(command()), text=True, check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is not None:
        checked = subprocess.run([checker, "-"], input=build_script(command()), text=True, capture_output=True)
        assert checked.returncode == 0, checked.stdout
    assert "@" not in build_script(command()).replace("$@", "").replace("[@]", "")


# --- read back ----------------------------------------------------------------------------------------------------


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(schema="porting.handoff/9"),
        lambda m: m.pop("rules"),
        lambda m: m.update(extra=1),
        lambda m: m.update(soc="Ascend910B3"),
        lambda m: m["command"].append("--weight=x"),
        lambda m: m["command"].append("--output=/tmp/x"),
        lambda m: m.update(command="atc"),
        lambda m: m.update(command=[1]),
        lambda m: m["files"][0].update(path="../x"),
        lambda m: m["files"][0].update(size=-1),
        lambda m: m["files"][0].update(size=7),
        lambda m: m.update(files=[]),
        lambda m: m.update(files=3),
        lambda m: m.update(notes=[1]),
        lambda m: m.update(quantised=1),
        lambda m: m.update(build={}),
        lambda m: m.update(build=[1]),
    ],
)
def test_a_damaged_manifest_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edited(folder, change)
    with pytest.raises(PortError):
        open_handoff(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema": NaN}', "\ud800"])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PortError):
        open_handoff(folder)


def test_changed_files_and_links_are_refused(folder: Path, tmp_path: Path) -> None:
    handoff = open_handoff(folder)
    handoff.verify()
    (folder / "keep_dtype.cfg").write_bytes(b"m\n")
    with pytest.raises(PortError, match=r"has changed: keep_dtype\.cfg"):
        handoff.verify()
    (folder / "keep_dtype.cfg").unlink()
    (tmp_path / "elsewhere").write_bytes(b"n\n")
    (folder / "keep_dtype.cfg").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PortError, match="symbolic links"):
        open_handoff(folder)


def test_a_script_that_is_not_ours_is_not_run(folder: Path) -> None:
    """Whoever sends a port could write a build.sh, and hash it too."""
    (folder / "build.sh").write_text("rm -rf /\n")
    from porting.port_folder import sha256_of

    def swapped(manifest: dict[str, Any]) -> None:
        (entry,) = [e for e in manifest["files"] if e["path"] == "build.sh"]
        entry.update(size=(folder / "build.sh").stat().st_size, sha256=sha256_of(folder / "build.sh"))

    edited(folder, swapped)
    with pytest.raises(PortError, match=r"build\.sh is not what this version of porting writes"):
        open_handoff(folder).verify()


def test_a_model_of_another_run_is_not_recorded(folder: Path, tmp_path: Path) -> None:
    assert build(folder, "ok", fake_atc(tmp_path)).returncode == 0
    (folder / "model.om").write_bytes(b"another")
    with pytest.raises(PortError, match=r"does not fit model\.om"):
        finish_handoff(folder)
    (folder / HASHES).unlink()
    with pytest.raises(PortError, match=r"does not fit model\.om"):
        finish_handoff(folder)
    (folder / "model.om").unlink()
    (folder / "model.om").symlink_to("/etc/passwd")
    with pytest.raises(PortError, match="found none"):
        finish_handoff(folder)


def test_an_empty_model_is_not_recorded_even_with_its_hash(folder: Path, tmp_path: Path) -> None:
    (folder / "model.om").write_bytes(b"")
    (folder / HASHES).write_text(f"{hashlib.sha256(b'').hexdigest()}  model.om\n")
    with pytest.raises(PortError, match=r"model\.om is empty"):
        finish_handoff(folder)


def test_a_model_of_changed_files_is_not_recorded(folder: Path, tmp_path: Path) -> None:
    assert build(folder, "ok", fake_atc(tmp_path)).returncode == 0
    (folder / "keep_dtype.cfg").write_bytes(b"m\n")
    with pytest.raises(PortError, match=r"has changed: keep_dtype\.cfg"):
        finish_handoff(folder)


@pytest.mark.parametrize("name", ["keep_dtype.cfg", "weights/m.onnx", "model.onnx", "atc.txt"])
def test_changed_files_are_not_compiled(folder: Path, tmp_path: Path, name: str) -> None:
    """Also where only the folder is, and no port: build.sh looks by itself."""
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    done = build(folder, "ok", fake_atc(tmp_path))
    assert done.returncode == 2 and f"not those that were handed over: {name}: FAILED" in done.stderr
    (folder / name).unlink()
    done = build(folder, "ok", fake_atc(tmp_path))
    assert done.returncode == 2 and name in done.stderr and not (folder / "model.om").exists()


def test_a_port_without_hand_offs_has_none(tmp_path: Path) -> None:
    port = small_port(tmp_path)
    assert handoffs_of(port) == []
    (port / "targets").mkdir()
    (port / "targets" / ".x.partial").mkdir()
    assert handoffs_of(port) == []
    (port / "targets" / "x").mkdir()
    with pytest.raises(PortError, match="no hand-off"):
        handoffs_of(port)


def test_what_the_compiled_model_takes_and_what_was_shown_is_in_the_folder(tmp_path: Path) -> None:
    """Whoever holds only the folder can feed the model: inputs, outputs, state, gears; and a second port writes the same bytes."""
    net = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, float[1, 4] h) => (float[N, 4] y, float[1, 4] hn) {y = Add(x, h) hn = Tanh(h)}'
    source = tmp_path / "net.onnx"
    source.write_bytes(onnx.parser.parse_model(net).SerializeToString())
    handoffs = []
    for name in ("a.port", "b.port"):
        verdict = porting.port(
            source, tmp_path / name, "Ascend910B3", gears=Request(batch="2,4"), cann="8.5.0", state={"h": "hn"}
        )
        assert verdict.verdict == "pass"
        handoffs += handoffs_of(tmp_path / name)
    first, second = handoffs
    assert (first.path / MANIFEST).read_bytes() == (second.path / MANIFEST).read_bytes()
    interface, evidence = first.manifest["interface"], first.manifest["evidence"]
    assert [one["name"] for one in interface["inputs"]] == ["x", "h"] and interface["inputs"][0]["dtype"] == "float32"
    assert [(pair["input"], pair["output"]) for pair in interface["state"]["pairs"]] == [("h", "hn")]
    assert interface["gears"] == {"kind": "dynamic_batch_size", "shapes": [{"x": [n, 4], "h": [1, 4]} for n in (2, 4)]}
    assert (evidence["level"], evidence["verdict"], evidence["reference"]) == ("static", "pass", "upstream")
    gears = [check for check in evidence["checks"] if check["name"].startswith("gear ") and "[2, 4]" in check["name"]]
    assert gears and all(check["verdict"] == "pass" and check["value"] <= check["bound"] for check in gears)
    assert first.manifest["source"]["files"][0]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    told = (first.path / "README.txt").read_text(encoding="utf-8")
    for expected in (
        "input  x: float32[",
        "start with zeros, then feed hn of the run before",
        "x [2, 4]",
        "x [4, 4]",
        "level: static",
        "precision_mode_v2=origin",
    ):
        assert expected in told, expected


def test_an_input_that_a_port_feeds_by_itself_is_told() -> None:
    """The compiled model has no such default: whoever runs it has to feed it."""
    interface = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1]}, {"name": "scale", "dtype": "float32", "shape": []}],
        "outputs": [],
        "state": {"pairs": []},
        "defaults": {"scale": 0.5},
        "gears": {"kind": "static", "shapes": [{"x": [1], "scale": []}]},
        "flat": {},
        "images": None,
    }
    told = "\n".join(in_words(Contents(interface=interface)))
    assert "scale: float32[]   feed 0.5," in told and told.count("   feed ") == 1


@pytest.mark.parametrize(
    "broken", [{"interface": []}, {"evidence": "all of it"}, {"interface": {"inputs": []}}, {"evidence": {"more": 1}}]
)
def test_contents_that_are_no_objects_are_refused(port: Path, broken: dict[str, object]) -> None:
    folder = write_handoff(port, command(), side_files=SIDE, force=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **broken}))
    with pytest.raises(PortError, match=next(iter(broken))):
        open_handoff(folder)
