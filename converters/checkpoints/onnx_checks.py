"""What a .onnx file has to keep to before anything is done with it: versions, operators, names, order, and nothing random.

What onnxruntime 1.31 takes passes, old habits included; what it would refuse, or what would give other numbers each time, is refused
here with the node's name. The message is put in order on the way: every node named, "ai.onnx" spelled "", imports once each, nodes
sorted, dimensions of -1 unknown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from porting.errors import CheckpointError, DeviceUnavailable, UnsupportedModel
from porting.onnx_facts import RANDOM, RANDOM_IN_TRAINING

from .onnx_order import Body, bodies, put_in_order, sort, standard, subgraphs_of
from .onnx_signatures import did_you_mean, require_signature
from .onnx_tensors import TensorFiles
from .onnx_wire import FETCH_AGAIN

# onnxruntime 1.31 runs 25 and 26 too, but the canonical form is opset 24: newer operators have no older spelling
MIN_OPSET, MAX_OPSET = 6, 24
MAX_IR = 13  # onnxruntime 1.31's. 14 adds two dtypes, refused by name, and a type; a file without them says the same with 13
NEWEST_IR = 14
# domains that onnxruntime 1.31 knows, and the newest version of each that it loads
DOMAINS = {"ai.onnx.ml": 5, "com.microsoft": 1, "com.microsoft.nchwc": 1, "com.ms.internal.nhwc": 26}
TRAINING = ("ai.onnx.training", "ai.onnx.preview.training")
# operators that onnxruntime registers itself in ONNX's domain, as version 1; tried at opset 9, 11 and 17
RUNTIME_ONLY = frozenset({"SimplifiedLayerNormalization", "LayerNormalization", "ThresholdedRelu"})
STILL_RUN = frozenset({"GroupNormalization"})  # deprecated, and yet onnxruntime runs it at opset 18
# where an attribute of a type keeps its message
SINGLE_FIELDS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
}
MAX_NODES = 1_000_000  # the largest graph of our test models has 1,105


def checked(model: onnx.ModelProto, files: TensorFiles) -> onnx.ModelProto:
    """The same message, put in order.

    raises: CheckpointError (damaged, contradicts itself, external data that cannot be used), UnsupportedModel (versions, domains,
            operators and randomness that are not covered)
    """
    if not model.HasField("graph") or not model.graph.output:
        raise CheckpointError(f"{files.path.name} holds no graph with an output", where=str(files.path), next=FETCH_AGAIN)
    put_in_order(model)
    _Model(model, files).check()
    return model


@cache
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@dataclass
class _Scope:
    """A graph while it is walked.

    names:     every value of the graph, wherever it is made
    made:      those made before the node that is looked at
    constants: tensors by name
    """

    names: set[str]
    made: set[str]
    outer: _Scope | None
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def sees(self, name: str) -> bool:
        return name in self.names or (self.outer is not None and self.outer.sees(name))

    def made_before(self, name: str) -> bool:
        return name in self.made or (self.outer is not None and self.outer.made_before(name))

    def constant(self, name: str) -> onnx.TensorProto | None:
        if name in self.names or self.outer is None:
            return self.constants.get(name)
        return self.outer.constant(name)


class _Model:
    """The checks of one model, with what they share."""

    def __init__(self, model: onnx.ModelProto, files: TensorFiles) -> None:
        self._model, self._files = model, files
        self._path: Path = files.path
        self._functions = {(f.domain, f.name, f.overload): f for f in model.functions}

    def check(self) -> None:
        self._check_ir_version()
        imports = self._imports(self._model, "")
        self._check_functions(imports)
        self._check_graph(self._model.graph, None, imports, str(self._path))
        del self._model.opset_import[:]
        self._model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in imports.items())

    # --- versions ---------------------------------------------------------------------------------------------------

    def _check_ir_version(self) -> None:
        version = self._model.ir_version
        if version < 1:
            raise CheckpointError(f"{self._path.name} has no IR version", where=str(self._path), next=FETCH_AGAIN)
        if version > NEWEST_IR:
            raise UnsupportedModel(
                f"{self._path.name} has IR version {version}; known: 1 to {NEWEST_IR}",
                where=str(self._path),
                next="save it with an older version of onnx, or set model.ir_version",
            )
        self._model.ir_version = min(version, MAX_IR)

    def _imports(self, owner: onnx.ModelProto | onnx.FunctionProto, place: str) -> dict[str, int]:
        """Domain -> version. raises: CheckpointError (a domain with two versions), UnsupportedModel (outside the range)"""
        where, imports = f"{self._path}{place}", dict[str, int]()
        for entry in owner.opset_import:
            domain = standard(entry.domain)
            if imports.setdefault(domain, entry.version) != entry.version:
                raise CheckpointError(
                    f"domain {domain or 'ai.onnx'!r} is imported as version {imports[domain]} and as {entry.version}",
                    where=where,
                )
            if domain == "" and not MIN_OPSET <= entry.version <= MAX_OPSET:
                raise UnsupportedModel(
                    f"opset {entry.version} is not covered: {MIN_OPSET} to {MAX_OPSET} are",
                    where=where,
                    next=f"export it again with an opset from {MIN_OPSET} to {MAX_OPSET}; "
                    "onnx.version_converter.convert_version() may bring an old file there",
                )
            if entry.version > DOMAINS.get(domain, entry.version):
                raise UnsupportedModel(
                    f"version {entry.version} of domain {domain!r} is not covered: onnxruntime knows {DOMAINS[domain]}",
                    where=where,
                )
        return imports

    # --- functions --------------------------------------------------------------------------------------------------

    def _check_functions(self, imports: dict[str, int]) -> None:
        """Model-local functions: once each, none that calls itself, and operators that mean the same in the graph."""
        if len(self._functions) != len(self._model.functions):
            raise CheckpointError("a model-local function is defined twice", where=str(self._path), next=FETCH_AGAIN)
        calls: dict[Any, Counter[Any]] = {}
        for key, function in self._functions.items():
            name = f"{function.domain}::{function.name}"
            where = f"{self._path}, function {name}"
            self._require_own_name(function, where)
            own = self._imports(function, f", function {name}")
            nodes = [node for owner in bodies(function) for node in owner.node]
            calls[key] = Counter(_identity(node) for node in nodes)
            for node in nodes:
                self._require_same_meaning(node, own, imports, where)
            _Walk(self._files, self._functions, own).function(function, where)
            for domain in own.keys() & DOMAINS.keys():
                imports.setdefault(domain, own[domain])
        self._require_finite(calls)

    def _require_own_name(self, function: onnx.FunctionProto, where: str) -> None:
        """onnxruntime 1.31 takes an operator that it has for a function of that name, whatever the function says. raises: UnsupportedModel"""
        domain, name = function.domain, function.name
        if domain in ("", "ai.onnx.ml"):
            taken = bool(_schema(name, DOMAINS.get(domain, MAX_OPSET), domain)) or (domain == "" and name in RUNTIME_ONLY)
        else:
            taken = domain in DOMAINS and _in_onnxruntime(domain, name)
        if taken:
            raise UnsupportedModel(
                f"a model-local function is called like the operator {name} of {domain or 'ai.onnx'}, which onnxruntime runs in its place",
                where=where,
                next="leave the function out if it says what the operator computes, else give it a domain of its own",
            )

    def _require_finite(self, calls: dict[Any, Counter[Any]]) -> None:
        """No function calls itself, and all of them inlined are not too many nodes: ten levels of ten calls are 10 billion.

        calls: of each function, its nodes by operator
        raises: CheckpointError, UnsupportedModel
        """
        sizes: dict[Any, int] = {}
        while calls:
            leaves = [key for key, called in calls.items() if not called.keys() & calls.keys()]
            if not leaves:
                names = ", ".join(f"{d}::{n}" for d, n, _ in list(calls)[:5])
                raise CheckpointError(
                    f"model-local functions call themselves: {names}", where=str(self._path), next=FETCH_AGAIN
                )
            for key in leaves:
                sizes[key] = sum(count * sizes.get(called, 1) for called, count in calls.pop(key).items())
        nodes = [node for owner in bodies(self._model.graph) for node in owner.node]
        total = sum(sizes.get(_identity(node), 1) for node in nodes)
        if total > MAX_NODES:
            raise UnsupportedModel(
                f"the graph has {total:,} nodes once its functions are inlined; at most {MAX_NODES:,} are taken",
                where=str(self._path),
            )

    def _require_same_meaning(self, node: onnx.NodeProto, own: dict[str, int], imports: dict[str, int], where: str) -> None:
        """An operator of a function has to be the same one at the model's version, where the function will be inlined."""
        domain = node.domain
        if domain not in ("", *DOMAINS) or domain not in own or _identity(node) in self._functions:
            return
        there = imports.setdefault(domain, own[domain])
        ours, theirs = _schema(node.op_type, own[domain], domain), _schema(node.op_type, there, domain)
        if own[domain] != there and ours and (theirs is None or ours.since_version != theirs.since_version):
            raise UnsupportedModel(
                f"{node.op_type} is another version at opset {own[domain]}, which the function imports, than at {there}, "
                "which the model does",
                where=f"{where}, node {node.name!r}",
                next="export the model again, with one opset for all of it",
            )

    def _check_graph(self, graph: onnx.GraphProto, outer: _Scope | None, imports: dict[str, int], where: str) -> None:
        walk = _Walk(self._files, self._functions, imports)
        walk.graph(graph, outer, where)
        if "" not in imports:  # nothing uses it, or the walk had refused; the passes write operators of this domain
            imports[""] = MAX_OPSET


