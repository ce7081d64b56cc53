"""Which nodes onnxruntime has no kernel for, asked of onnxruntime itself, one small model per kind of node."""

from __future__ import annotations

from typing import Any

import onnx

from porting.backends.onnx_program import node_label, read_model, subgraphs
from porting.types import Program, Unsupported

# what onnxruntime says when there is no kernel; any other refusal of a node on its own may be due to what it lacks there
_NO_OPERATOR = "is not a registered function/op"
_NO_KERNEL = ("Could not find an implementation for", _NO_OPERATOR)
_INLINE_BYTES = 1024  # larger initialisers are not needed to infer dtypes


def missing_kernels(runtime: Any, program: Program, provider: str) -> list[Unsupported]:
    """Nodes whose operator, version and input dtypes have no kernel in this build for `provider` or the CPU.

    A node is tried in a session of its own without optimisations, one per distinct (operator, version, dtypes). What it cannot
    see: nodes with an input of unknown dtype (behind operators without type inference, mostly com.microsoft), kernels that
    refuse an attribute or a shape, and on an accelerator nodes that only the CPU can run. `prepare` refuses those.
    The branches of an `If` with a constant condition are left alone: onnxruntime may drop one of them first. Other nodes may go that way
    too, folded or fused, so a model that onnxruntime takes as a whole has none of these.

    raises: InputError for a model that cannot be read
    """
    model = read_model(program)
    dtypes: dict[str, int] = {}
    _infer_dtypes(model)
    versions = {_domain(o.domain): o.version for o in model.opset_import}
    tried: dict[tuple, str] = {}
    found: list[Unsupported] = []
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        _collect_dtypes(graph, dtypes)
        constant = {i.name for i in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
        for node in graph.node:
            bodies = list(subgraphs(node))
            if bodies:
                if not (node.op_type == "If" and node.input[0] in constant):
                    pending += bodies
                continue
            types = tuple(dtypes.get(name) if name else 0 for name in node.input)
            if node.op_type == "Constant" or None in types:
                continue
            signature = (_domain(node.domain), node.op_type, types, _output_dtypes(node), len(node.output))
            if signature not in tried:
                tried[signature] = _refusal(runtime, model, node, types, provider)
            if tried[signature]:
                version = versions.get(_domain(node.domain), 0)
                given = ", ".join(onnx.TensorProto.DataType.Name(t).lower() for t in types if t)
                reason = f"{tried[signature]} (opset {version}, inputs {given})"
                found.append(Unsupported(node_label(node), node.op_type, _domain(node.domain), reason))
    return [] if found and _takes(runtime, program, provider) else found


def knows_operator(runtime: Any, domain: str, op_type: str, version: int) -> bool:
    """Whether onnxruntime has an operator of that name of its own. It then takes that one, also where a model defines a function so called."""
    node = onnx.helper.make_node(op_type, [], ["y"], domain=domain)
    graph = onnx.helper.make_graph([node], "one", [], [onnx.ValueInfoProto(name="y")])
    alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(domain, version)], ir_version=8)
    data = alone.SerializeToString()
    try:
        runtime.InferenceSession(data, _quiet(runtime), providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # that nothing is fed, mostly, when it knows the operator
        return _NO_OPERATOR not in str(error)
    return True


def _takes(runtime: Any, program: Program, provider: str) -> bool:
    """Whether onnxruntime makes a session of the whole model, optimisations included."""
    options = _quiet(runtime)
    try:
        model = program.model if isinstance(program.model, bytes) else str(program.model)
        runtime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    except Exception:  # `prepare` says why, in our words
        return False
    return True


def _quiet(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _infer_dtypes(model: onnx.ModelProto) -> None:
    """Fill in value_info; large initialisers lose their data, which is neither needed nor wanted in the copy made on the way."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _INLINE_BYTES or len(tensor.float_data) > _INLINE_BYTES // 4:
            shape, data_type, name = list(tensor.dims), tensor.data_type, tensor.name
            tensor.Clear()
            tensor.dims.extend(shape)
            tensor.data_type, tensor.name, tensor.data_location = data_type, name, onnx.TensorProto.EXTERNAL
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # an inconsistent graph: without dtypes less is listed here, and `prepare` says what is wrong
        return
    model.graph.CopyFrom(inferred.graph)


def _collect_dtypes(graph: onnx.GraphProto, dtypes: dict[str, int]) -> None:
    for tensor in graph.initializer:
        dtypes[tensor.name] = tensor.data_type
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type:
            dtypes.setdefault(value.name, value.type.tensor_type.elem_type)


def _output_dtypes(node: onnx.NodeProto) -> tuple:
    """The attributes that choose a dtype: `to` of Cast, `dtype` of EyeLike, the tensor of ConstantOfShape."""
    chosen = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            chosen.append((attribute.name, attribute.t.data_type))
        elif attribute.name == "to" or attribute.name.endswith("dtype"):
            chosen.append((attribute.name, attribute.i))
    return tuple(chosen)


def _refusal(runtime: Any, model: onnx.ModelProto, node: onnx.NodeProto, types: tuple, provider: str) -> str:
    """Why onnxruntime has no kernel for this node; empty when it has one or refuses for another reason."""
    names = [name for name in dict.fromkeys(node.input) if name]
    of = dict(zip(node.input, types, strict=True))
    inputs = [onnx.helper.make_tensor_value_info(name, of[name], None) for name in names]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    single = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import, ir_version=model.ir_version
    )
    single.functions.extend(model.functions)
    options = _quiet(runtime)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        runtime.InferenceSession(single.SerializeToString(), options, providers=[provider], enable_fallback=0)
    except Exception as error:
        if any(text in str(error) for text in _NO_KERNEL):
            return "onnxruntime has no kernel for it"
    return ""


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
