"""How the simulated device computes: what a precision mode, its files and the SoC make of a graph.

    mode                              nodes store                                   source
    origin, must_keep_origin_dtype    what the graph says                           documented
    fp16, force_fp16 (the default)    fp16                                          documented
    allow_fp32_to_fp16                matrix operators fp16, the others float32     documented
    cube_fp16in_fp32out, force_fp32   matrix operators read fp16, store float32     documented
    mixed_float16, mixed_bfloat16     all of it, but what the black list has        guessed: the vendor's lists were not read
    allow_fp32_to_bf16                what the graph says                           inferred

What nodes store is rounded once where they store it (porting/ascend/rounded_graph.py), on 310, 310P, 310B and 910A saturated, else Inf and NaN.
Exceptions: keep_dtype (but under origin), customize_dtypes, modify_mixlist (mixed modes only); the matrix unit of 310, 310P and 910A takes fp16
whatever a file says. HF32 is not in effect: the page on --allow_hf32 says that the option is reserved. `shortened` is for torch_npu, where it is.

Not modelled: what kernels do inside, their accumulators, fusion, the order of sums, op_precision_mode, saturation of float32 itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.ascend.half_formats import FORMATS, Format
from porting.ascend.operators import engine_types
from porting.ascend.precision import CUBE_OPERATORS, CUSTOMIZE_DTYPES, KEEP_DTYPE, MODIFY_MIXLIST, cannot_keep
from porting.ascend.rounded_graph import PREFIX, Rounding, rounded
from porting.ascend.side_file_formats import Custom, read_customize_dtypes, read_keep_dtype, read_mixlist
from porting.ascend.soc import Soc
from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.om_file import Arithmetic
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD, OmGraph, Types
from porting.errors import InputError
from porting.onnx_facts import nodes_of, valued_names

HALVES: Mapping[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_NUMPY: Mapping[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HF32_BITS = 11  # of the significand
FIRST_OPSET = {"fp16": 9, "bf16": 13}  # of IsNaN and Where, of Cast to bfloat16
# rules that leave open what the arithmetic here does: weights are clipped, and what has no Inf stores the largest number
SHOWS = frozenset(("fp16-constant", "fp16-constant-negative", "infinite-constant"))
DEFAULT_MODE = "fp16"  # ATC's own, on every SoC
# what a mode is under either option: v2's names, and those that only the first one has
SAME_MODE: Mapping[str, str] = {
    "force_fp16": "fp16",
    "must_keep_origin_dtype": "origin",
    "force_fp32": "cube_fp16in_fp32out",
    "allow_mix_precision": "mixed_float16",
    "allow_mix_precision_fp16": "mixed_float16",
    "allow_mix_precision_bf16": "mixed_bfloat16",
}
STORES = {"fp16": "fp16", "allow_fp32_to_fp16": "fp16", "mixed_float16": "fp16", "mixed_bfloat16": "bf16"}
AS_THEY_ARE = ("origin", "allow_fp32_to_bf16", "cube_fp16in_fp32out")
MIXED = ("mixed_float16", "mixed_bfloat16")
NOT_SIMULATED = ("mixed_hif8", "cube_hif8")
# what rules are judged by
JUDGED_AS = {**STORES, "cube_fp16in_fp32out": "fp16", "allow_fp32_to_bf16": "bf16", "mixed_bfloat16": "bf16"}
GUESSED_LISTS = "which operators a mixed mode lowers: all are, that no file takes out"


@dataclass(frozen=True)
class Exceptions:
    """
    keep:  names and types (of the graph engine) that keep the graph's dtype
    custom: dtypes by name or type
    black: types that mixed modes do not lower
    """

    keep: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    custom: tuple[Custom, ...] = ()
    black: frozenset[str] = frozenset()


def mode_of(options: Mapping[str, str]) -> tuple[str, str]:
    """The mode, by its name in SAME_MODE's values, and as it was written. raises: Refused for both options at once, or a mode that is none"""
    given = [name for name in ("precision_mode", "precision_mode_v2") if options.get(name)]
    if len(given) > 1:
        raise Refused(CANNOT_LOAD, "E10047: precision_mode and precision_mode_v2 exclude each other", True)
    written = options[given[0]] if given else DEFAULT_MODE
    mode = SAME_MODE.get(written, written)
    shown = f"{given[0]}={written}" if given else f"{DEFAULT_MODE} (no mode was given: the compiler's default)"
    if mode in NOT_SIMULATED:
        raise Refused(CANNOT_LOAD, f"E10055: {shown} is not simulated")
    if mode not in STORES and mode not in AS_THEY_ARE:
        raise Refused(CANNOT_LOAD, f"E10001: no precision mode is called {written[:60]!r}", True)
    return mode, shown


