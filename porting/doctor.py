"""What is installed here, which devices it makes usable, and what to type where something is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from porting.distributions import installed_versions, runtime_owners
from porting.errors import PortingError
from porting.host import available_cores, memory_bytes
from porting.registry import BACKEND_GROUP, names
from porting.verdict import printable

SCHEMA = "porting.doctor/1"
PROBE_SECONDS = 60  # a driver that hangs longer than this counts as broken
BASE = ("numpy", "onnx", "onnx-ir", "safetensors", "ml_dtypes", "tokenizers", "click", "rich", "jinja2")
OPTIONAL = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-cann",
    "torch",
    "torch-npu",
    "transformers",
    "onnxscript",
    "gguf",
    "openvino",
)


def doctor() -> dict[str, Any]:
    """The state of this installation, ready for JSON.

    returns: schema, porting, python, platform, packages (name -> version or None), onnxruntime_owners, devices (each with name,
             usable, reason, next, detail, crashed), cores, memory_bytes, disk_free_bytes, and
             problems (each with what and next); a device that this machine merely lacks is no problem
    """
    from porting import __version__

    devices = probe_all()
    packages = installed_versions((*BASE, *OPTIONAL))
    owners = runtime_owners()
    return {
        "schema": SCHEMA,
        "porting": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "onnxruntime_owners": owners,
        "devices": devices,
        "cores": available_cores(),
        "memory_bytes": memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "problems": _problems(packages, owners, devices),
    }


def doctor_text(found: Mapping[str, Any]) -> str:
    """What `doctor` found, for the terminal: problems last, each with what to type."""
    from porting.render import table

    rows = [(d["name"], "usable" if d["usable"] else "no", _said(d)) for d in found["devices"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version is not None)
    absent = ", ".join(name for name, version in found["packages"].items() if version is None)
    sizes = found["memory_bytes"]
    memory = f"{sizes['available'] / 2**30:.1f} of {sizes['total'] / 2**30:.1f} GiB of memory free, " if sizes else ""
    lines = [
        f"porting {found['porting']}, Python {found['python']['version']}, {found['platform']}",
        f"{found['cores']} cores, {memory}{found['disk_free_bytes'] / 2**30:.1f} GiB of disk free here",
        "",
        table(("device", "", "detail"), rows),
        "",
        f"installed: {versions}",
        f"absent: {absent or 'nothing'}",
    ]
    for problem in found["problems"]:
        lines += ["", f"problem: {printable(problem['what'])}", f"  next:  {printable(problem['next'])}"]
    return "\n".join([*lines, *([] if found["problems"] else ["", "no problems found"])])


def _said(device: Mapping[str, Any]) -> str:
    if device["usable"]:
        return ", ".join(f"{key} {value}" for key, value in device["detail"].items())
    return f"{device['reason']}; {device['next']}" if device["next"] else device["reason"]


def probe_all() -> list[dict[str, Any]]:
    """Every backend's answer to `probe`, built-in or plug-in, sorted by name.

    Each is asked in a process of its own: a vendor library that crashes or hangs on import takes nothing else with it, and
    two that clash never meet.
    """
    devices = names(BACKEND_GROUP)
    with ThreadPoolExecutor(max_workers=max(2, available_cores())) as pool:
        return list(pool.map(_probe_apart, devices))


def _probe_apart(name: str) -> dict[str, Any]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from porting.doctor import probe_here; probe_here({name!r})"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _unusable(name, f"its probe hangs: no answer in {PROBE_SECONDS} s", "check its driver", crashed=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        return _unusable(
            name, f"its probe ended with exit code {done.returncode}: {last}", "reinstall its runtime", crashed=True
        )


def probe_here(name: str) -> None:
    """Probe one backend and print the answer as JSON; what the backend prints itself goes to stderr."""
    from porting.registry import load_backend

    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        found = {"name": name, **asdict(load_backend(name).probe()), "crashed": False}
    except PortingError as error:  # a plug-in that cannot be loaded, or a name claimed twice
        found = _unusable(name, error.what, error.next, crashed=True)
    with os.fdopen(answer, "w") as out:
        json.dump(found, out, default=str)


def _unusable(name: str, reason: str, next_step: str, *, crashed: bool) -> dict[str, Any]:
    return {"name": name, "usable": False, "reason": reason, "next": next_step, "detail": {}, "crashed": crashed}


def _problems(packages: dict[str, str | None], owners: list[str], devices: list[dict[str, Any]]) -> list[dict[str, str]]:
    problems = []
    for name in BASE:
        if packages[name] is None:
            problems.append({"what": f"{name} is missing, which porting cannot do without", "next": f"pip install {name}"})
    if len(owners) > 1:
        listed = " ".join(owner.split()[0] for owner in owners)
        problems.append(
            {
                "what": f"{len(owners)} packages own the folder onnxruntime/ and overwrite each other: {', '.join(owners)}",
                "next": f'pip uninstall -y {listed}, then install one: pip install "porting[cpu]" or "porting[cuda]"',
            }
        )
    for device in devices:
        if device["crashed"]:
            problems.append({"what": f"device {device['name']!r}: {device['reason']}", "next": device["next"]})
    if not any(device["usable"] for device in devices if device["name"] != "null"):
        cpu = next(device for device in devices if device["name"] == "cpu")
        problems.append({"what": f"no device is usable; cpu: {cpu['reason']}", "next": cpu["next"]})
    ascend = next((device for device in devices if device["name"] == "ascend"), None)
    if packages.get("torch-npu") and ascend is not None and not ascend["usable"]:
        problems.append(
            {
                "what": "torch-npu is installed and CANN is not: torch and transformers import it, and fail here outside of --device ascend-sim",
                "next": "keep torch-npu in an environment of its own, and port and compare with upstream in another",
            }
        )
    return problems
