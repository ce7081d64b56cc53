"""What running a port on a device shows, and whether it ran there."""

from __future__ import annotations

from porting.devices import parse_device
from porting.errors import EvidenceUnavailable, UsageError
from porting.session import Session
from porting.targets import find_target
from porting.types import Program
from porting.verdict import EVIDENCE_LEVELS, Check

SIMULATED = ("null", "ascend-sim")  # devices that compute nothing real, or nothing on the device that they are named after


def evidence_level(device: str, target: str) -> str:
    """What running a port for `target` on a device shows. Of a graph for Ascend that runs elsewhere: that it computes the same, and no more."""
    name = parse_device(device).name
    if find_target(target).kind == "ascend" and not name.startswith("ascend"):
        return "static"
    return "simulated" if name in SIMULATED else "hardware"


def require_evidence(device: str, level: str, target: str) -> None:
    """Whether running a port for `target` on `device` gives evidence of at least `level`. raises: EvidenceUnavailable, UsageError"""
    if level not in EVIDENCE_LEVELS:
        raise UsageError(f"no evidence level {level!r}", where="--require-level", next=f"known: {', '.join(EVIDENCE_LEVELS)}")
    got = evidence_level(device, target)
    if EVIDENCE_LEVELS.index(got) < EVIDENCE_LEVELS.index(level):
        raise EvidenceUnavailable(
            f"{device} gives {got} evidence of a port for {target}, {level} is required",
            where="--require-level",
            next="run on the device itself",
        )


def placement_check(session: Session) -> Check:
    """The device asked for is the device that ran, as far as the backend says where.

    A graph in which nothing reads an input is worked out when it is prepared: then no node is left that could run elsewhere.
    """
    wanted = session.device.name
    placed = session.placement
    elsewhere = {n: d for n, d in placed.items() if d.partition(":")[0] != wanted}
    name = "nodes on another device"
    if not placed and not _reads_inputs(session.program):
        return Check.equal(name, 0, 0, "nothing is left to compute: no node reads an input")
    if not placed:
        return Check(name, "error", None, 0, wanted, f"{wanted} does not say where a node ran")
    where = next((f"{n} on {d}" for n, d in elsewhere.items()), f"{len(placed)} nodes on {wanted}")
    return Check.equal(name, len(elsewhere), 0, where)


def _reads_inputs(program: Program) -> bool:
    """Whether a node of the graph, or of a body in it, reads what is fed."""
    from porting.backends.onnx_program import read_model
    from porting.onnx_facts import nodes_of

    fed = {spec.name for spec in program.inputs}
    return any(not fed.isdisjoint(node.input) for _, node in nodes_of(read_model(program).graph))
