"""Each pass for Ascend against its input, when it runs: what it changed is run before and after, in small pieces, on generated values.

Pieces of one structure are run once. A piece that cannot be run by itself is told with the reason; the comparison of the whole port covers it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.ascend.changed_regions import Region, changed_regions
from porting.ascend.graph_records import BodyRecord, ModelRecord, NodeRecord, identity, record_of
from porting.ascend.region_runs import FEW, Inputs, NotAlone, Surroundings, inputs_of, run_after, run_before
from porting.errors import PortingError, UnsupportedModel
from porting.types import Graph
from porting.verdict import printable

if TYPE_CHECKING:
    import onnx_ir as ir

Opsets = tuple[Mapping[str, int], Mapping[str, int]]  # before and after
NAMED = 3  # reasons that a record lists
LARGEST_NUMBER = 1e30  # beyond it a rounding may overflow on one side
# A rounding is off by half an epsilon; each node rounds, and errors of independent roundings add up as the root of their number. Sums of n
# terms in another order are off by about the root of n as much; of half numbers onnxruntime's kernels add up in float32. Four of these deviations.
DEVIATIONS = 4
RECURRENT = (
    "LSTM",
    "GRU",
    "RNN",
)  # onnxruntime's approximate tanh and sigmoid by roundings of 1, however small what they give is


@dataclass
class PassRecord:
    """What port.json says of a pass: how many pieces were compared, how far they were off, and what was not compared alone."""

    compared: int = 0
    alike: int = 0
    worst: float = 0.0
    bound: float = 0.0
    not_alone: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"compared": self.compared, "alike": self.alike, "worst_error": self.worst}
        if self.worst:
            found["bound"] = self.bound
        if self.not_alone:
            found["not_compared_alone"] = sum(self.not_alone.values())
            found["why"] = [reason for reason, _ in self.not_alone.most_common(NAMED)]
        return found


class PassComparison:
    """Compares as passes run: `begin` with what goes in, then called after each pass that changed something."""

    def __init__(self) -> None:
        self._before: ModelRecord | None = None
        self._around: _Sizes | None = None
        self._known: set[Any] = set()

    def begin(self, graph: Graph) -> None:
        self._before, self._around, self._known = record_of(graph.model), _Sizes(graph), set()

    def __call__(self, name: str, graph: Graph) -> Mapping[str, Any]:
        """What is to be recorded of the pass. raises: UnsupportedModel naming the pass and a node where a result is another"""
        assert self._before is not None and self._around is not None, "begin comes first"
        before, after = self._before, record_of(graph.model)
        self._before = after
        record = PassRecord()
        opsets = before.opsets, after.opsets
        for region in changed_regions(before.body, after.body):
            try:
                self._compare(name, region, opsets, record)
            except NotAlone as reason:
                record.not_alone[str(reason)[:200]] += 1
        return record.to_json()

    def _compare(self, name: str, region: Region, opsets: Opsets, record: PassRecord) -> None:
        """raises: NotAlone, UnsupportedModel"""
        assert self._around is not None
        if region.moved:
            raise NotAlone(f"{printable(region.moved[0], 80)} comes from another part of the model now")
        around = self._around.around(opsets)
        inputs = inputs_of(region, around)
        key = _structure(region, inputs, opsets)
        if key in self._known:
            record.alike += 1
            return
        wanted, fed = self._before_on_some(region, inputs, opsets)
        _require_plain(wanted)
        try:
            got = run_after(region, fed, around)
        except PortingError as error:
            raise _changed(name, region, f"it does not run any more: {error.what}") from error
        for output in region.outputs:
            off, bound = difference(wanted[output], got[output], region)
            if not off <= bound:
                how = f"{printable(output, 80)} is off by {off:.3g} of its largest number, bound {bound:.3g}"
                raise _changed(name, region, how)
            if off >= record.worst:
                record.worst, record.bound = off, bound
        self._known.add(key)
        record.compared += 1

    def _before_on_some(self, region: Region, inputs: Inputs, opsets: Opsets) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the region gave, and was fed, on the first values that it takes. raises: NotAlone of the first"""
        assert self._around is not None
        around = self._around.around(opsets)
        try:
            return run_before(region, inputs, around)
        except NotAlone as first:
            for drawing in (True, False):  # what is looked up by may be none above 1, or floats that are indices
                try:
                    around = self._around.around(opsets, least=True)
                    return run_before(region, inputs_of(region, around, drawing), around)
                except NotAlone:
                    continue
            raise first


