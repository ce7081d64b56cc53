"""source -> canonical graph -> target graph -> port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import CheckpointError, OutOfResources, UnsupportedModel, UsageError, nearest
from porting.inputs import paths_of
from porting.port_folder import Port
from porting.port_writer import Source, require_free, write_port
from porting.progress import silent
from porting.registry import ARCHITECTURE_GROUP, load_architecture, names
from porting.sources import opened
from porting.targets import Target, find_target, resolve_precision
from porting.types import Checkpoint, Graph, GraphSource, is_graph

if TYPE_CHECKING:
    from porting.ascend.compilation import Compilation, Wishes
    from porting.ascend.gear_requests import Request

LANGUAGE_MODEL = "causal-lm"  # what a port is, as port.json says it; the default of an architecture's KIND
ENCODER = "encoder"
GRAPH = "graph"
ASCEND = "ascend"  # the kind of target
W8A8 = "w8a8"  # the precision whose graph has integers for weights and activations
# onnxruntime 1.28 is the first whose Attention aligns the causal mask of a padded cache rightly; older ones also lack TensorScatter
MIN_RUNTIME = {"onnxruntime": "1.28"}


@dataclass(frozen=True)
class Canonical:
    """A source as a canonical graph.

    kind:    "causal-lm", "encoder" or "graph"
    config:  of a checkpoint its config.json; of a graph where it came from, and its inputs and outputs
    tensors: the accounting, {"used": [...], "dropped": [{"name", "reason"}], "parameters": count}
    applied: the passes that made it canonical, as port.json lists them
    """

    graph: Graph
    kind: str
    architecture: str
    source: Checkpoint | GraphSource
    config: Mapping[str, Any]
    tensors: Mapping[str, Any]
    applied: Sequence[Mapping[str, Any]] = ()


def architecture_of(checkpoint: Checkpoint) -> str:
    """The one name in config.json's `architectures`. raises: CheckpointError, UnsupportedModel"""
    listed = checkpoint.config.get("architectures")
    if not isinstance(listed, list) or not listed or not all(isinstance(n, str) for n in listed):
        raise CheckpointError(
            f"config.json should name its architecture in `architectures`, got {listed!r}", where=str(checkpoint.path.name)
        )
    if len(listed) != 1:
        raise UnsupportedModel(f"config.json names several architectures: {', '.join(listed)}", where=str(checkpoint.path.name))
    return listed[0]


def canonical_graph(source: Checkpoint | GraphSource, highest_opset: int | None = None) -> Canonical:
    """Build the canonical graph straight from the files: no weight is read, and no torch is needed but for a torch program.

    highest_opset: to which a graph that comes with an opset is raised; the newest that is known when left out
    raises: UnsupportedModel (architecture, config key, operator), CheckpointError (missing, misshapen or left-over tensors, all named)
    """
    if is_graph(source):
        from porting.converters.passes.canonical import canonical

        graph, applied = canonical(source.graph(), *([] if highest_opset is None else [highest_opset]))
        return Canonical(graph, GRAPH, source.name, source, graph_config(source), source.accounting(), applied)
    from porting.converters.accounting import Weights

    name = architecture_of(source)
    module = load_architecture(name)
    if module is None:
        known = names(ARCHITECTURE_GROUP)
        raise UnsupportedModel(f"architecture {name!r} is not covered", where="config.json", next=nearest(name, known))
    weights = Weights(source, getattr(module, "DROPPABLE", {}))
    graph = module.build(source.config, weights)
    return Canonical(graph, getattr(module, "KIND", LANGUAGE_MODEL), name, source, dict(source.config), weights.finish())


def highest_opset_of(target: Target) -> int | None:
    """To which opset a graph is raised for a target; None for the newest that is known."""
    if target.kind != ASCEND:
        return None
    from porting.converters.passes.ascend.tables import HIGHEST_OPSET

    return HIGHEST_OPSET


def graph_config(source: GraphSource) -> dict[str, Any]:
    """What port.json says of a model that came as a graph."""
    return {**source.facts, "inputs": [str(i) for i in source.inputs], "outputs": [str(o) for o in source.outputs]}


def precision_of(canonical: Canonical, target: Target, precision: str | None) -> str:
    """The precision to write, see `resolve_precision`. A graph keeps what it computes in: "fp32", or "source" where it holds half floats.

    For Ascend the graph keeps what it is too; what it is compiled in is the compiler's mode. "w8a8" alone is another graph.
    raises: UsageError
    """
    if target.kind == ASCEND and precision == W8A8:
        return W8A8
    if target.kind == ASCEND:
        return "source" if is_graph(canonical.source) and _half_floats(canonical.graph) else "fp32"
    if not is_graph(canonical.source):
        return resolve_precision(target, precision, {t.dtype for t in canonical.source.tensors.values()})
    own = "source" if _half_floats(canonical.graph) else "fp32"
    if precision not in (None, "source", own):
        raise UsageError(
            f"a model that comes as a graph keeps what it computes in ({'half floats are in it' if own == 'source' else 'fp32'}), "
            f"and is not rewritten to {precision!r}",
            where="--precision",
            next="leave it out; int8 and int4 are for language models and encoders from their checkpoints",
        )
    return own


