"""From a torch module to an .onnx file: by torch.export, and where that cannot, by the TorchScript exporter.

The TorchScript exporter records what one run of the module did. Where Python looked at values it would fix one branch without a word, so
it is used only where torch.export has shown that there is none, or where it warns of nothing in the user's code.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import InputError, UnsupportedModel

from .graph_builder import MODULE
from .torch_calls import CallPlan
from .torch_capture import Captured, Dynamic, NotCaptured, capture, flat_module, line_of_decision, quiet
from .torch_frames import innermost, is_users, line_of, short, where_raised
from .torch_probe import SizeFixed, sizes_of, try_sizes
from .torch_translations import translations

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

OPSET = 20  # torch 2.13's own default: what it writes without a conversion of the result; the canonical passes raise it
SCRIPT_OPSET = 17  # the last that the TorchScript exporter was written for; its later ones are 17 with few operators replaced
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
DYNAMO, SCRIPT = "torch.onnx, dynamo", "torch.onnx, TorchScript"
FILE = "model.onnx"
SCOPES, TRACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
SHOWN = 3


@dataclass
class Exported:
    """An .onnx file and how it was made.

    exporter: DYNAMO or SCRIPT
    unused:   parameters and buffers that the forward pass does not use, by the module's names
    failed:   why the first exporter could not, where the second made the file
    tried:    sizes at which graph and module were run and agree; None where onnxruntime is not installed
    """

    path: Path
    exporter: str
    opset: int
    unused: list[str] = field(default_factory=list)
    failed: str = ""
    tried: list[dict[str, int]] | None = None


def export_module(
    function: Any,
    plan: CallPlan,
    tensors: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Dynamic,
    folder: Path,
    what: str,
) -> Exported:
    """Export a module.

    function: a torch module, a ScriptModule, or anything that is called alike
    plan:     how it is called; `tensors` are an example of its flat inputs
    outputs:  names of the flat outputs
    dynamic:  sizes that stay free
    folder:   where model.onnx and its weights are written
    raises:   UnsupportedModel naming the line of code that cannot be exported, InputError where the graph would draw random numbers
    """
    import torch

    failed: NotCaptured | None = None
    captured: Captured | None = None
    subject = function
    try:
        if isinstance(function, torch.jit.ScriptModule):
            subject = _program_of_script(function, plan, tensors)
        captured = capture(subject, plan, tensors, dynamic, what)
        exported = export_program(captured, plan.names, outputs, folder, what)
    except NotCaptured as error:
        failed = error
        if failed.fixed:
            failed.where = line_of_decision(subject, plan, tensors, dynamic, what)[1]
        exported = _by_script(function, plan, tensors, outputs, dynamic, folder, what, failed, proven=captured is not None)
    try:
        exported.tried = try_sizes(function, plan, tensors, dynamic, exported.path, what)
    except SizeFixed as error:
        sizes = ", ".join(f"{name} = {size}" for name, size in error.sizes.items())
        if failed is not None:
            raise _neither(what, failed, f"at {sizes}, {error.why}") from error
        decided, line = line_of_decision(subject, plan, tensors, dynamic, what, error.sizes)
        raise UnsupportedModel(
            f"the exported graph of {what} does not hold at {sizes}: {error.why}"
            + (f"; it assumes {decided}" if decided else ""),
            where=line or "forward",
            next="write that without a Python decision on a size (always pad, mask or torch.where), or do not leave that size free",
        ) from error
    if failed is not None and sizes_of(tensors, dynamic) and not exported.tried:
        raise _neither(what, failed, "no other size could be tried, so nothing shows whether it kept them free")
    return exported


def export_program(captured: Captured, inputs: Sequence[str], outputs: Sequence[str], folder: Path, what: str) -> Exported:
    """The .onnx file of an exported program.

    raises: UnsupportedModel, InputError (random numbers); NotCaptured where torch.onnx has no ONNX for something in it
    """
    import torch

    made = None
    for table in ({}, translations()):  # torch's own decompositions come first: they are what eager mode computes
        try:
            with quiet():
                made = torch.onnx.export(
                    captured.program,
                    dynamo=True,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    opset_version=OPSET,
                    custom_translation_table=table,
                    verbose=False,
                )
            break
        except Exception as error:
            failed = error
    if made is None:
        raise NotCaptured(short(innermost(failed)), where_raised(failed)) from failed
    model = made.model
    _require_interface(model, inputs, outputs, what)
    _require_not_random(model, what)
    _tidy(model, captured.symbols)
    path = folder / FILE
    made.save(str(path), external_data=True)
    return Exported(path, DYNAMO, OPSET, _unused(captured.program))


def require_translated(captured: Captured, inputs: Sequence[str], outputs: Sequence[str], folder: Path, what: str) -> Exported:
    """`export_program` where no second exporter can be tried. raises: UnsupportedModel with torch.onnx's reason"""
    try:
        return export_program(captured, inputs, outputs, folder, what)
    except NotCaptured as error:
        raise UnsupportedModel(
            f"{what} cannot be brought to ONNX: {error.why}", where=error.where or "torch.onnx", next="replace that operation"
        ) from error


