"""The command line: help, one JSON object, exit codes, what happens when output or the user goes away, names that are hostile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from small_ports import random_tensors, write_safetensors
from tiny import OWN, make
from unprivileged import as_unprivileged, open_folder

from porting import cli, commands
from porting.cli import COMMANDS
from porting.conversion import convert
from porting.errors import OutOfResources
from porting.port_folder import Port, open_port
from porting.recording import record

LLAMA = "LlamaForCausalLM"
assert LLAMA in OWN
HOSTILE = "\x1b[31m[bold]red[/bold]\x1b]0;title\x07<b>&amp;]]>\u202e\x00"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """porting in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, out, err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoint") / "tiny", LLAMA).folder


@pytest.fixture(scope="module")
def port(folder: Path) -> Port:
    return convert(folder, folder.parent / "port")


@pytest.fixture(scope="module")
def golden(folder: Path) -> Path:
    record(folder, folder.parent / "golden.json")
    return folder.parent / "golden.json"


# --- help and usage ------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and all(f"  {name} " in out for name in COMMANDS)
    words = out.split()
    assert all(str(number) in words for number in (0, 1, 2, 3, 4, 70, 130))
    files = {p.stem for p in Path(commands.__path__[0]).glob("*.py")} - {"__init__", "options"}
    assert files == set(COMMANDS), "a command that nobody can call, or one without a file"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, run: Run) -> None:
    code, out, err = run(command, "--help")
    assert code == 0 and not err
    assert "Exit codes: 0 holds" in " ".join(out.split()) and "--json" in out and "--quiet" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("convrt", "did you mean 'convert'"),
        ("convert --taret cpu", "--target"),
        ("plan SOURCE --target asend", "did you mean 'ascend'"),
        ("plan SOURCE --target ascend910b9", "did you mean 'Ascend910B"),
        ("convert SOURCE -o new -p int9", "did you mean 'int8'"),
        ("plan SOURCE -p fp31", "did you mean 'fp32'"),
        ("convert SOURCE -o new --stop-after linear_to_fusd", "did you mean 'linear_to_fused'"),
        ("convert SOURCE -o new --weights hardlink", "'link', 'copy'"),
        ("convert SOURCE -o new --max-ram lots", "is not a size"),
        ("run PORT --device cpi --input IDS -o new", "did you mean 'cpu'"),
        ("run PORT --device cpu,thread=2 --input IDS -o new", "threads"),
        ("validate PORT --against GOLDEN --require-level proof", "'hardware'"),
        ("bench PORT --rounds 0", "at least 1"),
        ("", "Missing command"),
        ("run", "Missing argument 'PORT'"),
    ],
)
def test_what_cannot_be_meant_names_the_nearest(
    arguments: str, said: str, run: Run, folder: Path, port: Port, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("IDS.npz", input_ids=np.ones((1, 3), np.int64))
    places = {"SOURCE": str(folder), "PORT": str(port.path), "GOLDEN": str(golden), "IDS": "IDS.npz"}
    code, out, err = run(*(places.get(a, a) for a in arguments.split()))
    assert (code, out) == (2, "") and err.startswith("error: ") and said in err
    assert os.listdir() == ["IDS.npz"], "something was written"


def test_an_existing_output_is_kept(run: Run, folder: Path, port: Port, golden: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    (tmp_path / "there").write_text("mine")
    for arguments in (
        ("convert", folder),
        ("port", folder),
        ("record", folder),
        ("run", port.path, "--input", tmp_path / "x.npz"),
    ):
        code, _, err = run(*arguments, "-o", tmp_path / "there")
        assert code == 2 and "already exists" in err and "--force" in err
    code, _, err = run("convert", folder, "-o", tmp_path / "there", "--force")
    assert code == 2 and "replaces ports only" in err
    assert (tmp_path / "there").read_text() == "mine"
    code, _, err = run("run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "there", "--force")
    assert code == 0 and np.load(tmp_path / "there")["logits"].shape == (1, 3, 101)


# --- JSON, progress, verdicts --------------------------------------------------------------------------------------


def test_json_is_one_object_and_progress_is_on_stderr(run: Run, folder: Path, port: Port, golden: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    for arguments, schema, code in (
        (("inspect", folder), "inspect/1", 0),
        (("plan", folder), "plan/1", 0),
        (("convert", folder, "-o", tmp_path / "a"), "convert/1", 0),
        (("port", folder, "-o", tmp_path / "b", "--against", golden), "verdict/1", 0),
        (("validate", port.path, "--against", golden), "verdict/1", 0),
        (("validate", port.path, "--against", port.path), "verdict/1", 1),
        (("record", port.path, "-o", tmp_path / "g.json"), "record/1", 0),
        (("run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz"), "run/1", 0),
        (("bench", port.path, "--prompt-tokens", 4, "--new-tokens", 2, "--rounds", 1), "bench/1", 0),
        (("generate", port.path, "x"), "error/1", 2),
        (("validate", port.path), "error/1", 3),
        (("inspect", tmp_path / "nothing"), "error/1", 2),
        (("inspct",), "error/1", 2),
        (("convert", folder, "-o", tmp_path / "c", "--max-ram", "1MiB"), "error/1", 4),
    ):
        got, out, err = run(*arguments, "--json")
        found = json.loads(out)  # one object, nothing else
        assert (got, found["schema"]) == (code, f"porting.{schema}"), err
        assert "\x1b" not in out + err
        if schema == "error/1":
            assert found["error"]["exit_code"] == code and err.startswith("error: ")
            assert found["error"]["next"] and "\n  next:  " in err


def test_quiet_is_quiet(run: Run, folder: Path, golden: Path, tmp_path: Path) -> None:
    _, _, loud = run("port", folder, "-o", tmp_path / "a", "--against", golden)
    code, out, err = run("port", folder, "-o", tmp_path / "b", "--against", golden, "--quiet")
    assert "validate ..." in loud and (code, err) == (0, "") and out.startswith("PASS b on cpu: ")


def test_junit_is_written_for_a_ci(run: Run, port: Port, golden: Path, tmp_path: Path) -> None:
    code, _, _ = run("validate", port.path, "--against", golden, "--junit", tmp_path / "pass.xml")
    suite = ElementTree.parse(tmp_path / "pass.xml").getroot()
    assert code == 0 and int(suite.attrib["tests"]) >= 5 and suite.attrib["failures"] == "0"
    code, _, _ = run("validate", port.path, "--against", port.path, "--junit", tmp_path / "fail.xml")
    suite = ElementTree.parse(tmp_path / "fail.xml").getroot()
    assert code == 1 and suite.attrib["failures"] == "1"


def test_a_junit_that_cannot_be_written_is_said_before_the_work(run: Run, folder: Path, port: Port, tmp_path: Path) -> None:
    for place in (tmp_path / "none" / "x.xml", tmp_path):
        for command in (("validate", port.path, "--against", port.path), ("port", folder, "-o", tmp_path / "new")):
            code, out, err = run(*command, "--junit", place)
            assert ((code, out) == (2, "") and "--junit" in err) or "is a directory" in err
    assert not os.listdir(tmp_path)


def test_a_junit_that_fails_afterwards_keeps_the_verdict(
    run: Run, port: Port, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(verdict: object) -> bytes:
        raise OutOfResources("the disk is full", where="x.xml")

    monkeypatch.setattr("porting.junit.to_junit", full)
    code, out, err = run("validate", port.path, "--against", golden, "--junit", tmp_path / "x.xml", "--json")
    assert code == 4 and json.loads(out)["verdict"] == "pass" and "the disk is full" in err
    code, out, _ = run("validate", port.path, "--against", port.path, "--junit", tmp_path / "x.xml", "--json")
    assert code == 1 and json.loads(out)["verdict"] == "fail", "a verdict that does not hold weighs more"


# --- exit codes ----------------------------------------------------------------------------------------------------


def test_a_crash_is_ours(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(source: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr("porting.inspection.inspect", crash)
    code, out, err = run("inspect", str(folder), "--json")
    assert code == 70 and "Traceback" in err and "KeyError: 'no such thing'" in err
    assert "this is a bug in porting, not in your input" in err and json.loads(out)["error"]["exit_code"] == 70


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 4),
        (OSError(28, "No space left on device", "/somewhere"), 4),
        (PermissionError(13, "Permission denied", "/somewhere"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(5, "Input/output error"), 70),
    ],
)
def test_what_the_system_refuses_has_its_code(
    error: BaseException, code: int, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object) -> None:
        raise error

    monkeypatch.setattr("porting.inspection.inspect", fail)
    got, out, err = run("inspect", str(folder), "--json")
    assert got == json.loads(out)["error"]["exit_code"] == code
    assert ("Traceback" in err) == (code == 70)
    assert code == 130 or "\n  next:  " in err


def test_a_device_that_is_not_there(run: Run, folder: Path, port: Port, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    for command in (
        ("run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "y"),
        ("port", folder, "-o", tmp_path / "new"),
    ):
        code, _, err = run(*command, "--device", "cuda:63")
        assert code == 3 and "cuda" in err
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_required_level(run: Run, port: Port, golden: Path) -> None:
    code, _, err = run("validate", port.path, "--against", golden, "--device", "null", "--require-level", "hardware")
    assert code == 3 and "null gives simulated evidence" in err


def test_a_device_that_computes_nothing_says_what_to_do(
    run: Run, folder: Path, port: Port, golden: Path, tmp_path: Path
) -> None:
    code, _, err = run("validate", port.path, "--against", golden, "--device", "null")
    assert code == 3 and "null cannot know the size" in err and "next:  try another --device" in err
    code, _, err = run("generate", port_with_tokenizer(folder, tmp_path), "x", "--device", "null", "--max-new-tokens", 2)
    assert code == 3 and "next:  try another --device" in err


def test_a_port_with_a_symbolic_link_says_what_to_do(run: Run, port: Port, tmp_path: Path) -> None:
    linked = shutil.copytree(port.path, tmp_path / "port")
    (linked / "model.onnx").unlink()
    (linked / "model.onnx").symlink_to(port.path / "model.onnx")
    code, _, err = run("validate", linked, "--against", linked)
    assert code == 2 and "symbolic links" in err and "next:  convert again" in err


def test_ids_outside_the_vocabulary_say_what_to_do(run: Run, port: Port, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", case=np.full((1, 3), 101, np.int64))
    code, _, err = run("validate", port.path, "--against", port.path, "--inputs", tmp_path / "x.npz")
    assert code == 2 and "outside the vocabulary" in err and "next:  " in err


def test_record_on_a_full_disk_says_what_to_do(run: Run, port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("record", port.path, "-o", tmp_path / "g.json")
    assert code == 4 and "No space left" in err and "next:  free memory or disk space" in err and "--resume" not in err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["inspect", "plan", "convert"])
def test_a_port_where_a_checkpoint_is_wanted(command: str, run: Run, port: Port, tmp_path: Path) -> None:
    code, out, err = run(command, port.path, *(("-o", tmp_path / "new") if command == "convert" else ()))
    assert (code, out) == (2, "") and "is a port" in err
    assert f"porting validate {port.path}" in err and f"porting generate {port.path}" in err
    assert not os.listdir(tmp_path)


# --- running -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ids": np.ones((1, 3), np.int64)}, "unknown input 'ids'"),
        ({"input_ids": np.ones((1, 3), np.int32)}, "expected input_ids: int64[batch, sequence], got int32[1, 3]"),
        ({"input_ids": np.ones(3, np.int64)}, "got int64[3]"),
        ({"input_ids": np.ones((1, 3), np.int64), "past_length": np.ones(1, np.int64)}, "is state"),
        ({"logits_to_keep": np.array(1)}, "inputs not fed"),
        ({"input_ids": np.array([["a"]])}, "is no number"),
        ({"input_ids": np.array([None])}, "is no number"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, np.ndarray], said: str, run: Run, port: Port, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    code, _, err = run("run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert code == 2 and said in err and os.listdir(tmp_path) == ["x.npz"]


def test_the_device_that_ran_is_in_the_json(run: Run, folder: Path, port: Port, tmp_path: Path) -> None:
    """The one that was taken, not the one that was asked for: without a GPU `cuda-or-cpu` is the CPU."""
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    speaking = port_with_tokenizer(folder, tmp_path)
    taken = {"cpu,threads=2": {"cpu,threads=2"}, "cuda-or-cpu": {"cuda", "cpu"}}
    for asked, possible in taken.items():
        code, out, err = run(
            "run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--device", asked, "--json", "--force"
        )
        assert code == 0 and json.loads(out)["device"] in possible, err
        code, out, err = run("generate", speaking, "x w3", "--max-new-tokens", 2, "--device", asked, "--json")
        assert code == 0 and json.loads(out)["device"] in possible, err


def test_the_help_of_generate_says_when_it_is_greedy(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("generate", "--help")
    said = " ".join(out.split())
    assert code == 0 and "0 is greedy. [default: 0, or with --top-k or --top-p the model's recommended one, else 1]" in said
    assert "greedy no more; 0 is off" in said
    speaking = port_with_tokenizer(folder, tmp_path)  # and it is so
    for options, temperature in (((), 0), (("--top-k", 5), 1), (("--top-k", 0), 1), (("--top-p", 0.5), 1)):
        code, out, err = run("generate", speaking, "x", "--max-new-tokens", 1, "--json", *options)
        assert code == 0 and json.loads(out)["settings"]["temperature"] == temperature, err


def test_a_place_that_cannot_be_written_is_said_before_the_work(run: Run, port: Port, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    code, _, err = run("run", port.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "none" / "y.npz")
    assert code == 2 and "no such folder" in err
    code, _, err = run("record", port.path, "-o", tmp_path / "none" / "g.json")
    assert code == 2 and "no such folder" in err


# --- names are data ------------------------------------------------------------------------------------------------


def hostile_checkpoint(folder: Path, source: Path) -> Path:
    """Names of tensors, files and keys that would drive a terminal, a markup language or a parser."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, HOSTILE: HOSTILE, "rope_parameters": {"rope_type": HOSTILE}}))
    write_safetensors(folder / "model.safetensors", random_tensors({HOSTILE: (2, 2), "x" * 5000: (1, 1)}))
    return folder


def test_hostile_names_are_shown_as_text(run: Run, folder: Path, tmp_path: Path) -> None:
    bad = hostile_checkpoint(tmp_path / "bad\x1b[2J[red]", folder)
    for command in (("inspect", bad), ("plan", bad), ("convert", bad, "-o", tmp_path / "new\x1b[2J")):
        code, out, err = run(*command)
        assert code == (0 if command[0] == "inspect" else 2)
        assert not [c for c in out + err if not c.isprintable() and c != "\n"]
        code, out, err = run(*command, "--json")
        assert json.loads(out) and not [c for c in out + err if not c.isprintable() and c != "\n"]


def test_hostile_names_in_a_verdict(run: Run, port: Port, golden: Path, tmp_path: Path) -> None:
    moved = tmp_path / "port\x1b[31m<b>&[red]"
    os.rename(convert(port.path.parent / "tiny", tmp_path / "plain").path, moved)
    code, out, err = run("validate", moved, "--against", golden, "--junit", tmp_path / "x.xml")
    assert code == 0 and "[red]" in out and not [c for c in out + err if not c.isprintable() and c != "\n"]
    properties = ElementTree.parse(tmp_path / "x.xml").getroot().iter("property")
    assert {p.attrib["name"]: p.attrib["value"] for p in properties}["source"].endswith("<b>&[red]")


# --- the user or the reader goes away ------------------------------------------------------------------------------

PORTING = [sys.executable, "-m", "porting"]


def test_a_reader_that_has_gone_is_no_error_and_changes_no_verdict(port: Port, golden: Path) -> None:
    for command, code in (
        (["inspect", port.path.parent / "tiny"], 0),
        (["validate", port.path, "--against", golden, "--quiet"], 0),
        (["validate", port.path, "--against", port.path, "--quiet"], 1),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            PORTING + [str(c) for c in command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (code, "")


def test_output_that_cannot_be_written_is_said(port: Port) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PORTING, "plan", str(port.path.parent / "tiny")], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4 and done.stderr.startswith("error: the output cannot be written: No space left")


SLOWED = """
import sys, time
import porting.weights as weights, porting.session as session
real_make, real_run = weights.Stream.make, session.Session.run
def slow(function):
    def call(*arguments, **options):
        print("working", file=sys.stderr, flush=True)
        time.sleep(0.2)
        return function(*arguments, **options)
    return call
if sys.argv[1] in ("convert", "port"):
    weights.Stream.make = slow(real_make)
else:
    session.Session.run = slow(real_run)
from porting.cli import main
main(sys.argv[1:])
"""


def interrupted(*arguments: object) -> subprocess.CompletedProcess[str]:
    """porting as a process of its own, with Ctrl-C while it works."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    seen = ""
    while seen.count("working") < 3:
        line = child.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(child.args, child.returncode, out, seen + err)


def test_ctrl_c_leaves_nothing_that_loads(folder: Path, golden: Path, tmp_path: Path) -> None:
    for command in (("convert", folder), ("port", folder, "--against", golden)):
        done = interrupted(*command, "-o", tmp_path / "new", "--json", "--weights", "copy")
        assert done.returncode == 130 and json.loads(done.stdout)["error"]["what"] == "interrupted", done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("port.json"))
    assert convert(folder, tmp_path / "new").path.is_dir(), "and the place can be used again"


def test_ctrl_c_ends_an_answer(folder: Path, tmp_path: Path) -> None:
    port = port_with_tokenizer(folder, tmp_path)
    done = interrupted("generate", port, "x x x", "--max-new-tokens", "30", "--json")
    assert done.returncode == 130, done.stderr
    found = json.loads(done.stdout)
    assert found["finish_reason"] == "interrupted" and 0 < len(found["token_ids"]) < 30


def port_with_tokenizer(folder: Path, tmp_path: Path) -> Path:
    """The tiny model, with a tokenizer of its 101 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    copy = tmp_path / "with_tokenizer"
    copy.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            os.link(file, copy / file.name)
    tokenizer = Tokenizer(WordLevel({"x": 0, **{f"w{i}": i for i in range(1, 101)}}, unk_token="x"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(copy / "tokenizer.json"))
    return convert(copy, tmp_path / "speaking").path


def test_generate_streams_and_stays_quiet(run: Run, folder: Path, tmp_path: Path) -> None:
    port = port_with_tokenizer(folder, tmp_path)
    code, out, err = run("generate", port, "x w3", "--max-new-tokens", "5", "--quiet")
    assert code == 0 and len(out.split()) == 5 and err == ""
    code, _, err = run("generate", port, "x", "--max-new-tokens", "500")
    assert code == 2 and "context of 64" in err
    code, _, err = run("generate", port, "x", "--temperature", "-1")
    assert code == 2


def test_no_permission_is_said_to_an_ordinary_user(folder: Path, port: Port) -> None:
    """Root may write and read everywhere: a user who may not is another process."""
    with open_folder() as closed:
        for source, name in ((folder, "tiny"), (port.path, "port")):
            shutil.copytree(source, closed / name)
        (closed / "tiny" / "secret").mkdir(mode=0o700)
        before = sorted(closed.rglob("*"))

        def said(*arguments: object) -> tuple[int, str]:
            with redirect_stderr(StringIO()) as err:
                return cli._exit_code([str(a) for a in arguments]), err.getvalue()

        def refused() -> list[tuple[int, str]]:
            return [
                said("convert", closed / "tiny", "-o", closed / "new"),
                said("validate", closed / "port", "--against", closed / "port", "--junit", closed / "x.xml"),
                said("record", closed / "port", "-o", closed / "g.json"),
                said("inspect", closed / "tiny" / "secret"),
            ]

        for code, err in as_unprivileged(refused):
            assert code == 2 and "permission" in err.lower() and "next:" in err, err
        assert sorted(closed.rglob("*")) == before


def test_open_port_after_the_tests(port: Port) -> None:
    """What the tests above refused, interrupted or cut short never touched the port that they were given."""
    open_port(port.path).verify()
