"""Which exceptions from ATC's precision mode a port needs, as files, each only where the mode reads it; made from a forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from porting.ascend.graph_facts import GraphFacts, NodeFacts
from porting.ascend.half_formats import FORMATS
from porting.ascend.operators import engine_types
from porting.ascend.overflow import Forecast
from porting.ascend.precision import CUSTOMIZE_DTYPES, KEEP_DTYPE, MODIFY_MIXLIST, OP_PRECISION_MODE, Mode
from porting.ascend.side_file_formats import (
    HIGH_PRECISION,
    PLAIN_FP32,
    Custom,
    customize_dtypes_text,
    keep_dtype_text,
    mixlist_text,
    op_precision_text,
    unsayable,
)
from porting.ascend.soc import Soc

FILE_NAMES = {
    KEEP_DTYPE: "keep_dtype.cfg",
    CUSTOMIZE_DTYPES: "customize_dtypes.cfg",
    MODIFY_MIXLIST: "mixlist.json",
    OP_PRECISION_MODE: "op_precision.ini",
}
IN_A_BODY = "it lies in the body of a control flow, and by what name ATC knows nodes there was not found"
PLAIN_FP32_FAMILIES = ("A2", "A3", "950")  # those that the page lists
_CONVOLUTIONS = ("Conv", "ConvTranspose")  # fp32 products that the sources name as HF32 unless told otherwise

# operators whose inputs and outputs are those of the graph engine's, place by place: only there the counts are known to agree
_SAME_PLACES = (
    frozenset(
        (
            "Abs",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Exp",
            "Log",
            "Sqrt",
            "Neg",
            "Reciprocal",
            "Erf",
            "Sigmoid",
            "Tanh",
            "Relu",
            "Where",
        )
    )
    | frozenset(("Equal", "Expand", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Unsqueeze"))
    | frozenset(
        ("Softmax", "LogSoftmax", "LeakyRelu", "Elu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Sin", "Cos", "PRelu")
    )
)
_MOVES_ONLY = frozenset(("Cast", "Shape", "Squeeze", "Unsqueeze", "ExpandDims"))  # types that say nothing of what is computed
_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class SideFile:
    """
    option: of ATC
    name:   of the file
    nodes:  that it is about, by name or by type
    """

    option: str
    name: str
    text: str
    nodes: tuple[str, ...]

    @property
    def argument(self) -> str:
        """As it is typed in the folder that holds the file."""
        return f"--{self.option}={self.name}"


@dataclass(frozen=True)
class SideFiles:
    """
    left_out: node that should be an exception -> why no file says so
    notes:    what the user should be told
    """

    files: tuple[SideFile, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]


def side_files(mode: Mode, soc: Soc, facts: GraphFacts, precision: str, forecast: Forecast | None = None) -> SideFiles:
    """The exceptions that a port needs.

    facts:    of the graph that is compiled
    forecast: what has to stay in fp32; without one, only what follows from the graph
    """
    known = {node.name: node for node in facts.nodes if not node.inside}
    wanted = forecast.to_keep if forecast else ()
    keep = [known[name] for name in wanted if name in known]
    left_out = dict(forecast.cannot_be_kept) if forecast else {}
    in_bodies = {node.name for node in facts.nodes if node.inside}
    for name in wanted:
        if name not in known:
            left_out[name] = IN_A_BODY if name in in_bodies else "the graph has no node of this name"
    files: list[SideFile] = []
    notes: list[str] = []
    if keep and KEEP_DTYPE in mode.honours:
        files += _keep_dtype(keep, left_out)
    elif keep and CUSTOMIZE_DTYPES in mode.honours:
        files += _customize_dtypes(keep, left_out)
        notes.append(
            f"{mode.argument} ignores --{KEEP_DTYPE}; names in --{CUSTOMIZE_DTYPES} have no effect on nodes that the compiler fuses"
        )
    if keep and MODIFY_MIXLIST in mode.honours:
        files += _mixlist(keep, notes)
    if OP_PRECISION_MODE in mode.honours:
        files += _op_precision(soc, known, precision, forecast, notes)
    return SideFiles(tuple(files), left_out, tuple(notes))


def _keep_dtype(keep: Sequence[NodeFacts], left_out: dict[str, str]) -> list[SideFile]:
    names = [node.name for node in keep if _sayable(node.name, left_out)]
    return [SideFile(KEEP_DTYPE, FILE_NAMES[KEEP_DTYPE], keep_dtype_text(names), tuple(names))] if names else []


def _customize_dtypes(keep: Sequence[NodeFacts], left_out: dict[str, str]) -> list[SideFile]:
    lines = []
    for node in keep:
        inputs = [None if value is None else value.dtype for value in node.inputs]
        outputs = [value.dtype for value in node.outputs]
        if node.domain or node.op not in _SAME_PLACES:
            left_out[node.name] = (
                f"{node.op} may have other inputs and outputs in the graph engine: it has to stay in fp32 in the graph itself"
            )
        elif not all(inputs) or not all(outputs):
            left_out[node.name] = "a dtype of it is unknown"
        elif _sayable(node.name, left_out):
            lines.append(Custom(node.name, tuple(map(_raised, inputs)), tuple(map(_raised, outputs))))
    if not lines:
        return []
    names = tuple(line.key for line in lines)
    return [SideFile(CUSTOMIZE_DTYPES, FILE_NAMES[CUSTOMIZE_DTYPES], customize_dtypes_text(lines), names)]


def _raised(dtype: str | None) -> str:
    return "float32" if dtype in _FLOATS else str(dtype)


def _mixlist(keep: Sequence[NodeFacts], notes: list[str]) -> list[SideFile]:
    types = {t: None for node in keep for t in engine_types(node.op, node.domain) if t not in _MOVES_ONLY}
    if not types:
        return []
    notes.append(f"--{MODIFY_MIXLIST} names types, not nodes: every {', '.join(types)} of the graph stays in fp32")
    made = mixlist_text(black=types)
    return [SideFile(MODIFY_MIXLIST, FILE_NAMES[MODIFY_MIXLIST], made, tuple(node.name for node in keep))]


def _op_precision(
    soc: Soc, known: Mapping[str, NodeFacts], precision: str, forecast: Forecast | None, notes: list[str]
) -> list[SideFile]:
    modes: dict[str, str] = {}
    if precision == "fp32" and soc.family in PLAIN_FP32_FAMILIES:
        modes = {name: PLAIN_FP32 for name, node in known.items() if node.op in _CONVOLUTIONS}
    elif forecast is not None and precision in FORMATS:
        form = FORMATS[forecast.precision]
        inside = [u.node for u in forecast.unseen if u.reaches is not None and u.reaches >= form.overflows_from]
        modes = {name: HIGH_PRECISION for name in inside if name in known and name not in forecast.to_keep}
    modes = {name: mode for name, mode in modes.items() if _sayable(name, {})}
    if not modes:
        return []
    notes.append(
        f"which modes an operator has for --{OP_PRECISION_MODE} stands in all_ops_impl_mode.ini of the toolkit, which was not read"
    )
    return [SideFile(OP_PRECISION_MODE, FILE_NAMES[OP_PRECISION_MODE], op_precision_text(by_name=modes), tuple(modes))]


def _sayable(name: str, left_out: dict[str, str]) -> bool:
    """Whether a name can stand in these files."""
    reason = unsayable(name)
    if reason:
        left_out[name] = reason
    return not reason