def _unused(program: Any) -> list[str]:
    """Parameters and buffers that nothing in the program reads."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return sorted(
        targets[node.name].removeprefix("module.")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in targets and not node.users
    )


def _program_of_script(function: Any, plan: CallPlan, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A TorchScript module as a module that torch.export takes. raises: NotCaptured"""
    from torch._export.converter import TS2EPConverter

    holder: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> None:
        holder.extend((args, kwargs))

    plan.call(keep, tensors)
    try:
        with quiet():
            return TS2EPConverter(function, tuple(holder[0]), holder[1] or None).convert().module()
    except Exception as error:
        raise NotCaptured(f"torch.export takes no TorchScript module, and its converter fails: {short(error)}", "") from error


# --- the second exporter ----------------------------------------------------------------------------------------------


def _by_script(
    function: Any,
    plan: CallPlan,
    tensors: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Dynamic,
    folder: Path,
    what: str,
    failed: NotCaptured,
    proven: bool,
) -> Exported:
    """The TorchScript exporter's file.

    proven: whether torch.export has shown that the code does not depend on values
    raises: UnsupportedModel with both exporters' reasons
    """
    import onnx_ir as ir
    import torch

    path = folder / FILE
    script = isinstance(function, torch.jit.ScriptModule)
    try:
        with quiet() as caught:
            torch.onnx.export(
                function if script else flat_module(function, plan, what),
                tuple(tensors[n] for n in plan.names),
                str(path),
                dynamo=False,
                input_names=list(plan.names),
                output_names=list(outputs),
                dynamic_axes={name: dict(axes) for name, axes in dynamic.items() if axes},
                opset_version=SCRIPT_OPSET,
                do_constant_folding=False,  # it renames the weights; the canonical passes fold
            )
    except Exception as error:
        raise _neither(what, failed, short(error)) from error
    doubts = [] if script or proven else list(dict.fromkeys(_doubts(caught)))
    if doubts:
        raise _neither(
            what,
            failed,
            f"it would fix what Python decided in one run: {'; '.join(doubts[:SHOWN])}",
            doubts[0].partition(" (")[0],
        )
    model = ir.load(path)
    _add_unused_inputs(model, plan, tensors)
    _require_interface(model, plan.names, outputs, what)
    _require_not_random(model, what)
    _tidy(model, {})
    model = ir.external_data.load_to_model(model)
    ir.save(model, path, external_data=f"{FILE}.data")
    used = set(model.graph.initializers)
    unused = [] if script else sorted(n for n, names in _aliases(function).items() if not names & used)
    return Exported(path, SCRIPT, SCRIPT_OPSET, unused, failed=failed.why)


def _neither(what: str, failed: NotCaptured, second: str, where: str = "") -> UnsupportedModel:
    if failed.fixed:
        return UnsupportedModel(
            f"{what} cannot keep {', '.join(failed.fixed)} free: {failed.why}. {SCRIPT}: {second}",
            where=failed.where or where or "forward",
            next="write that line without a Python number or loop made of the size, or keep the size fixed: out of `dynamic`, and alike "
            "in all examples",
        )
    return UnsupportedModel(
        f"{what} cannot be exported. {DYNAMO}: {failed.why}. {SCRIPT}: {second}",
        where=failed.where or where or "forward",
        next="rewrite what is named, or move it out of forward; `python -c 'import torch; help(torch.export)'` says what can be exported",
    )


