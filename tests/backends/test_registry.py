"""Finding backends: unknown names, names claimed twice, plug-ins that are broken. Each in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BACKEND = """
from porting.backends.null import NullBackend
class Mine(NullBackend):
    name = "mine"
"""
ASK = """
import json, sys
sys.path.insert(0, {folder!r})
from porting.errors import PortingError
from porting.registry import BACKEND_GROUP, load_backend, names
found = {{"names": names(BACKEND_GROUP)}}
for device in {devices!r}:
    try:
        found[device] = type(load_backend(device)).__name__
    except PortingError as error:
        found[device] = [type(error).__name__, error.what, error.where, error.next]
print(json.dumps(found))
"""


def plugin(folder: Path, package: str, name: str, code: str) -> None:
    """A module and the metadata that pip would leave behind."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[porting.backends]\n{name} = {package}:Mine\n")


def ask(folder: Path, *devices: str) -> dict:
    code = ASK.format(folder=str(folder), devices=devices)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_plugin_is_found_by_name_and_broken_ones_harm_nobody(tmp_path: Path) -> None:
    plugin(tmp_path, "good_plugin", "mine", BACKEND)
    plugin(tmp_path, "bad_plugin", "broken", "raise OSError('libvendor.so: cannot open shared object file')")
    plugin(tmp_path, "hollow_plugin", "hollow", "nothing = 0")
    found = ask(tmp_path, "mine", "broken", "hollow", "null", "minne")
    assert {"broken", "cpu", "cuda", "hollow", "mine", "null"} <= set(found["names"])
    assert found["mine"] == "Mine"
    assert found["null"] == "NullBackend"
    kind, what, where, next_step = found["broken"]
    assert kind == "DeviceUnavailable"
    assert what == (
        "plug-in 'broken' (bad_plugin:Mine) failed to import: OSError: libvendor.so: cannot open shared object file"
    )
    assert where == "entry point group porting.backends"
    assert "nothing else is affected" in next_step
    assert found["hollow"][0] == "DeviceUnavailable"
    assert found["minne"][:2] == ["UsageError", "unknown device 'minne'"]
    assert "did you mean 'mine'" in found["minne"][3]


def test_name_claimed_twice_is_refused_and_names_both(tmp_path: Path) -> None:
    plugin(tmp_path, "first_plugin", "mine", BACKEND)
    plugin(tmp_path, "second_plugin", "mine", BACKEND)
    kind, what, _, next_step = ask(tmp_path, "mine")["mine"]
    assert kind == "UsageError"
    assert "given by 2 plug-ins" in what
    assert "first_plugin:Mine" in what
    assert "second_plugin:Mine" in what
    assert next_step == "uninstall all but one"


def test_built_in_name_is_never_overridden(tmp_path: Path) -> None:
    plugin(tmp_path, "usurper", "cpu", BACKEND)
    found = ask(tmp_path, "cpu", "null")
    assert found["cpu"][0] == "UsageError"
    assert "'cpu' is built in, and 'usurper:Mine' claims the same name" in found["cpu"][1]
    assert found["null"] == "NullBackend"


@pytest.mark.parametrize("heavy", ["numpy", "onnx", "onnxruntime", "torch"])
def test_listing_names_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys; from porting.registry import names; names('porting.backends'); print({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