def _changed(name: str, region: Region, how: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the pass {name} changed what is computed: {how}",
        where=f"node {printable(region.node, 80)}",
        next="this is a mistake in the pass, not in the model: please report it with the node",
    )


def _require_plain(outputs: Mapping[str, Any]) -> None:
    """raises: NotAlone where generated values lead to nothing that can be compared"""
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise NotAlone(f"{name} is no tensor of numbers")
        if array.size and array.dtype.kind == "f" and not np.any(np.abs(array.astype(np.float64)) < LARGEST_NUMBER):
            raise NotAlone(f"generated values give no finite number in {name}")


def difference(wanted: np.ndarray, got: Any, region: Region) -> tuple[float, float]:
    """The largest error as a part of the largest number, and its bound. Infinite where type, shape, or the places of NaN and infinity differ."""
    if not isinstance(got, np.ndarray) or got.dtype != wanted.dtype or got.shape != wanted.shape:
        return math.inf, 0.0
    if wanted.dtype.kind != "f":
        return (0.0 if np.array_equal(wanted, got) else math.inf), 0.0
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    plain = np.isfinite(a)
    if not np.array_equal(a[~plain], b[~plain], equal_nan=True) or not np.isfinite(b[plain]).all():
        return math.inf, 0.0
    if not plain.any():
        return 0.0, 0.0
    least = 1.0 if any(node.op in RECURRENT for node in region.before.nodes) else 1e-6
    scale = max(float(np.abs(a[plain]).max()), least)
    return float(np.abs(a[plain] - b[plain]).max()) / scale, bound_of(region, wanted.dtype)


def bound_of(region: Region, dtype: np.dtype[Any]) -> float:
    """See DEVIATIONS."""
    nodes = max(len(region.before.nodes), len(region.after.nodes))
    axes = [d for side in (region.before, region.after) for n in side.nodes for v in n.inputs for d in _dims(side.body, v)]
    terms = max((d for d in axes if isinstance(d, int)), default=1) if dtype != np.float16 else 1
    half = any(_is_half(side.body, v) for side in (region.before, region.after) for n in side.nodes for v in n.inputs)
    epsilon = float(np.finfo(np.float16 if half else dtype).eps)
    return DEVIATIONS * epsilon / 2 * math.sqrt(nodes) * math.sqrt(max(terms, 1))


def _dims(body: BodyRecord, name: str) -> tuple[int | str | None, ...]:
    tensor = body.constant(name) if name else None
    if tensor is not None:
        return tuple(d for d in tensor.shape if isinstance(d, int))
    return (body.type_of(name)[1] or ()) if name else ()


def _is_half(body: BodyRecord, name: str) -> bool:
    kind = body.type_of(name)[0] if name else None
    return kind is not None and kind.tensor_type.elem_type in (10, 16)  # FLOAT16, BFLOAT16


# --- which pieces are alike ---------------------------------------------------------------------------------------


def _structure(region: Region, inputs: Inputs, opsets: Opsets) -> Any:
    """Equal for regions that compute the same of values of the same shapes, whatever these are called."""
    names: dict[str, int] = {}
    parts: list[Any] = [tuple(sorted(one.items())) for one in opsets]
    for side in (region.before, region.after):
        parts.append([_node_structure(node, names) for node in side.nodes])
        for name in dict.fromkeys(n for node in side.nodes for n in sorted(node.reads(), key=lambda n: names[n])):
            tensor = side.body.constant(name)
            if tensor is not None:
                parts.append((names[name], _kind_of(tensor)))
    for name, array in inputs.drawn.items():
        if name in names:
            parts.append((names[name], array.dtype.name, array.shape))
    parts.append(sorted((names[n], _shape_of(region, n)) for n in inputs.computed if n in names))
    parts.append([names[name] for name in region.outputs])
    return repr(parts)


