"""Where a pass changed a graph: nodes that are only before or only after it, in pieces as small as values allow that both sides have.

    before:  a -> Gelu -> b -> Gelu -> c          two regions: {Gelu} and what makes b of a, {Gelu} and what makes c of b
    after:   a -> Div -> Erf -> ... -> b -> ...

A value of one name is one value on both sides, which is what is compared. What only one side has stays inside a region.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from porting.ascend.graph_records import BodyRecord, NodeRecord, identity


@dataclass(frozen=True, eq=False)
class Side:
    """Nodes of one body, in its order, that only one side of a comparison has."""

    body: BodyRecord
    nodes: Sequence[NodeRecord]

    def makes(self, name: str) -> bool:
        """Whether a value comes of these nodes, or is a constant."""
        return any(name in node.outputs for node in self.nodes) or self.body.constant(name) is not None


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes before and after, and the values that both give.

    inputs: values that both sides have and neither makes; constants are not among them
    moved:  outputs that a side has from elsewhere in the model
    """

    before: Side
    after: Side
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    moved: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """The name of a node, for reports."""
        return next((node.name for side in (self.before, self.after) for node in side.nodes), self.outputs[0])


def changed_regions(before: BodyRecord, after: BodyRecord) -> Iterator[Region]:
    """Every region with a value to compare, of this body and those inside it."""
    rewritten = {
        name
        for name in before.constants.keys() & after.constants.keys()
        if before.constants[name] is not after.constants[name]
        and identity(before.constants[name]) != identity(after.constants[name])
    }
    kept = _kept(before, after, rewritten)
    olds = [n for n in before.nodes if n.key not in kept]
    news = [n for n in after.nodes if n.key not in kept]
    yield from _grouped(before, after, olds, news, rewritten)
    partner = {n.key: n for n in after.nodes if n.bodies and n.key in kept}
    for node in before.nodes:
        if node.key in partner:
            for name, body in node.bodies.items():
                yield from changed_regions(body, partner[node.key].bodies[name])


def _kept(before: BodyRecord, after: BodyRecord, rewritten: set[str]) -> set[object]:
    """Keys of nodes that both sides have. Control flow is the same when its bodies take and give the same; what is in them is compared apart."""
    known = {node.key: node for node in after.nodes}
    kept: set[object] = set()
    for node in before.nodes:
        other = known.get(node.key)
        if other is None or rewritten & node.reads():
            continue
        frames = ((node.bodies[n], other.bodies[n]) for n in node.bodies)
        if all(a.inputs == b.inputs and a.outputs == b.outputs for a, b in frames):
            kept.add(node.key)
    return kept


def _grouped(
    before: BodyRecord, after: BodyRecord, olds: list[NodeRecord], news: list[NodeRecord], rewritten: set[str]
) -> Iterator[Region]:
    """Put together what hangs together by values that one side alone has, and what makes the same value."""
    groups = _Groups()
    for label, own, other, nodes in (("before", before, after, olds), ("after", after, before, news)):
        for place, node in enumerate(nodes):
            for name in {*filter(None, node.outputs), *node.reads()}:
                common = other.home(name) is not None and name not in rewritten
                if not common:
                    groups.join((label, place), (label, name))
                elif name in node.outputs and own.home(name) is own:
                    groups.join((label, place), ("both", name))
            groups.find((label, place))
    members: dict[object, tuple[list[NodeRecord], list[NodeRecord]]] = {}
    for side, (label, nodes) in enumerate((("before", olds), ("after", news))):
        for place, node in enumerate(nodes):
            members.setdefault(groups.find((label, place)), ([], []))[side].append(node)
    for old, new in members.values():
        region = _region(Side(before, old), Side(after, new), rewritten)
        if region.outputs:
            yield region


def _region(old: Side, new: Side, rewritten: set[str]) -> Region:
    made = dict.fromkeys(name for side in (old, new) for node in side.nodes for name in node.outputs if name)
    outputs = [n for n in made if n not in rewritten and old.body.home(n) is not None and new.body.home(n) is not None]
    moved = [n for n in outputs if not (old.makes(n) and new.makes(n))]
    inputs: dict[str, None] = {}
    for side in (old, new):
        own = {name for node in side.nodes for name in node.outputs}
        for name in (n for node in side.nodes for n in sorted(node.reads())):
            if name not in own and old.body.constant(name) is None and new.body.constant(name) is None:
                inputs[name] = None
    return Region(old, new, tuple(inputs), tuple(outputs), tuple(moved))


class _Groups:
    """Sets that grow together."""

    def __init__(self) -> None:
        self._above: dict[object, object] = {}

    def find(self, item: object) -> object:
        root = item
        while self._above.setdefault(root, root) != root:
            root = self._above[root]
        while self._above[item] != root:
            item, self._above[item] = self._above[item], root
        return root

    def join(self, a: object, b: object) -> None:
        self._above[self.find(a)] = self.find(b)
