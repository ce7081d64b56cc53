"""Where a graph can be cut so that what an Ascend SoC does not take stays on the host: `--outputs a --outputs b`.

                 conv ── boxes ──┐                       conv ── boxes
    image ── ...               NonMaxSuppression ── ...
                 conv ── scores ─┘                       conv ── scores

From the nodes that are in the way, down to the end: all that hangs on them goes. What it reads becomes an output, where that is a tensor of
numbers with a size of its own; else the node that makes it goes too. A guess that costs the model itself is none, and is not made.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from porting.ascend.sizes import Sizes
from porting.conversion import Canonical
from porting.cuts import spelled
from porting.types import Graph, is_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from porting.ascend.checking import Judged

LARGEST_PART = 0.1  # of the weights: what reads more of them is no last step
FEWEST = 65  # elements of a weight; less are thresholds, axes and the like


def cut_for(canonical: Canonical, result: Judged) -> tuple[str, ...]:
    """Options that cut off what blocks a graph, and nodes whose sizes hang on numbers that are fed, which gears do not take.

    () where nothing does, or that does not help
    """
    if result.mode.blocker:
        return ()
    blocking = {finding.node or "" for finding in result.blocking}
    sizing = {node.name for node in result.facts.nodes if node.sized_by_values}
    return cut_here(canonical, blocking | sizing) or cut_here(canonical, blocking)


def advice(options: Sequence[str]) -> str:
    """In words; "" without any."""
    return f"cut it off, and run what comes after on the host: {shlex.join(options)}" if options else ""


def cut_here(canonical: Canonical, in_the_way: Collection[str]) -> tuple[str, ...]:
    """Options that cut nodes off a file, as they are typed; () where that does not help, or nothing can be cut.

    canonical:  with the graph that was read, whatever its sizes
    in_the_way: names of nodes; "" is the graph as a whole
    """
    source = canonical.source
    if not is_graph(source) or source.cut is None or not in_the_way or "" in in_the_way:
        return ()
    outputs = last_values(canonical.graph, in_the_way, value_names(source.graph()))
    fixed = [part for name, value in source.cut.fixed.items() for part in ("--fix", f"{name}={spelled(value)}")]
    return (*fixed, *(part for name in outputs for part in ("--outputs", name))) if outputs else ()


def value_names(graph: Graph) -> set[str]:
    """What nodes of a graph make, bodies apart."""
    return {str(value.name) for node in graph.model.graph for value in node.outputs if value.name}


def last_values(graph: Graph, in_the_way: Collection[str], names: Collection[str]) -> list[str]:
    """Values at which a graph can end, those of its outputs that stay before the others; [] where there are none.

    in_the_way: names of nodes, bodies included
    names:      the values that a user can name
    """
    body = graph.model.graph
    nodes = list(body)
    holders = {inner.name: index for index, node in enumerate(nodes) for inner in _with_inner(node)}
    if not all(name in holders for name in in_the_way):
        return []
    sizes = Sizes()
    _follow(sizes, body)
    places = {node: index for index, node in enumerate(nodes)}
    reads = [_reads(node) for node in nodes]
    gone = _behind({holders[name] for name in in_the_way}, nodes, reads, places)
    while True:
        frontier = _frontier(body, gone, reads, places, sizes)
        also = {places[value.producer()] for value in frontier if not _can_end(value, names, sizes)}  # type: ignore[index]
        if not also:
            break
        gone = _behind(gone | also, nodes, reads, places)
    if not frontier or _weights(nodes, gone) > LARGEST_PART * _weights(nodes, range(len(nodes))):
        return []
    found = [str(value.name) for value in frontier]
    return found if all(pair.output in found for pair in graph.state.pairs) else []


def _frontier(
    body: ir.Graph, gone: set[int], reads: list[set[ir.Value]], places: dict[ir.Node, int], sizes: Sizes
) -> list[ir.Value]:
    """What is left and read by what is gone, or by the caller: made by a node, and no constant."""
    given = [value for value in body.outputs if value.producer() in places]
    read = sorted(
        {value for index in gone for value in reads[index] if value not in sizes.numbers and value.producer() in places},
        key=lambda value: (places[value.producer()], value.index() or 0),  # type: ignore[index]
    )
    kept = dict.fromkeys(value for value in (*given, *read) if places[value.producer()] not in gone)  # type: ignore[index]
    return list(kept)


def _can_end(value: ir.Value, names: Collection[str], sizes: Sizes) -> bool:
    """Whether a value can be an output: the user can name it, and it is a tensor of numbers whose size hangs on nothing that is fed."""
    import onnx_ir as ir

    if value.name not in names or value in sizes.unsized or value.dtype is None or not isinstance(value.type, ir.TensorType):
        return False
    return value.is_graph_output() or value.dtype.is_integer() or value.dtype.is_floating_point()


def _behind(start: set[int], nodes: list[ir.Node], reads: list[set[ir.Value]], places: dict[ir.Node, int]) -> set[int]:
    """Nodes, and all that hangs on them. A graph is in order: what a node reads is made before it."""
    gone = set(start)
    for index in range(len(nodes)):
        if any(places.get(value.producer(), -1) in gone for value in reads[index]):  # type: ignore[arg-type]
            gone.add(index)
    return gone


def _weights(nodes: list[ir.Node], chosen: Iterable[int]) -> int:
    """Elements of the weights that nodes read."""
    tensors = {id(v): v.const_value for i in chosen for v in _values(nodes[i]) if v.const_value is not None}
    counts = [math.prod(tensor.shape.numpy()) for tensor in tensors.values()]
    return sum(count for count in counts if count >= FEWEST)


def _values(node: ir.Node) -> Iterator[ir.Value]:
    for inner in _with_inner(node):
        yield from (value for value in inner.inputs if value is not None)


def _reads(node: ir.Node) -> set[ir.Value]:
    """Values around a node that it reads, those that its bodies read too."""
    return set(_values(node)) | {value for inner in _with_inner(node) for body in _bodies(inner) for value in body.outputs}


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for body in _bodies(node):
        for inner in body:
            yield from _with_inner(inner)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type.name == "GRAPH"]


def _follow(sizes: Sizes, body: ir.Graph) -> None:
    sizes.enter(body)
    for node in body:
        for inner in _bodies(node):
            _follow(sizes, inner)
        sizes.follow(node)
