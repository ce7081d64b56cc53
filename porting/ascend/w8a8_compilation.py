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
from porting.errors import UsageError
from porting.feeds import cases_from_npz
from porting.pixel_inputs import as_numbers
from porting.port_folder import MODEL
from porting.port_writer import specs_of
from porting.types import Graph
from porting.verdict import printable

if TYPE_CHECKING:
    from porting.ascend.compilation import Compilation, Wishes


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
    applied = [*compilation.judged.applied, {"name": "quantise_w8a8", "changes": len(made.decisions), "rules": []}]
    judged = replace(compilation.judged, lowered=made.reference, applied=applied)
    return replace(compilation, judged=judged, integers=made, calibration=cases, notes=[*compilation.notes, *made.notes])


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
