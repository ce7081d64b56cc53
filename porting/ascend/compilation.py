"""What is compiled for an Ascend SoC: a model at the shapes of its gears, lowered and judged, and the hand-off that says so.

    canonical graph -> gears -> sizes that all gears share are written into it -> lowered -> judged -> port, hand-off

Sizes come first: what is fixed is folded away, and a graph that keeps free dimensions computes its indices anew in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from porting.ascend.atc_command import atc_command
from porting.ascend.calibration import Cases
from porting.ascend.checking import BLOCKED, EVERY_VERSION, Judged, judged
from porting.ascend.cuts import cut_for
from porting.ascend.facts_file import Facts
from porting.ascend.file_facts import file_facts
from porting.ascend.flat_inputs import SETTABLE, settable
from porting.ascend.gear_requests import Request, free_places
from porting.ascend.gears import Gears, gears_for, require_gears_possible
from porting.ascend.handoff import NOT_COMPARED, write_handoff
from porting.ascend.handoff_contents import contents_of
from porting.ascend.image_inputs import CONFIG, KEY, ImageInputs, image_inputs
from porting.ascend.language_gears import KEPT, language_gears
from porting.ascend.preprocessing import ImageInput
from porting.ascend.soc import Soc, find_cann, find_soc, soc_in
from porting.ascend.w8a8 import Quantised
from porting.ascend.w8a8_compilation import deploy_file, in_w8a8
from porting.ascend.w8a8_validation import W8A8, manifest_of
from porting.ascend.whole_numbers import integer_carriers_of
from porting.conversion import LANGUAGE_MODEL, Canonical
from porting.cuts import Cut
from porting.errors import UsageError
from porting.inputs import UNLIMITED, context_of
from porting.port_folder import Port
from porting.port_writer import specs_of
from porting.targets import Target
from porting.types import Graph, is_graph
from porting.verdict import Verdict, printable

HOST_CPUS = ("aarch64", "x86_64")
FIXED_SHAPES = "a compiled model has fixed shapes; give --batch, --image-size, --dims or --gears"


@dataclass(frozen=True)
class Wishes:
    """What a user may say of an Ascend target beside its name.

    cann:     the release that it will be compiled with; None: every one that is known
    shapes:   the gears; None: the shape itself where every dimension is fixed, defaults for a language model, else none
    host_cpu: "aarch64" for Kunpeng, "x86_64"; None: that of the machine where atc runs
    images:   how the device makes inputs from uint8 pixels (AIPP); () where it is fed the model's own numbers
    calibration, keep_float: of W8A8: .npz files to calibrate on, and nodes that stay in float
    facts:    what a probe saw of the chip
    """

    cann: str | None = None
    shapes: Request | None = None
    host_cpu: str | None = None
    images: Sequence[ImageInput] = ()
    calibration: Sequence[Path] = ()
    keep_float: Sequence[str] = ()
    facts: Facts | None = None

    @property
    def said(self) -> list[str]:
        """The options that were given, as they are typed."""
        shapes = self.shapes or Request()
        spelled = {
            "--cann": self.cann,
            "--gears": shapes.named,
            "--batch": shapes.batch,
            "--image-size": shapes.image_size,
            "--dims": shapes.dims,
            "--host-cpu": self.host_cpu,
            "--preprocessing": self.images,
            "--calibration": self.calibration,
            "--keep-float": self.keep_float,
        }
        return [option for option, value in spelled.items() if value]


@dataclass(frozen=True, eq=False)
class Compilation:
    """
    canonical: the model, with the sizes of its gears
    judged:    its lowered graph, and what the rules say of it
    gears:     None where dimensions are free and nobody said of what size
    free:      those dimensions, as "input[axis] name"
    images:    None where nothing makes inputs from pixels
    integers:  of W8A8: both of its graphs; `judged` holds the one that runs here. None in another precision
    calibration: what it was calibrated on
    """

    canonical: Canonical
    judged: Judged
    gears: Gears | None
    free: Sequence[str]
    host_cpu: str | None
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    side_options: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    images: ImageInputs | None = None
    integers: Quantised | None = None
    calibration: Cases = ()

    def manifest(self) -> dict[str, Any]:
        """What port.json keeps: JSON types only."""
        about = {**self.judged.manifest(), **({KEY: self.images.to_json()} if self.images is not None else {})}
        gears = {"gears": self.gears.to_json()} if self.gears is not None else {}
        return {"ascend": about, **gears, **(manifest_of(self.integers, self.calibration) if self.integers else {})}

    def no_handoff(self) -> str:
        """Why there is none, and what to do; "" where there is one."""
        if self.gears is not None:
            return ""
        return f"no hand-off: {printable(', '.join(self.free), 200)} left open, and {FIXED_SHAPES}"


def compilation_for(canonical: Canonical, target: Target, precision: str | None, wishes: Wishes) -> Compilation:
    """Fix the sizes, lower and judge, each pass compared with what it changed; images and W8A8 as they were asked for.

    raises: UsageError (gears, CANN release, precision, images that AIPP cannot make), InputError (inputs that take no gears, or are no images),
            UnsupportedModel (a graph that takes none). Of W8A8 also as `in_w8a8`
    """
    if precision != W8A8 and (wishes.calibration or wishes.keep_float):
        raise UsageError(
            "only W8A8 is calibrated",
            where="--calibration" if wishes.calibration else "--keep-float",
            next="-p w8a8, or leave it out",
        )
    made = judged_for(canonical, target, precision, wishes, compared=True)
    if wishes.images:
        made = replace(made, images=_with_images(made, wishes.images))
    return in_w8a8(made, wishes) if precision == W8A8 and made.judged.portability != BLOCKED else made


def judged_for(
    canonical: Canonical, target: Target, precision: str | None, wishes: Wishes, *, compared: bool = False
) -> Compilation:
    """Fix the sizes, lower and judge. No weight is read that no pass changes.

    compared: as `judged` takes it
    raises:   as `compilation_for`
    """
    release = find_cann(wishes.cann)
    soc = soc_in(find_soc(target.name), release)
    gears, graph = _with_gears(canonical, soc, wishes, quantised=precision == W8A8)
    if gears is not None:
        settable(gears)  # a model whose gears nobody could choose among is refused before it is lowered
    fixed = replace(canonical, graph=graph) if gears is None else _canonical_again(replace(canonical, graph=graph))
    source = canonical.source
    file = None
    if is_graph(source) and source.format == "onnx":
        file = file_facts(source.onnx_path, source.cut or Cut(), fixed.applied)
    result = judged(fixed.graph, soc, release, precision, compared=compared, file=file, probed=wishes.facts)
    result = replace(result, cut=cut_for(canonical, result))
    if gears is not None and result.portability != BLOCKED:
        require_gears_possible(gears.kind, result.facts, quantised=precision == W8A8, cut=result.cut)
    free = [f"{p.input}[{p.axis}]" + (f" {p.symbol}" if p.symbol else "") for p in free_places(specs_of(graph.model))]
    return Compilation(fixed, result, gears, [] if gears is not None else free, wishes.host_cpu)


def _with_images(made: Compilation, images: Sequence[ImageInput]) -> ImageInputs:
    """What AIPP is told. raises: as `image_inputs`; UsageError where dimensions are free"""
    if made.gears is None:
        raise UsageError(
            f"{printable(', '.join(made.free), 200)} left open, and AIPP is compiled for fixed shapes",
            where="--preprocessing",
            next="give --batch or --image-size",
        )
    return image_inputs(images, specs_of(made.judged.lowered.model), made.gears, made.judged.soc)


def _with_gears(canonical: Canonical, soc: Soc, wishes: Wishes, quantised: bool) -> tuple[Gears | None, Graph]:
    """The gears, and the graph with every size that they share. raises: as `gears_for`"""
    from porting.converters.passes.fixed_sizes import fixed_sizes

    graph, request = canonical.graph, wishes.shapes
    if canonical.kind == LANGUAGE_MODEL:
        constants = {name: number for name, number in KEPT.items() if name in {v.name for v in graph.model.graph.inputs}}
        fed = [spec for spec in specs_of(graph.model) if spec.name not in constants]
        context = context_of(canonical.config)
        gears = language_gears(fed, soc, request, None if context == UNLIMITED else context)
        return gears, fixed_sizes(graph, shared_sizes(gears), constants)
    specs = specs_of(graph.model)
    if request is None and free_places(specs):
        return None, graph
    gears = gears_for(specs, soc, request, aipp=[image.input for image in wishes.images], quantised=quantised)
    return gears, fixed_sizes(graph, shared_sizes(gears))


def shared_sizes(gears: Gears) -> dict[str, tuple[int | None, ...]]:
    """Input -> the size of each dimension that is the same in all gears, None where it differs."""
    return {
        name: tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(g[name] for g in gears.shapes), strict=True))
        for name in gears.shapes[0]
    }


def _canonical_again(canonical: Canonical) -> Canonical:
    """What follows from sizes that are fixed now, of a model that came as a graph; our own builders' graphs are folded as they are lowered."""
    if not is_graph(canonical.source):
        return canonical
    from porting.converters.passes.ascend.tables import HIGHEST_OPSET
    from porting.converters.passes.canonical import canonical as bring

    graph, applied = bring(canonical.graph, HIGHEST_OPSET)
    return replace(canonical, graph=graph, applied=[*canonical.applied, *(one for one in applied if one["changes"])])


