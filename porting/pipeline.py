"""The main job: a model in; port, verdict and evidence out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.conversion import (
    GRAPH,
    canonical_graph,
    compilation_of,
    highest_opset_of,
    output_and_examples,
    precision_of,
    wishes_for,
    write_canonical,
)
from porting.cuts import cut_details
from porting.devices import parse_device
from porting.errors import DeviceUnavailable
from porting.evidence import require_evidence
from porting.inputs import paths_of
from porting.judgement import Judgement, judgement_of_golden, judgement_of_source
from porting.junit import to_junit
from porting.pixel_inputs import as_numbers, cases_as_numbers, judged_with_pixels, pixel_cases, pixel_checks
from porting.port_folder import EVIDENCE, Port
from porting.port_staging import os_errors, write_synced
from porting.port_writer import require_free
from porting.progress import silent
from porting.recording import identity_of_port
from porting.registry import load_backend
from porting.sources import opened
from porting.targets import Target, find_target
from porting.verdict import Check, Verdict

if TYPE_CHECKING:
    from porting.ascend.compilation import Compilation
    from porting.ascend.gear_requests import Request


def port(
    source: Any,
    output_or_examples: Any = None,
    target: str = "cpu",
    precision: str | None = None,
    *,
    output: str | Path | None = None,
    against: str | Path | None = None,
    device: str = "cpu",
    inputs: str | Path | Sequence[str | Path] | None = None,
    weights: str = "link",
    force: bool = False,
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
    require_level: str = "static",
) -> Verdict:
    """Convert `source` into a port, compare it with a reference, and write the evidence into it.

    source:  as `porting.convert` takes it; so are `output_or_examples`, `output`, `example_inputs`, `dynamic`, `state`, `outputs`, `fix`,
             `allow_pickle`
    against: a golden; the original when left out (transformers for a checkpoint, else the untouched file or module itself)
    inputs:  .npz files to validate on, in place of the built-in or generated inputs; uint8 images for inputs that `preprocessing` describes
    cann:    as `porting.convert` takes it, and `gears`, `host_cpu` and `preprocessing`. For an Ascend target the lowered graph is compared on
             `device`, in every gear, which shows that it computes the same and nothing about Ascend: level "static". Where the device is
             Ascend or its simulation that comes first, on the CPU. What the rules block is a verdict that fails, and no port is written;
             a port that passes holds the hand-off for the compiler, in targets/
    require_level: the weakest evidence level that counts
    calibration, keep_float: as `porting.convert` takes them. A graph without `inputs` is compared on the calibration, and the verdict says so
    returns: the verdict, also in the port's evidence/ as verdict.json and junit.xml; evidence/golden.json holds the reference
    raises:  what `convert` and `validate` raise; a missing device, reference or level is found before anything is written
    """
    start = time.perf_counter()
    wanted = find_target(target)
    destination, example_inputs = output_and_examples(output_or_examples, output, example_inputs)
    require_free(destination, force)
    require_evidence(device, require_level, wanted.name)
    require_usable(device)
    wishes = wishes_for(wanted, cann, gears, host_cpu, preprocessing, paths_of(calibration), keep_float)
    files, images = paths_of(inputs), () if wishes is None else wishes.images
    options = {"example_inputs": example_inputs, "dynamic": dynamic, "state": state, "allow_pickle": allow_pickle}
    options |= {"outputs": outputs, "fix": fix}
    with as_numbers(images, files) as read, opened(source, inputs=read, **options) as found:
        canonical = canonical_graph(found, highest_opset_of(wanted))
        compilation = compilation_of(canonical, wanted, precision, wishes)
        if compilation is not None and compilation.judged.portability == "blocked":
            from porting.ascend.checking import source_name, verdict_of

            return verdict_of(compilation.judged, "port", source_name(canonical), wanted, time.perf_counter() - start)
        if not files and wishes is not None and canonical.kind == GRAPH:
            files = tuple(wishes.calibration)  # generated inputs show what W8A8 costs on noise
        shapes = () if compilation is None or compilation.gears is None else compilation.gears.shapes
        chosen = precision_of(canonical, wanted, precision)
        described = None if compilation is None else compilation.images
        pixels = pixel_cases(described, files, {pair.input for pair in canonical.graph.state.pairs})
        if against is None:
            with cases_as_numbers(described, pixels, files) as cases:
                judgement = judgement_of_source(canonical, cases, shapes)
        else:
            judgement = judgement_of_golden(Path(against), files, canonical.kind, found)
        judgement.require_model(canonical.architecture, canonical.config)
        with progress(f"reference: {judgement.description}", 1, unit="runs") as advance:
            judgement.prepare()
            advance(1)
        made = write_canonical(
            canonical, destination, wanted, chosen, compilation=compilation, weights=weights, force=force, progress=progress
        )
        compilation, more, forecast = of_the_compiler(compilation, made, judgement.case_feeds, progress)
        first = "cpu" if runs_compiled(wanted, device) else device
        pixels_hold = pixel_checks(made, described, pixels, first)
        verdict = judgement.judge(made, first, command="port", progress=progress, more=more + pixels_hold)
        handed = {} if compilation is None else {"handoff": handed_over(made, compilation, verdict)}
        details = {
            **verdict.details,
            "tensors_used": len(made.manifest["tensors"]["used"]),
            "tensors_dropped": made.manifest["tensors"]["dropped"],
            **missing_weights(made),
            **constant_inputs(made),
            **cut_details(made.manifest["config"]),
            **({"image_cases": list(pixels)} if pixels else {}),
            **forecast,
            **handed,
            "total_seconds": round(time.perf_counter() - start, 3),
            "again": f"porting validate {made.path} --device {device}",
        }
        full = Verdict(**{**verdict.__dict__, "details": details})
        write_evidence(made, full, judgement)
        if first != device and full.ok:  # now there is a hand-off, and what its compiled form may cost is in the evidence
            more += pixel_checks(made, described, pixels, device)
            verdict = judged_with_pixels(judgement, made, described, device, more, command="port", progress=progress)
            full = Verdict(**{**verdict.__dict__, "details": {**details, **verdict.details}})
            write_evidence(made, full, judgement)
    return full


def runs_compiled(target: Target, device: str) -> bool:
    """Whether the device needs what is handed over of a port that passed: such a port is compared on the CPU, and then on the device."""
    return target.kind == "ascend" and parse_device(device).name.startswith("ascend")


def of_the_compiler(
    compilation: Compilation | None, made: Port, cases: Mapping[str, Any], progress: Any
) -> tuple[Compilation | None, list[Check], dict[str, Any]]:
    """What a vendor's compiler will do to the numbers of a port: W8A8's integers, and the forecast of fp16 with what has to stay in fp32."""
    if compilation is None:
        return None, [], {}
    if compilation.integers is not None:
        from porting.ascend.w8a8_validation import fidelity_of

        return compilation, fidelity_of(compilation.integers, compilation.calibration), {}
    from porting.ascend.exceptions import with_exceptions

    with progress("forecast of the precision", 1, unit="graphs") as advance:
        found = with_exceptions(compilation, made, cases)
        advance(1)
    return found


def handed_over(made: Port, compilation: Compilation, verdict: Verdict) -> str:
    """Write the hand-off of a port that passed; what the report says of it."""
    from porting.ascend.compilation import hand_over

    if verdict.verdict != "pass":
        return f"no hand-off: the verdict is {verdict.verdict!r}, and nothing is compiled from that"
    folder = hand_over(made, compilation, verdict)
    return compilation.no_handoff() if folder is None else str(folder.relative_to(made.path))


def missing_weights(made: Port) -> dict[str, list[str]]:
    """What a weights file left as the factory of the module made it, where that was allowed."""
    loaded = made.manifest["config"].get("weights") if made.manifest["kind"] == GRAPH else None
    names = loaded.get("missing") if isinstance(loaded, Mapping) else None
    return {"weights_missing": list(names)} if names else {}


def constant_inputs(made: Port) -> dict[str, list[str]]:
    """What the port does not take, since it is a constant there: inputs of an .onnx file with a default, numbers of a torch example."""
    config = made.manifest["config"] if made.manifest["kind"] == GRAPH else {}
    numbers = [f"{name} = {value}" for name, value in config.get("constants", {}).items() if value is not None]
    names = [*config.get("constant_inputs", ()), *numbers]
    return {"constant_inputs": names} if names else {}


def require_usable(device: str) -> None:
    """Whether one of the devices asked for can run here. raises: DeviceUnavailable, UsageError"""
    wanted = parse_device(device)
    refused, next_step = [], ""
    for name in wanted.alternatives:
        available = load_backend(name).probe()
        if available.usable:
            return
        refused.append(f"{name}: {available.reason}")
        next_step = available.next
    raise DeviceUnavailable(
        f"device {device!r} is not available: {'; '.join(refused)}",
        where="probe",
        next=next_step or "`porting doctor` lists every device",
    )


def write_evidence(made: Port, verdict: Verdict, judgement: Judgement) -> None:
    """verdict.json, junit.xml and the golden, into the port's evidence/."""
    folder = made.path / EVIDENCE
    with os_errors(folder):
        folder.mkdir(exist_ok=True)
        write_synced(folder / "junit.xml", to_junit(verdict))
        write_synced(folder / "verdict.json", f"{verdict.to_json()}\n".encode())
    judgement.golden(identity_of_port(made)).save(folder / "golden.json")