def _doubts(caught: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    """Lines of user code that the tracer warns of. Its warnings in torch's own layers are about sizes, which `torch_probe` tries out."""
    import torch

    for warning in caught:
        if issubclass(warning.category, torch.jit.TracerWarning) and is_users(warning.filename):
            reason = str(warning.message).split(" might cause")[0]
            yield f"{line_of(warning.filename, warning.lineno)} ({reason})"


def _aliases(module: Any) -> dict[str, set[str]]:
    """Name of a parameter or buffer -> every name of the same memory, for tied weights."""
    by_memory: dict[int, set[str]] = {}
    names = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names[name] = by_memory.setdefault(tensor.data_ptr() or id(tensor), set())
        names[name].add(name)
    return names


def _add_unused_inputs(model: ir.Model, plan: CallPlan, tensors: Mapping[str, torch.Tensor]) -> None:
    """The tracer leaves out inputs that nothing reads; the caller feeds them all the same."""
    import onnx_ir as ir

    from .torch_calls import array_from_tensor

    present = {value.name: value for value in model.graph.inputs}
    for name in plan.names:
        if name not in present:
            array = array_from_tensor(tensors[name])
            kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            present[name] = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
    extra = [name for name in present if name not in plan.names]
    model.graph.inputs[:] = [present[name] for name in (*plan.names, *extra) if name]


# --- the file ---------------------------------------------------------------------------------------------------------


def _require_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], what: str) -> None:
    """raises: UnsupportedModel when the graph takes or gives something else than the module: what it changes in place"""
    got_in, got_out = [v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]
    if got_in != list(inputs) or got_out != list(outputs):
        raise UnsupportedModel(
            f"the exported graph of {what} takes {got_in} and gives {got_out}; the module takes {list(inputs)} and gives {list(outputs)}",
            where="torch.onnx",
            next="write forward without changing inputs or buffers in place",
        )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _require_not_random(model: ir.Model, what: str) -> None:
    """raises: InputError naming nodes that draw random numbers"""
    drawing = [node for node in _nodes(model) if node.op_type in RANDOM and node.domain in ("", "ai.onnx")]
    if drawing:
        lines = [line for node in drawing if (line := _source_line(node.metadata_props.get(TRACE, "")))]
        shown = ", ".join(f"{node.op_type} {node.name}" for node in drawing[:SHOWN])
        raise InputError(
            f"the graph of {what} draws random numbers: {shown}",
            where=lines[0] if lines else "forward",
            next="take the random tensor as an input; a seed set in forward does not reach the graph",
        )


def _source_line(trace: str) -> str:
    """The innermost line of user code in torch's record of where a node comes from."""
    found = [(m[1], int(m[2])) for m in re.finditer(r'File "([^"]+)", line (\d+)', trace)]
    users = [line_of(f, n) for f, n in found if is_users(f)]
    return users[-1] if users else ""


def _tidy(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """The user's names for sizes, weights and modules; nothing of this machine's paths.

    symbols: torch's name of a free size -> the user's
    """
    for values in (model.graph.inputs, model.graph.outputs, *(node.outputs for node in _nodes(model))):
        for value in values:
            _rename_sizes(value, symbols)
            value.metadata_props.clear()
    taken = {value.name for node in _nodes(model) for value in node.outputs} | {value.name for value in model.graph.inputs}
    for name, value in list(model.graph.initializers.items()):
        short_name = name.removeprefix("module.")
        if short_name != name and short_name not in taken and short_name not in model.graph.initializers:
            value.name = short_name
    for node in _nodes(model):
        scope = _scope(node)
        node.metadata_props.clear()
        node.doc_string = None
        if scope:
            node.metadata_props[MODULE] = scope
    owners: list[Any] = [model, model.graph, *model.functions.values()]
    for owner in owners:
        owner.metadata_props.clear()
        owner.doc_string = None


def _rename_sizes(value: ir.Value, symbols: Mapping[str, str]) -> None:
    import onnx_ir as ir

    if value.shape is None or not symbols:
        return
    sizes: list[int | str | None] = []
    for size in value.shape:
        text = size.value if isinstance(size, ir.SymbolicDim) else None
        sizes.append(
            re.sub(r"\bs\d+\b", lambda m: symbols.get(m[0], m[0]), text) if text else size if isinstance(size, int) else None
        )
    value.shape = ir.Shape(sizes)


def _scope(node: ir.Node) -> str:
    """The module that a node belongs to, "" at the top."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes:
        try:
            names = ast.literal_eval(scopes)
        except (ValueError, SyntaxError):
            return ""
        inner = names[-2] if len(names) > 1 else ""  # the last is the operation
        if inner.startswith("_empty_nn_module_stack"):  # torch's name for an operation that it added itself
            return ""
    else:
        inner = ".".join((node.name or "").split("/")[1:-1])  # the TorchScript exporter names nodes /module/conv/Conv
    return inner.removeprefix("module").removeprefix(".")
