"""Every branch of every If that is still in a port, taken once in the port and in the untouched file: by forcing the conditions."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from porting.onnx_facts import Conditional, conditionals, force
from porting.port_folder import MODEL, Port
from porting.scratch import ScratchFolder
from porting.types import Program
from porting.verdict import Check, printable


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of an If.

    forced: what has to hold for it to be taken: this If and all around it
    """

    node: str
    taken: bool
    forced: Mapping[str, bool]

    @property
    def name(self) -> str:
        return f"{self.node} = {'then' if self.taken else 'else'}"


def branches_of(found: Sequence[Conditional]) -> list[Branch]:
    return [Branch(c.name, taken, {**dict(c.parents), c.name: taken}) for c in found for taken in (True, False)]


def conditionals_of(port: Port) -> list[Conditional]:
    """The Ifs of a port's graph."""
    return conditionals(onnx.load(str(port.path / MODEL), load_external_data=False).graph)


def folded_check(of_original: Sequence[Conditional], of_port: Sequence[Conditional]) -> Check | None:
    """No If is gone whose condition depends on what is fed; None where there is no If at all."""
    if not of_original and not of_port:
        return None
    kept, names = {c.name for c in of_port}, {c.name for c in of_original}
    gone = {c.name for c in of_original if c.name not in kept}
    # an If inside a branch that is never taken goes with the If around it
    wrong = [c.name for c in of_original if c.valued and c.name in gone and not any(parent in gone for parent, _ in c.parents)]
    added = sorted(kept - names)
    where = printable((wrong + added)[0]) if wrong or added else f"{len(kept)} of {len(names)} Ifs kept"
    return Check.equal(
        "Ifs that depend on the inputs and are not in the port, or only in the port", len(wrong) + len(added), 0, where
    )


def folded(of_original: Sequence[Conditional], of_port: Sequence[Conditional]) -> list[str]:
    """Names of the Ifs that the conversion decided once and for all."""
    kept = {c.name for c in of_port}
    return [c.name for c in of_original if c.name not in kept]


def unreached(
    of_original: Sequence[Conditional], of_port: Sequence[Conditional], forced: Iterable[Mapping[str, bool]]
) -> tuple[list[Branch], list[Branch]]:
    """Branches that are in the port and that no run took: those that the values of inputs choose, and those that only sizes do.

    forced: of every run; the last entry is the branch that the run is for
    """
    taken = {list(one.items())[-1] for one in forced if one}
    kept = {c.name for c in of_port}
    valued = {c.name for c in of_original if c.valued}
    left = [b for b in branches_of(of_original) if b.node in kept and (b.node, b.taken) not in taken]
    return [b for b in left if b.node in valued], [b for b in left if b.node not in valued]


class ForcedPort:
    """A port with conditions fixed, in a temporary folder that holds its weights once; a file of its own for each way to fix them.

    Copies, not links: onnxruntime refuses a linked file for the weights of a branch's body.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._temporary = ScratchFolder()
        self._folder = Path(self._temporary.name)
        self._count = 0
        for entry in port.manifest["files"]:
            if entry["path"] != MODEL:
                (self._folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(port.path / entry["path"], self._folder / entry["path"])

    def program(self, forced: Mapping[str, bool]) -> Program:
        """Ifs that the port has no more are left out of `forced`."""
        model = onnx.load(str(self._port.path / MODEL), load_external_data=False)
        force(model.graph, forced)
        self._count += 1
        path = self._folder / f"forced{self._count}.onnx"
        onnx.save(model, str(path))
        return replace(self._port.program(), model=path)

    def close(self) -> None:
        self._temporary.cleanup()