def _half_floats(graph: Graph) -> bool:
    import onnx_ir as ir

    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for body in (graph.model.graph, *graph.model.graph.subgraphs()):
        values = [*body.inputs, *body.outputs, *body.initializers.values(), *(o for node in body for o in node.outputs)]
        if any(v.dtype in half for v in values):
            return True
    return False


def convert(
    source: Any,
    output_or_examples: Any = None,
    target: str = "cpu",
    precision: str | None = None,
    *,
    output: str | Path | None = None,
    weights: str = "link",
    max_ram: int | None = None,
    force: bool = False,
    resume: bool = False,
    stop_after: str | None = None,
    progress: Any = silent,
    example_inputs: Any = None,
    dynamic: Mapping[str, Any] | None = None,
    state: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    fix: Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    cann: str | None = None,
    gears: str | Request | None = None,
    host_cpu: str | None = None,
    preprocessing: str | Path | None = None,
    calibration: str | Path | Sequence[str | Path] | None = None,
    keep_float: Sequence[str] = (),
) -> Port:
    """Convert a model into a port. Nothing is compared here: `validate` does that.

        porting.convert("checkpoint/", "model.port")
        porting.convert(module, example_inputs, dynamic={"x": {0: "batch"}}, output="net.port")

    source:         a Hugging Face folder, a GGUF file, an .onnx file, a torch module, or what `open_source` gave
    output_or_examples: where the port is written; anything but a path is taken as `example_inputs`, and `output` names the port
    output:         the same by its name
    precision:      "fp32", "int8", "int4" (weights), or "source"; a graph keeps its own
    weights:        "link" or "copy"
    max_ram:        bytes; refused before anything is written when the forecast is higher
    resume:         go on where a killed run stopped; the result has identical bytes
    stop_after:     end with this pass, to bisect a wrong answer
    example_inputs: of a torch module: a tuple of tensors, or a mapping by name; a list of those for several
    dynamic:        of a torch module: input name -> {axis: name} of the dimensions that are free
    state:          input name -> output name of what a graph carries from run to run
    outputs:        of an .onnx file: values of its graph (or nodes with one output) at which it ends, as in ("boxes", "scores")
    fix:            of an .onnx file: input name -> the number that it always is, as in {"sr": 16000}
    allow_pickle:   run the code that is in a .pt2, a TorchScript file or a pickle
    cann:           of an Ascend target: the release that it will be compiled with; every one that is known when left out
    gears:          of an Ascend target: the shapes that it is compiled for, as in "batch=1,seq=64; batch=1,seq=128"; the port then takes
                    these and no other. Where all are fixed already, and for a language model, there are defaults
    host_cpu:       of an Ascend target: "aarch64" or "x86_64", the processor beside the NPU; that of the machine with the compiler when left out
    preprocessing:  of an Ascend target: a file that says how inputs are made from uint8 images; the hand-off then holds AIPP's configuration
    calibration:    of an Ascend target in "w8a8", which has to have it: .npz files with inputs as the model is fed in use
    keep_float:     of the same: names of nodes that stay in float
    raises:         PortingError with the exit code of the command; UnsupportedModel where the rules for an Ascend target block it
    """
    wanted = find_target(target)
    destination, example_inputs = output_and_examples(output_or_examples, output, example_inputs)
    require_free(destination, force)
    wishes = wishes_for(wanted, cann, gears, host_cpu, preprocessing, paths_of(calibration), keep_float)
    options = {"example_inputs": example_inputs, "dynamic": dynamic, "state": state, "allow_pickle": allow_pickle}
    options |= {"outputs": outputs, "fix": fix}
    with opened(source, **options) as found:
        canonical = canonical_graph(found, highest_opset_of(wanted))
        compilation = compilation_of(canonical, wanted, precision, wishes)
        if compilation is not None:
            compilation.judged.require_portable()
        made = write_canonical(
            canonical,
            destination,
            wanted,
            precision_of(canonical, wanted, precision),
            compilation=compilation,
            weights=weights,
            max_ram=max_ram,
            force=force,
            resume=resume,
            stop_after=stop_after,
            progress=progress,
        )
        if compilation is not None:
            from porting.ascend.compilation import hand_over

            hand_over(made, compilation, None)
        return made


