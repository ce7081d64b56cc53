"""Every tensor of the checkpoint is used, or named as dropped with a reason. Missing, misshapen and left-over fail together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.errors import CheckpointError
from porting.types import Checkpoint
from porting.weights import Stream, source_stream

SHOWN = 20  # names listed before "and N more"


class Weights:
    """The tensors of a checkpoint, handed out once each.

    droppable: regular expression -> reason, for tensors that carry nothing (buffers that upstream recomputes)
    """

    def __init__(self, checkpoint: Checkpoint, droppable: Mapping[str, str] | None = None) -> None:
        self.checkpoint = checkpoint
        self.dropped: dict[str, str] = {}
        self._taken: dict[str, Stream] = {}
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        for name in checkpoint.tensors:
            for pattern, reason in (droppable or {}).items():
                if re.fullmatch(pattern, name):
                    self.dropped[name] = reason

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Stream:
        """The tensor as float32 rows. Asking again gives the same stream. What is wrong with it is raised by `finish`."""
        if name in self._taken:
            return self._taken[name]
        stored = self.checkpoint.tensors.get(name)
        if stored is None:
            self._missing.append(f"{name} {list(shape)}")
            stream = _nothing(name, shape)
        elif tuple(stored.shape) != shape:
            self._misshapen.append(f"{name}: the config asks for {list(shape)}, the file holds {list(stored.shape)}")
            stream = _nothing(name, shape)
        else:
            stream = source_stream(self.checkpoint, name)
        self._taken[name] = stream
        return stream

    def values(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A small tensor's values, float32, consumed."""
        stream = self.take(name, shape)
        return stream.make(0, stream.rows)[0]

    def drop(self, name: str, reason: str) -> None:
        """Leave a tensor out, saying why."""
        self.dropped[name] = reason

    def finish(self) -> dict[str, Any]:
        """The accounting for port.json: {"used": [names], "dropped": [{"name", "reason"}]}.

        raises: CheckpointError naming every missing, misshapen and left-over tensor together
        """
        left_over = sorted(set(self.checkpoint.tensors) - set(self._taken) - set(self.dropped))
        problems = []
        for label, names in (("missing", self._missing), ("of another shape", self._misshapen), ("left over", left_over)):
            if names:
                shown = "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
                problems.append(f"{len(names)} {label}: {shown}")
        if problems:
            raise CheckpointError(
                "the tensors do not fit the config. " + ". ".join(problems),
                where=str(self.checkpoint.path.name),
                next="check that config and weights belong together; nothing is dropped or invented silently",
            )
        return {
            "used": sorted(self._taken),
            "dropped": [{"name": n, "reason": r} for n, r in sorted(self.dropped.items())],
        }


def _nothing(name: str, shape: tuple[int, ...]) -> Stream:
    """Stands in for a tensor that is wrong, so that building goes on and all problems are reported at once."""
    from porting.types import TensorSpec

    def make(start: int, stop: int) -> tuple[np.ndarray]:
        raise CheckpointError(f"tensor {name!r} is missing or misshapen")

    return Stream([TensorSpec(name, "float32", shape)], shape[0] if shape else 1, [name], make)


def same_values(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors hold the same values, compared a stripe at a time."""
    first, second = source_stream(checkpoint, a), source_stream(checkpoint, b)
    if first.outputs[0].shape != second.outputs[0].shape:
        return False
    return all(np.array_equal(x[0], second.make(start, stop)[0]) for start, stop, x in first.stripes())
