"""A forecast from headers alone: memory, disk, time, and a lower bound of cards. Nothing is read but headers, nothing is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from porting.conversion import canonical_graph
from porting.targets import find_target
from porting.types import Checkpoint
from porting.weights import STRIPE_BYTES

SCHEMA = "porting.plan/1"
PRECISION_NAMES = ("fp32", "fp16", "int8", "int4")

# Measured on two cores of a Sapphire Rapids server with the page cache warm (benchmarks/convert_speed.py); a forecast, not a promise.
BASE_RSS = 170 << 20  # bytes: the interpreter, numpy and onnx-ir
STRIPE_COPIES = {"fp32": 3, "int8": 20, "int4": 40}  # stripes of output alive at once: float rows are 4 and 8 times their codes
BYTES_PER_SECOND = {"fp32": 800e6, "int8": 90e6, "int4": 80e6}  # of fp32 weights read, checked, rounded and written

_FLOAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
_BLOCK = 32
_CODE_BYTES = {"int8": 1 + 4 / _BLOCK, "int4": 0.5 + (4 + 0.5) / _BLOCK}


def weight_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the weights in a precision: matrices as codes and scales, the rest (embedding, norms, biases) in fp32.

    A tied embedding counts twice under int8 and int4: it stays float, and the head has codes of its own.
    """
    total = 0.0
    tied = "lm_head.weight" not in checkpoint.tensors
    for name, tensor in checkpoint.tensors.items():
        size = math.prod(tensor.shape)
        if precision in _FLOAT_BYTES:
            total += size * _FLOAT_BYTES[precision]
            continue
        embedding = name == "model.embed_tokens.weight"
        if embedding or len(tensor.shape) != 2:
            total += size * 4
        if len(tensor.shape) == 2 and (not embedding or tied):
            total += size * _CODE_BYTES[precision]
    return int(total)


def forecast_ram(checkpoint: Checkpoint, precision: str) -> int:
    """Peak resident bytes of the conversion: fixed, whatever the size of the model, but for its table of names."""
    return BASE_RSS + STRIPE_COPIES.get(precision, 3) * STRIPE_BYTES + 2048 * len(checkpoint.tensors)


def plan(source: str | Path, target: str = "cpu", precision: str | None = None, *, weights: str = "link") -> dict[str, Any]:
    """Forecast a conversion.

    returns: a JSON-able object: peak_ram_bytes, written_bytes, linked_bytes, seconds, weights_bytes, cards_at_least (None when the memory of the
             target is not known), notes
    raises:  as `convert` does for a checkpoint that it would refuse
    """
    from porting.converters.checkpoints.open import open_checkpoint

    wanted = find_target(target)
    checkpoint = open_checkpoint(source)
    canonical_graph(checkpoint)
    notes = list(wanted.notes)
    chosen = precision or "fp32"
    if chosen not in PRECISION_NAMES:
        from porting.errors import UsageError, nearest

        raise UsageError(f"no forecast for precision {chosen!r}", where="--precision", next=nearest(chosen, PRECISION_NAMES))
    if chosen not in wanted.precisions:
        notes.append(f"{wanted.name} is not written in {chosen} by this version: the figures are those of the weights alone")
    size = weight_bytes(checkpoint, chosen)
    linked = sum(t.nbytes for t in checkpoint.tensors.values() if chosen == "fp32" and t.plain and t.dtype == "F32")
    if weights == "copy":
        linked = 0
    read = sum(math.prod(t.shape) * 4 for t in checkpoint.tensors.values())
    return {
        "schema": SCHEMA,
        "source": Path(source).name,
        "target": wanted.name,
        "precision": chosen,
        "weights_bytes": size,
        "linked_bytes": linked,
        "written_bytes": size - linked,
        "peak_ram_bytes": forecast_ram(checkpoint, chosen),
        "seconds": round(1.0 + read / BYTES_PER_SECOND.get(chosen, 400e6), 1),
        "cards_at_least": None if wanted.memory is None else max(1, math.ceil(size / wanted.memory)),
        "device_memory_bytes": wanted.memory,
        "notes": notes,
    }
