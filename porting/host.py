"""What this machine gives a process: cores and memory, as limited by affinity and control group.

A container on a large host sees every core of it; threads beyond its share only get in each other's way.
"""

from __future__ import annotations

import os
from pathlib import Path

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_GROUP_FOLDER = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Physical cores that this process may use, at least 1: its affinity, hyper-threads counted once, and the CPU quota."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows have no affinity to ask for
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = {_read(_CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota_cores(len(cpus))))


def _quota_cores(otherwise: int) -> int:
    """Whole cores of the control group's CPU quota (version 2: "<microseconds> <period>" or "max <period>")."""
    quota, _, period = _read(_GROUP_FOLDER / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return otherwise
    return max(1, int(quota) // int(period))


def memory_bytes() -> dict[str, int]:
    """ "total" and "available" bytes of RAM, no more than the control group allows; empty where the kernel does not say."""
    found: dict[str, int] = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        key, _, rest = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found["total" if key == "MemTotal" else "available"] = int(rest.split()[0]) * 1024
    limit, used = _read(_GROUP_FOLDER / "memory.max"), _read(_GROUP_FOLDER / "memory.current")
    if found and limit.isdigit() and used.isdigit():
        found["total"] = min(found["total"], int(limit))
        found["available"] = min(found["available"], max(0, int(limit) - int(used)))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