def exceptions_of(files: Mapping[str, str], mode: str) -> Exceptions:
    """What the files of a compilation say, as far as the mode reads them. files: option -> content. raises: Refused, E10032 or E13005"""
    try:
        names, types = read_keep_dtype(files[KEEP_DTYPE]) if KEEP_DTYPE in files and mode != "origin" else ((), ())
        custom = read_customize_dtypes(files[CUSTOMIZE_DTYPES]) if CUSTOMIZE_DTYPES in files else ()
        lists = read_mixlist(files[MODIFY_MIXLIST]) if MODIFY_MIXLIST in files and mode in MIXED else {}
    except InputError as error:
        raise Refused(CANNOT_LOAD, f"E13005: {error.where}: {error.what}") from error
    black = frozenset(lists.get("black-list", {}).get("to-add", ()))
    black |= frozenset(lists.get("white-list", {}).get("to-remove", ()))
    return Exceptions((frozenset(names), frozenset(types)), tuple(custom), black)


def with_arithmetic(
    graph: OmGraph,
    types: Types,
    soc: Soc,
    mode: tuple[str, str],
    exceptions: Exceptions,
    *,
    in_float: frozenset[str] = frozenset(),
    clips: bool = True,
) -> Arithmetic:
    """Change a graph so that onnxruntime computes what the device is documented to store.

    mode:     as `mode_of` gives it
    in_float: nodes that compute in float32 whatever the mode is
    clips:    is_weight_clip
    raises:   Refused for dtypes or opsets that are not simulated
    """
    name, shown = mode
    saturates = bool(soc.saturates)
    stored = _dtypes_of_nodes(graph.proto.graph, types)
    form = _form(name, stored, exceptions)
    guessed = (GUESSED_LISTS,) if name in MIXED else ()
    if _has_halves(types):
        widen(graph)
        types = {n: (TensorProto.FLOAT if kind in HALVES else kind, shape) for n, (kind, shape) in types.items()}
    kept: frozenset[str] = frozenset()
    if form is not None:
        _require_opset(graph.proto, form)
        nodes = [node for _, node in nodes_of(graph.proto.graph)]
        kept = in_float | {n.name for n in nodes if _is_kept(n, name, stored, exceptions, soc)}
        # weights are clipped where a mode makes them narrower; a Cast that is in the graph is none of the mode's
        narrows = name not in AS_THEY_ARE or bool(exceptions.custom)
        changed = rounded(graph.proto, types, Rounding(FORMATS[form], kept, saturates, clips and narrows))
        graph.proto = changed.model
        _round_weights(graph, FORMATS[form], saturates or (clips and narrows))
    if name == "cube_fp16in_fp32out":
        cube = [n for _, n in nodes_of(graph.proto.graph) if n.op_type in CUBE_OPERATORS and stored.get(n.name) is None]
        _require_opset(graph.proto, "fp16")
        _narrow_inputs(graph, types, {n.name for n in cube} - in_float, FORMATS["fp16"], saturates)
    return Arithmetic(shown, FORMATS[form].name if form else "", saturates, tuple(sorted(kept)), (), guessed)


