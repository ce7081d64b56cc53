"""A model that is compiled for an Ascend SoC, in W8A8: its port runs the reference graph, its hand-off holds the vendor's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from porting.ascend.calibration import Cases, require_calibration
from porting.ascend.graph_at_hand import at_hand
from porting.ascend.preprocessing import ImageInput
from porting.ascend.w8a8 import quantised
from porting.errors import UnsupportedModel, UsageError
from porting.feeds import cases_from_npz
from porting.pixel_inputs import as_numbers
from porting.port_folder import MODEL
from porting.port_writer import specs_of
from porting.types import Graph
from porting.verdict import printable

if TYPE_CHECKING:
    from porting.ascend.compilation import Compilation, Wishes

NAMED = 5  # nodes that an error lists


def in_w8a8(compilation: Compilation, wishes: Wishes) -> Compilation:
    """Quantise what was lowered.

    raises: UsageError (state, free dimensions, a layer that is not there), InputError (no calibration, or one that does not fit), UnsupportedModel
    """
    graph = compilation.judged.lowered
    if graph.state.pairs:
        raise UsageError(
            "W8A8 is for models without state: calibration runs each case by itself", where="--precision", next="-p fp16"
        )
    if compilation.gears is None:
        raise UsageError(
            f"{printable(', '.join(compilation.free), 200)} left open, and a model in W8A8 is compiled for one shape",
            where="gears",
            next="give --batch, --image-size, --dims or --gears with one shape",
        )
    cases = calibration_cases(graph, wishes.calibration, wishes.images)
    made = quantised(graph, cases, wishes.keep_float)
    _require_range(compilation, cases)
    applied = [*compilation.judged.applied, {"name": "quantise_w8a8", "changes": len(made.decisions), "rules": []}]
    judged = replace(compilation.judged, lowered=made.reference, applied=applied)
    return replace(compilation, judged=judged, integers=made, calibration=cases, notes=[*compilation.notes, *made.notes])


def _require_range(compilation: Compilation, cases: Cases) -> None:
    """What is not in integers is compiled in fp16, and what integers become too; no file keeps a node in fp32 beside them.

    raises: UnsupportedModel naming the nodes whose numbers are beyond fp16 on the calibration, where an output is lost by that
    """
    from porting.ascend.checking import stored_precision
    from porting.ascend.exceptions import OVERFLOW
    from porting.ascend.overflow import forecasts

    judged = compilation.judged
    if stored_precision(judged.facts) != "fp32":
        return
    with forecasts(judged.lowered, cases, soc=judged.soc, precision="fp16") as forecast:
        found = forecast(())
    lost = [output.name for output in found.outputs if not output.holds and output.error > output.bound]
    if lost:  # what overflows on the way and is lost to none, as the least number of a mask, is no harm
        beyond = [node.name for node in found.overflows] or lost
        more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
        raise UnsupportedModel(
            f"{OVERFLOW}: W8A8 computes in fp16 around its integers, which changes {printable(', '.join(lost[:NAMED]), 200)} on the calibration; "
            f"beyond its range: {', '.join(printable(name, 60) for name in beyond[:NAMED])}{more}",
            where=f"node {printable(beyond[0], 80)}",
            next="-p fp16 keeps nodes in fp32 where the SoC can; or scale the numbers down in the model",
        )


def calibration_cases(graph: Graph, paths: Sequence[Path], images: Sequence[ImageInput] = ()) -> Cases:
    """The user's files, one case each. raises: InputError without files, and where one does not fit"""
    if not paths:
        require_calibration([])
    with as_numbers(images, tuple(paths)) as read:
        return list(cases_from_npz(read, specs_of(graph.model)).feeds.values())


@contextmanager
def deploy_file(deploy: Graph) -> Iterator[Path]:
    """The vendor's graph as a file, with its weights beside it, while the block runs. raises: OutOfResources"""
    with at_hand(deploy) as found:
        path = found.folder / MODEL
        path.write_bytes(found.model.SerializeToString(deterministic=True))
        yield path
