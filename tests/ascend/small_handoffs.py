"""A small port for Ascend with a hand-off, and a stand-in for atc on PATH that looks at its arguments."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx

import porting
from porting.ascend.atc_command import AtcCommand, atc_command
from porting.ascend.handoff import write_handoff
from porting.ascend.soc import find_soc
from tests.graph_models import model, node, weight

MODE = ("precision_mode_v2", "fp16")
KEEP = {"keep_dtype": "keep_dtype.cfg"}
# reads its own environment and folder; what it does is FAKE_ATC:
# ok | large | host | fail | killed | nothing | renamed | two | empty | header | partial | outside | chatty | slow
FAKE_ATC = """#!{python} -IS
import os, sys, time
options = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
how = os.environ.get("FAKE_ATC", "ok")
print("ATC start working now, please wait for a moment.", flush=True)
for name in ("framework", "model", "output", "soc_version", "input_shape", "input_format", "precision_mode_v2", "log"):
    if name not in options:
        sys.exit(f"E10007: --{{name}} is required")
assert options["framework"] == "5" and options["soc_version"].startswith("Ascend"), options
for name in ("model", "keep_dtype"):
    if name in options and not os.path.isfile(options[name]):
        sys.exit(f"E13000: {{options[name]}} in {{os.getcwd()}}")
for name in ("PYTHONHOME", "VIRTUAL_ENV"):
    assert name not in os.environ, name
if how == "fail":
    print("ATC run failed, Please check the detail log")
    print("EZ3003: No supported Ops kernel and engine are found for [n], optype [NonZero].\\x1b[31m")
    sys.exit(255)
if how == "killed":
    os.kill(os.getpid(), 9)
if how == "slow":
    open("started", "w").close()
    time.sleep(600)
if how == "chatty":
    for n in range(20000):
        print(f"[INFO] GE(1,atc.bin): line {{n}}")
names = dict(host=["model_linux_aarch64.om"], two=["model.om", "model_linux_x86_64.om"], nothing=[], renamed=["net.om"])
body = open(options["model"], "rb").read()[:64]
short, long = (0, len(body)) if how == "large" else (len(body), 0)
om = b"IMOD" + bytes(72) + short.to_bytes(4, "little") + bytes(104) + long.to_bytes(8, "little") + bytes(64) + body
kept = dict(empty=0, header=100, partial=len(om) - 1)
for name in names.get(how, ["model.om"]):
    with open(name, "wb") as file:
        file.write(om[: kept.get(how)])
if how == "outside":
    os.makedirs("weight")
    open("weight/0.bin", "wb").write(b"w")
print("ATC run success, welcome to the next use.")
"""


def command(soc: str = "Ascend310P3", **more: str) -> AtcCommand:
    gears = {"input_shape": "x:-1,8", "input_format": "ND", "dynamic_batch_size": "1,2"}
    return atc_command(find_soc(soc), MODE, gears, side_files=KEEP, more=more)


def small_port(folder: Path) -> Path:
    """A port with weights in a file of their own."""
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "y")]
    proto = model(nodes, {"x": ["batch", 8]}, {"y": ["batch", 512]}, [weight("w", 8, 512)])
    onnx.save(proto, str(folder / "m.onnx"))
    porting.convert(folder / "m.onnx", folder / "m.port", "Ascend310P3", "fp16")
    return folder / "m.port"


def with_handoff(folder: Path) -> Path:
    port = small_port(folder)
    write_handoff(port, command(), side_files={"keep_dtype.cfg": b"n\n"}, cann="8.5.0", rules=["a-rule"], notes=["a note"])
    return port


def fake_atc(folder: Path) -> Path:
    """A folder with an atc in it."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "atc").write_text(FAKE_ATC.format(python=os.path.realpath(sys.executable)))
    (bin_ / "atc").chmod(0o755)
    return bin_