# --- the hand-off -------------------------------------------------------------------------------------------------


def hand_over(port: Port, compilation: Compilation, verdict: Verdict | None) -> Path | None:
    """Write `targets/SOC-CANN-HOST/` into a port; None where no shapes were named. Of W8A8 it holds the vendor's graph.

    verdict: of the comparison of the graph with its source; None where there was none
    raises:  UsageError, PortError
    """
    if compilation.gears is None:
        return None
    compared = verdict is not None
    result, images = compilation.judged, compilation.images
    gears, flat = settable(compilation.gears)
    command = atc_command(
        result.soc,
        (result.mode.option, result.mode.value),
        gears.options,
        side_files=compilation.side_options,
        aipp=CONFIG if images is not None else None,
        host_cpu=compilation.host_cpu,
        quantised=compilation.integers is not None,
    )
    notes = [*([] if compared else [NOT_COMPARED]), *([] if result.cann else [EVERY_VERSION])]
    if not compared and not result.mode.keeps_graph:
        notes.append(f"what overflows in {result.precision} was not forecast: `porting port` does that, and keeps it in fp32")
        if carriers := integer_carriers_of(result.facts):
            notes.append(
                f"{len(carriers)} nodes carry integers in floats and are not kept in fp32 here: `porting port` keeps them"
            )
    notes += [
        *(images.notes() if images is not None else []),
        *compilation.notes,
        *(str(one["note"]) for one in result.applied if "note" in one),
        *result.mode.notes,
        *result.soc.notes,
        *gears.advice(),
        *(
            [f"{len(flat)} inputs are fed flat, as aclmdlSetInputDynamicDims takes {SETTABLE} sizes over all of them"]
            if flat
            else []
        ),
    ]
    if port.manifest["kind"] == LANGUAGE_MODEL:
        notes.append(
            "prompts run in pieces, each padded on the right to a gear; logits are of every row, those of padding mean nothing, "
            "and past_length goes up by the tokens that count (porting/gear_runs.py)"
        )
    rules = [f.rule.id for f in (*result.mended, *result.noted)]
    files = {**compilation.side_files, **({CONFIG: images.config} if images is not None else {})}
    contents = contents_of(port, gears, flat, images, result.noted, verdict)
    said: dict[str, Any] = {"side_files": files, "cann": result.cann, "rules": rules, "notes": notes, "contents": contents}
    if compilation.integers is None:
        return write_handoff(port.path, command, **said)
    with deploy_file(compilation.integers.deploy) as model:
        return write_handoff(port.path, command, model=model, quantised=True, **said)