def wishes_for(
    target: Target,
    cann: str | None,
    gears: str | Request | None,
    host_cpu: str | None,
    preprocessing: str | Path | None = None,
    calibration: Sequence[Path] = (),
    keep_float: Sequence[str] = (),
) -> Wishes | None:
    """What is said of an Ascend target beside its name; None for every other.

    raises: UsageError where another target is told such things, InputError (the description of preprocessing)
    """
    said = (cann, gears, host_cpu, preprocessing, calibration or None, keep_float or None)
    if target.kind != ASCEND and all(one is None for one in said):
        return None
    from porting.ascend.compilation import HOST_CPUS, Wishes
    from porting.ascend.gear_requests import Request
    from porting.ascend.preprocessing import read_preprocessing

    images = read_preprocessing(preprocessing) if preprocessing is not None else ()
    wishes = Wishes(cann, Request(named=gears) if isinstance(gears, str) else gears, host_cpu, images, calibration, keep_float)
    if target.kind != ASCEND:
        raise UsageError(
            f"{target.name} is not compiled with CANN", where=wishes.said[0], next="leave it out, or name an Ascend target"
        )
    if host_cpu not in (None, *HOST_CPUS):
        raise UsageError(f"unknown processor {host_cpu!r}", where="--host-cpu", next=nearest(str(host_cpu), HOST_CPUS))
    return wishes


def compilation_of(canonical: Canonical, target: Target, precision: str | None, wishes: Wishes | None) -> Compilation | None:
    """A model as it is compiled for an Ascend target; None for every other. raises: as `compilation_for`"""
    if wishes is None:
        return None
    from porting.ascend.compilation import compilation_for

    return compilation_for(canonical, target, precision, wishes)


def output_and_examples(second: Any, output: str | Path | None, example_inputs: Any) -> tuple[Path, Any]:
    """What the second argument of `convert` and `port` is: a path where the port is written, or a module's inputs.

    raises: UsageError when there is no path, or two of either
    """
    hint = (
        'porting.convert(module, example_inputs, output="net.port"), or porting.convert(module, "net.port", example_inputs=...)'
    )
    if second is not None and not isinstance(second, (str, Path)):
        if example_inputs is not None:
            raise UsageError("inputs of the module are given twice", where="example_inputs", next=hint)
        second, example_inputs = None, second
    if second is not None and output is not None:
        raise UsageError(f"two places where the port is written: {second} and {output}", where="output", next=hint)
    found = output if second is None else second
    if not isinstance(found, (str, Path)):
        given = "nothing" if found is None else f"a {type(found).__name__}"
        raise UsageError(f"no path says where the port is written, got {given}", where="output", next=hint)
    return Path(found), example_inputs


def write_canonical(
    canonical: Canonical,
    destination: Path,
    target: Target,
    precision: str,
    *,
    compilation: Compilation | None = None,
    weights: str = "link",
    max_ram: int | None = None,
    force: bool = False,
    resume: bool = False,
    stop_after: str | None = None,
    progress: Any = silent,
) -> Port:
    """Lower a canonical graph to its target and write the port. As `convert`, which has the arguments.

    compilation: of an Ascend target, whose graph is lowered already
    """
    from porting.converters.passes.tables import lower

    source = canonical.source
    side = {} if is_graph(source) else dict(source.side_files())
    if max_ram is not None:
        require_ram(canonical, precision, max_ram, sum(map(len, side.values())))
    if compilation is None:
        graph, applied = lower(canonical.graph, target.kind, precision, stop_after)
    elif stop_after is not None:
        raise UsageError(f"the passes for {target.name} run as a whole", where="--stop-after", next="leave it out")
    else:
        canonical, judged = compilation.canonical, compilation.judged
        graph, applied = judged.lowered, [dict(one) for one in judged.applied if one["changes"]]
    manifest = {
        "kind": canonical.kind,
        "architecture": canonical.architecture,
        "config": dict(canonical.config),
        "target": target.name,
        "precision": precision,
        "tensors": canonical.tensors,
        "passes": [*canonical.applied, *applied],
        "min_runtime": MIN_RUNTIME,
        **(compilation.manifest() if compilation is not None else {}),
    }
    files = Source(source.format, tuple(source.files), side)
    kept = kept_weights(source, weights)
    return write_port(graph, destination, manifest, files, weights=kept, force=force, resume=resume, progress=progress)


def kept_weights(source: Checkpoint | GraphSource, weights: str) -> str:
    """ "link" or "copy": what an exporter wrote is gone afterwards, and cannot be linked to."""
    return "copy" if is_graph(source) and source.format != "onnx" else weights


def require_ram(canonical: Canonical, precision: str, limit: int, side_bytes: int) -> None:
    """Refuse a conversion whose forecast is above `limit` bytes. raises: OutOfResources"""
    from porting.forecast import forecast_ram

    needed = forecast_ram(canonical.source, precision, side_bytes)
    if needed > limit:
        raise OutOfResources(
            f"the conversion is forecast to need {needed / 2**20:.0f} MiB of memory, {limit / 2**20:.0f} MiB are allowed",
            where="--max-ram",
            next="allow more; `porting plan` shows the forecast",
        )