def shortened(x: np.ndarray, bits: int = HF32_BITS) -> np.ndarray:
    """float32 with fewer bits of the significand and float32's range, to the nearest, ties to even: HF32 has 11."""
    low = np.uint32(24 - bits)
    pattern = np.ascontiguousarray(x, np.float32).view(np.uint32)
    odd = (pattern >> low) & np.uint32(1)
    made = (pattern + (np.uint32((1 << (24 - bits - 1)) - 1) + odd)) & ~np.uint32((1 << int(low)) - 1)
    return np.where(np.isfinite(x), made.view(np.float32), x).astype(np.float32, copy=False)


# --- what nodes store ---------------------------------------------------------------------------------------------


def _dtypes_of_nodes(graph: onnx.GraphProto, types: Types) -> dict[str, str | None]:
    """Node -> "fp16" or "bf16" where that is what the graph computes in, None for float32; others are left out."""
    found: dict[str, str | None] = {}
    for _, node in nodes_of(graph):
        kinds = [types.get(name, (0, None))[0] for name in node.output if name]
        halves = [HALVES[kind] for kind in kinds if kind in HALVES]
        if halves:
            found[node.name] = halves[0]
        elif TensorProto.FLOAT in kinds:
            found[node.name] = None
    return found


def _has_halves(types: Types) -> bool:
    return any(kind in HALVES for kind, _ in types.values())


def _form(mode: str, stored: Mapping[str, str | None], exceptions: Exceptions) -> str | None:
    """The narrow format of the graph; None where no node stores in one. raises: Refused for two of them"""
    if mode in STORES:
        if mode in MIXED and {half for half in stored.values() if half is not None} - {STORES[mode]}:
            raise Refused(CANNOT_LOAD, f"E10055: {mode} of a graph that has half floats of the other format is not simulated")
        return STORES[mode]
    forms = {half for half in stored.values() if half is not None}
    forms |= {_custom_form(custom) for custom in exceptions.custom} - {""}
    if len(forms) > 1:
        raise Refused(CANNOT_LOAD, "E10055: a graph that computes in fp16 and in bf16 is not simulated")
    return forms.pop() if forms else None


def _custom_form(custom: Custom) -> str:
    return {"float16": "fp16", "bfloat16": "bf16"}.get(next((d for d in custom.outputs if d.endswith("float16")), ""), "")


def _is_kept(node: onnx.NodeProto, mode: str, stored: Mapping[str, str | None], exceptions: Exceptions, soc: Soc) -> bool:
    """Whether a node computes in float32."""
    engine = frozenset(engine_types(node.op_type, node.domain))
    if cannot_keep(soc, node.op_type) and mode in STORES:
        return False
    for custom in exceptions.custom:  # wins over the mode and over keep_dtype
        if custom.key == node.name or (custom.key.removeprefix("OpType::") in engine and custom.key.startswith("OpType::")):
            return not _custom_form(custom)
    names, types = exceptions.keep
    if node.name in names or engine & types:
        return stored.get(node.name) is None
    if mode in MIXED and engine & exceptions.black:
        return True
    if mode == "allow_fp32_to_fp16":
        return node.op_type not in CUBE_OPERATORS and stored.get(node.name) is None
    return mode in AS_THEY_ARE and stored.get(node.name) is None