def _identity(node: onnx.NodeProto) -> tuple[str, str, str]:
    """What names an operator or a function."""
    return node.domain, node.op_type, node.overload


class _Walk:
    """One graph or function with all below it. Sparse tensors are written out on the way: onnxruntime does it too, onnx-ir has none."""

    def __init__(self, files: TensorFiles, functions: dict[Any, onnx.FunctionProto], imports: dict[str, int]) -> None:
        self._files, self._functions, self._imports = files, functions, imports

    def function(self, function: onnx.FunctionProto, where: str) -> None:
        """raises: CheckpointError, UnsupportedModel"""
        self._body(function, list(function.input), list(function.output), {}, None, where)

    def graph(self, graph: onnx.GraphProto, outer: _Scope | None, where: str) -> set[str]:
        """The names that a graph reads from those around it. raises: CheckpointError, UnsupportedModel"""
        constants: dict[str, onnx.TensorProto] = {}
        names = []
        for tensor in graph.initializer:
            (self._files.stored if outer is None else self._files.require_inside)(tensor, where)
            constants[tensor.name] = tensor
            names.append(tensor.name)
        for sparse in graph.sparse_initializer:
            names.append(sparse.values.name)
            graph.initializer.append(self._files.dense(sparse, where))
        del graph.sparse_initializer[:]
        inputs = [value.name for value in graph.input]
        _require_once(names, "initializer", where)
        _require_once(inputs, "input", where)
        both = [*inputs, *(n for n in names if n not in set(inputs))]
        return self._body(graph, both, [value.name for value in graph.output], constants, outer, where)

    def _body(
        self,
        owner: Body,
        given: list[str],
        outputs: list[str],
        constants: dict[str, onnx.TensorProto],
        outer: _Scope | None,
        where: str,
    ) -> set[str]:
        makers: dict[str, int] = {}
        names = set(given)
        for index, node in enumerate(owner.node):
            for output in filter(None, node.output):
                if output in names:
                    raise CheckpointError(
                        f"{output!r} is made twice",
                        where=f"{where}, node {node.name!r}",
                        next="give every value a name of its own",
                    )
                names.add(output)
                makers[output] = index
        scope = _Scope(names, set(given), outer, constants)
        captured: set[str] = set()
        reads: list[set[str]] = []
        for node in owner.node:
            here = f"{where}, node {node.name!r}"
            self._node(node, scope, here)
            wanted = set(filter(None, node.input))
            for body in subgraphs_of(node):
                wanted |= self.graph(body, scope, here)
            reads.append(wanted & makers.keys())
            missing = sorted(name for name in wanted - names if outer is None or not outer.sees(name))
            if missing:
                raise CheckpointError(
                    f"{node.op_type} reads {missing[0]!r}, which nothing makes",
                    where=here,
                    next=did_you_mean(missing[0], names) or FETCH_AGAIN,
                )
            captured |= wanted - names
            scope.made.update(filter(None, node.output))
        for name in outputs:
            if name not in names:
                raise CheckpointError(
                    f"the output {name!r} is made by nothing in its graph",
                    where=where,
                    next=did_you_mean(name, names) or FETCH_AGAIN,
                )
        sort(owner, makers, reads, where)
        return captured

    def _node(self, node: onnx.NodeProto, scope: _Scope, where: str) -> None:
        """Operator, attributes, names, randomness. raises: CheckpointError, UnsupportedModel"""
        for name in filter(None, node.output):
            if scope.outer is not None and scope.outer.made_before(name):
                raise CheckpointError(
                    f"{name!r} is made twice: in a graph and inside it", where=where, next="give every value a name of its own"
                )
        _require_once([attribute.name for attribute in node.attribute], "attribute", where)
        for attribute in node.attribute:
            single = SINGLE_FIELDS.get(attribute.type)
            empty = single and not attribute.HasField(single) and not attribute.ref_attr_name
            if empty or attribute.type == onnx.AttributeProto.UNDEFINED:
                raise CheckpointError(
                    f"attribute {attribute.name!r} {'is empty' if empty else 'has no type'}", where=where, next=FETCH_AGAIN
                )
            if attribute.HasField("sparse_tensor") and node.op_type == "Constant":
                attribute.CopyFrom(onnx.helper.make_attribute("value", self._files.dense(attribute.sparse_tensor, where)))
            elif attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise UnsupportedModel("a sparse tensor as an attribute is not covered", where=where)
            for tensor in [attribute.t] if attribute.HasField("t") else attribute.tensors:
                self._files.require_inside(tensor, where)
                if node.op_type == "Constant" and len(node.output) == 1:
                    scope.constants[node.output[0]] = tensor
        self._require_known(node, where)
        self._require_fixed(node, scope, where)

    def _require_known(self, node: onnx.NodeProto, where: str) -> None:
        domain, op_type = node.domain, node.op_type
        if _identity(node) in self._functions:
            return
        if domain in TRAINING:
            raise UnsupportedModel(
                f"{domain}::{op_type} belongs to training", where=where, next="export the model for inference"
            )
        if domain not in ("", *DOMAINS):
            known = ", ".join(["ai.onnx", *DOMAINS])
            raise UnsupportedModel(
                f"unknown domain {domain!r} of operator {op_type!r}",
                where=where,
                next=f"known: {known}, and functions that the model brings along; a custom operator has to be exported as one",
            )
        if domain not in self._imports:
            if domain == "":
                raise CheckpointError(
                    f"the file does not say which opset {op_type!r} belongs to", where=where, next=FETCH_AGAIN
                )
            self._imports[domain] = DOMAINS[domain]  # as onnxruntime does
        if domain in ("", "ai.onnx.ml") and not (domain == "" and op_type in RUNTIME_ONLY):
            self._require_in_opset(node, where)

    def _require_in_opset(self, node: onnx.NodeProto, where: str) -> None:
        domain, op_type, version = node.domain, node.op_type, self._imports[node.domain]
        schema = _schema(op_type, version, domain)
        label = f"{domain or 'ai.onnx'} {version}"
        if schema is None:
            later = [s.since_version for s in _history(domain) if s.name == op_type]
            known = {s.name for s in _history(domain) if s.since_version <= version}
            came = f"it came with version {min(later)}; export again with that opset" if later else did_you_mean(op_type, known)
            raise UnsupportedModel(f"unknown operator {op_type!r} in {label}", where=where, next=came)
        if schema.deprecated and op_type not in STILL_RUN:
            raise UnsupportedModel(
                f"operator {op_type!r} was withdrawn in version {schema.since_version}, the file says {label}", where=where
            )
        require_signature(node, schema, label, where)

    def _require_fixed(self, node: onnx.NodeProto, scope: _Scope, where: str) -> None:
        """Seeded, or not random. A seed that comes from the caller of a function may be missing there, and does not count."""
        if any(a.name == "seed" and not a.ref_attr_name for a in node.attribute):
            return
        if node.domain == "" and node.op_type in RANDOM:
            raise UnsupportedModel(
                f"{node.op_type} gives other numbers in every run, and has no seed",
                where=where,
                next="feed the random numbers as an input; with a seed onnxruntime repeats a session, but not a run",
            )
        index = RANDOM_IN_TRAINING.get((node.domain, node.op_type))
        if index is None or index >= len(node.input) or not node.input[index]:
            return
        mode = scope.constant(node.input[index])
        if mode is None or self._files.values(mode, where).any():
            raise UnsupportedModel(
                f"{node.op_type} {'trains' if mode is not None else 'may train'}: its results are random, and it has no seed",
                where=where,
                next="export the model for inference (model.eval()), with training_mode a constant false",
            )


def _require_once(names: list[str], kind: str, where: str) -> None:
    for name, count in Counter(names).items():
        if not name or count > 1:
            what = f"{kind} {name!r} is there {count} times" if name else f"an {kind} has no name"
            raise CheckpointError(what, where=where, next="give every value a name of its own")


@cache
def _in_onnxruntime(domain: str, name: str) -> bool:
    """Whether onnxruntime has an operator; where there is none to ask, it may have."""
    from porting.backends.onnxruntime import import_runtime
    from porting.backends.onnxruntime_kernels import knows_operator

    try:
        return knows_operator(import_runtime("cpu"), domain, name, DOMAINS[domain])
    except DeviceUnavailable:
        return True


@cache
def _history(domain: str) -> tuple[onnx.defs.OpSchema, ...]:
    return tuple(s for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain)