def _kind_of(tensor: ir.TensorProtocol) -> Any:
    """Integers and few floats say what is computed; of more floats only the shape is told apart."""
    if tensor.dtype.is_floating_point() and tensor.size > FEW:
        return tensor.dtype.name, tuple(tensor.shape)
    return identity(tensor)


def _shape_of(region: Region, name: str) -> str:
    kind, dims = region.before.body.type_of(name)
    return f"{None if kind is None else kind.tensor_type.elem_type} {None if dims is None else len(dims)}"


def _node_structure(node: NodeRecord, names: dict[str, int]) -> Any:
    def number(name: str) -> int:
        return names.setdefault(name, len(names)) if name else -1

    op, domain, version, _, _, attributes, _ = node.key
    head = (op, domain, version, attributes, [number(n) for n in node.inputs], [number(n) for n in node.outputs])
    inside = []
    for label, body in sorted(node.bodies.items()):
        frame = [number(n) for n in (*body.inputs, *body.outputs)]
        constants = [(number(name), _kind_of(tensor)) for name, tensor in body.constants.items()]
        inside.append((label, frame, constants, [_node_structure(inner, names) for inner in body.nodes]))
    return (*head, inside)


# --- sizes of free dimensions -------------------------------------------------------------------------------------


class _Sizes:
    """What a model is fed, and the dimensions that follow for its values, where its inputs leave some free."""

    def __init__(self, graph: Graph) -> None:
        from porting.feed_values import CHOICES, feeds_for, kind_of
        from porting.feeds import candidate_sizes
        from porting.port_writer import specs_of

        specs = [s for s in specs_of(graph.model) if s.dtype != "string" and "(" not in s.dtype and s.shape != ("...",)]
        sizes = next(candidate_sizes(specs), {})
        least = {s.name: CHOICES[kind_of(s)][-1] for s in specs if kind_of(s) in CHOICES}
        signed = {s.name: (-9, 10) for s in specs if kind_of(s) in ("ids", "integers") and s.dtype.startswith("int")}
        # seed 1: with an even one, state is zero
        self._fed = [
            feeds_for(specs, sizes, 1, {**signed, **graph.ranges}),
            feeds_for(specs, sizes, 1, graph.ranges, least),
        ]
        for name in signed.keys() - graph.ranges.keys():
            self._fed[0][name][self._fed[0][name] == 0] = 1  # nothing is divided by zero
        for fed in self._fed:
            scalars = {n: v for n, v in graph.defaults.items() if n in fed and not fed[n].shape}
            fed |= {name: np.asarray(number, fed[name].dtype) for name, number in scalars.items()}
        self._free = any(not isinstance(d, int) for v in graph.model.graph.inputs for d in v.shape or ("?",))
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._note(graph.model)

    def around(self, opsets: Opsets, least: bool = False) -> Surroundings:
        """least: inputs of integers hold nothing but 0 and 1, or what their range begins with; floats too, which may be indices"""
        fed = self._fed[least]
        if least:
            fed = {n: (a > 0).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in fed.items()}
        return Surroundings(opsets, self._sizes, fed, least)

    def _note(self, model: ir.Model) -> None:
        """Work the dimensions out anew with the inputs at the sizes that are fed."""
        if not self._free:
            return
        import onnx_ir as ir

        from porting.converters.passes.infer_shapes import infer_shapes
        from porting.converters.passes.rewriting import bodies_of

        fixed = model.clone()
        for value in fixed.graph.inputs:
            if str(value.name) in self._fed[0]:
                value.shape = ir.Shape(self._fed[0][str(value.name)].shape)
        infer_shapes.change(fixed)
        for body in bodies_of(fixed):
            for value in (*body.inputs, *(v for node in body for v in node.outputs)):
                dims = None if value.shape is None else tuple(d for d in value.shape if isinstance(d, int))
                if dims is not None and value.shape is not None and len(dims) == len(value.shape):
                    self._sizes.setdefault(str(value.name), dims)