def _require_opset(proto: onnx.ModelProto, form: str) -> None:
    opset = max((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset < FIRST_OPSET[form]:
        raise Refused(CANNOT_LOAD, f"E10055: roundings to {form} in a graph of opset {opset} are not simulated")


# --- half floats of the graph's own -------------------------------------------------------------------------------


def widen(graph: OmGraph) -> None:
    """Every half float of a graph becomes a float32: what is rounded, and where, is said apart."""
    for tensor in list(graph.proto.graph.initializer):
        if tensor.data_type in HALVES:
            graph.set_weight(tensor.name, graph.array(tensor).astype(np.float32))
    bodies = {id(body): body for body, _ in nodes_of(graph.proto.graph)}
    bodies[id(graph.proto.graph)] = graph.proto.graph
    for body in bodies.values():
        for value in (*body.input, *body.output, *body.value_info):
            if value.type.tensor_type.elem_type in HALVES:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        if body is not graph.proto.graph:
            for tensor in body.initializer:
                _widen_tensor(tensor)
    for _, node in nodes_of(graph.proto.graph):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALVES:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


# --- matrix units that read fp16, and weights that are not clipped ------------------------------------------------


def _narrow_inputs(graph: OmGraph, types: Types, names: set[str], form: Format, saturates: bool) -> None:
    """Matrix operators read the narrow format and store float32."""
    valued = valued_names(graph.proto.graph)
    weights = {t.name: t for t in graph.proto.graph.initializer if t.data_type == TensorProto.FLOAT}
    for body in {id(body): body for body, _ in nodes_of(graph.proto.graph)}.values():
        made: list[onnx.NodeProto] = []
        for node in body.node:
            if node.name in names:
                for place in (0, 1) if node.op_type != "Einsum" else range(len(node.input)):
                    if node.input[place] in weights:
                        node.input[place] = _narrowed_weight(graph, node.input[place], weights, form)
                    elif types.get(node.input[place], (0, None))[0] == TensorProto.FLOAT:
                        clip = saturates or node.input[place] not in valued
                        made += _narrowed(node, place, form, clip)
            made.append(node)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in made]
        del body.node[:]
        body.node.extend(kept)


def _narrowed_weight(graph: OmGraph, name: str, weights: Mapping[str, onnx.TensorProto], form: Format) -> str:
    narrow = f"{PREFIX}read/{name}"
    if all(tensor.name != narrow for tensor in graph.proto.graph.initializer):
        graph.add_weight(narrow, _rounded_array(graph.array(weights[name]), form, True))
    return narrow


def _narrowed(node: onnx.NodeProto, place: int, form: Format, clip: bool) -> list[onnx.NodeProto]:
    name = f"{PREFIX}read/{node.name}/{place}"
    made: list[onnx.NodeProto] = []
    source = node.input[place]

    def add(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{name}/{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    if clip:
        numbers = [np.float32(n) for n in (0.0, -form.largest, form.largest)]
        zero, lowest, highest = (add("Constant", [], value=numpy_helper.from_array(np.asarray(n))) for n in numbers)
        source = add("Where", [add("IsNaN", [source]), zero, source])
        source = add("Min", [add("Max", [source, lowest]), highest])
    half = add("Cast", [source], to=TensorProto.FLOAT16)
    node.input[place] = add("Cast", [half], to=TensorProto.FLOAT)
    return made


_COPY = f"{PREFIX}copy/"
_CHAIN = re.compile(re.escape(PREFIX) + r"node[0-9]+/" + re.escape(_COPY) + "(?P<name>.+)", re.DOTALL)


def _round_weights(graph: OmGraph, form: Format, clips: bool) -> None:
    """Weights that are read rounded are rounded now, once: a runtime would take minutes and several times their memory.

    clips: is_weight_clip=0 on a chip with Inf lets what is too large become that
    """
    body = graph.proto.graph
    weights = {tensor.name: tensor for tensor in body.initializer}
    chains = [
        (node, found["name"]) for node in body.node if (found := _CHAIN.fullmatch(node.name)) and found["name"] in weights
    ]
    for name in dict.fromkeys(name for _, name in chains):
        graph.add_weight(f"{_COPY}{name}", _rounded_array(graph.array(weights[name]), form, clips))
    gone = {node.name for node, _ in chains}
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body.node if node.name not in gone]
    del body.node[:]
    body.node.extend(kept)
    graph.drop_unread()


def _rounded_array(array: np.ndarray, form: Format, clips: bool) -> np.ndarray:
    """What reading a weight in a narrower format makes of it, float32."""
    if clips:
        array = np.clip(np.nan_to_num(array, nan=0.0, posinf=form.largest, neginf=-form.largest), -form.largest, form.largest)
    with np.errstate(over="ignore"):
        return array.astype(_NUMPY[form.name]).astype(np.float32)
