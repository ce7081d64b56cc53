"""Every tensor of the checkpoint is used, or named as dropped with a reason. Missing, misshapen and left-over fail together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.errors import CheckpointError
from porting.types import Checkpoint, TensorSpec
from porting.weights import Stream, source_stream

SHOWN = 20  # names listed before "and N more"
WRAPPED = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}  # beginning of all names -> what put it there
# Integers and 8-bit floats mean nothing without the scales that belong to them; converting the bare codes would be silently wrong.
CODES = frozenset(("F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"))


class Weights:
    """The tensors of a checkpoint, handed out once each.

    droppable: regular expression -> reason, for tensors that carry nothing (buffers that upstream recomputes)
    """

    def __init__(self, checkpoint: Checkpoint, droppable: Mapping[str, str] | None = None) -> None:
        self.checkpoint = checkpoint
        self.dropped: dict[str, str] = {}
        self._taken: dict[str, Stream] = {}
        self._folded: dict[str, np.ndarray] = {}
        self._wrong: dict[str, tuple[str, str]] = {}  # name -> (what is wrong, as `finish` lists it)
        for name in checkpoint.tensors:
            for pattern, reason in (droppable or {}).items():
                if re.fullmatch(pattern, name):
                    self.dropped[name] = reason

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Stream:
        """The tensor as float32 rows. Asking again gives the same stream. What is wrong with it is raised by `finish`."""
        if name in self._taken:
            assert self._taken[name].outputs[0].shape == shape, f"{name} was taken with another shape"
            return self._taken[name]
        stored = self.checkpoint.tensors.get(name)
        if stored is None:
            self._wrong[name] = ("missing", f"{name} {list(shape)}")
        elif tuple(stored.shape) != shape:
            detail = f"{name}: the config asks for {list(shape)}, the file holds {list(stored.shape)}"
            self._wrong[name] = ("of another shape", detail)
        elif stored.dtype in CODES:
            self._wrong[name] = ("of a dtype that means nothing without scales", f"{name}: {stored.dtype}")
        stream = _nothing(name, shape) if name in self._wrong else source_stream(self.checkpoint, name)
        self._taken[name] = stream
        return stream

    def values(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A small tensor's values, float32, consumed; ones where the tensor is wrong, which `finish` raises."""
        stream = self.take(name, shape)
        if name in self._wrong:
            return np.ones(shape, np.float32)
        self._folded[name] = stream.make(0, stream.rows)[0]
        return self._folded[name]

    def drop(self, name: str, reason: str) -> None:
        """Leave a tensor out, saying why."""
        self.dropped[name] = reason

    def finish(self) -> dict[str, Any]:
        """The accounting for port.json: {"used": [names], "parameters": count, "dropped": [{"name", "reason"}], "folded": {name: values}}.

        "folded" holds the tensors that became constants of the graph, whole, so that the port still says what they were.

        raises: CheckpointError naming every missing, misshapen, quantised and left-over tensor together
        """
        left_over = set(self.checkpoint.tensors) - set(self._taken) - set(self.dropped)
        found: dict[str, list[str]] = {}
        for label, detail in [*self._wrong.values(), *(("left over", name) for name in sorted(left_over))]:
            found.setdefault(label, []).append(detail)
        problems = [
            f"{len(details)} {label}: {'; '.join(details[:SHOWN])}"
            + (f"; and {len(details) - SHOWN} more" if len(details) > SHOWN else "")
            for label, details in found.items()
        ]
        if problems:
            raise CheckpointError(
                "the tensors do not fit the config. " + ". ".join(problems),
                where=str(self.checkpoint.path.name),
                next=_hint(list(self.checkpoint.tensors)),
            )
        return {
            "used": sorted(self._taken),
            "parameters": sum(math.prod(s.outputs[0].shape) for s in self._taken.values()),  # type: ignore[arg-type]
            "dropped": [{"name": n, "reason": r} for n, r in sorted(self.dropped.items())],
            "folded": {n: v.tolist() for n, v in sorted(self._folded.items())},
        }


def _hint(names: list[str]) -> str:
    """What to do about a checkpoint whose names do not fit."""
    for prefix, wrapper in WRAPPED.items():
        if names and all(name.startswith(prefix) for name in names):
            return (
                f"every name begins with {prefix!r}, which {wrapper} puts there: call save_pretrained() of the model inside it, "
                "or save the tensors without that prefix"
            )
    return "check that config and weights belong together; nothing is dropped or invented silently"


def _nothing(name: str, shape: tuple[int, ...]) -> Stream:
    """Stands in for a tensor that is wrong, so that building goes on and all problems are reported at once."""

    def make(start: int, stop: int) -> tuple[np.ndarray]:
        raise CheckpointError(f"tensor {name!r} cannot be used; `Weights.finish` says why")

    return Stream([TensorSpec(name, "float32", shape)], shape[0] if shape else 1, [name], make)


def same_values(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors hold the same values, compared a stripe at a time."""
    first, second = source_stream(checkpoint, a), source_stream(checkpoint, b)
    if first.outputs[0].shape != second.outputs[0].shape:
        return False
    return all(np.array_equal(x[0], second.make(start, stop)[0]) for start, stop, x in first.stripes())
