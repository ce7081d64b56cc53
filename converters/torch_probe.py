"""Whether free sizes are really free: the exported graph beside the module, on sizes that neither exporter saw.

torch.export fixes what Python decided by a size (`if x.shape[1] > 5`), with a guard that ONNX cannot hold; the TorchScript exporter fixes it
without a word. Either way the graph gives something else than the module once the answer changes, and that shows when both are run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import DeviceUnavailable, InputError, PortingError, UnsupportedModel

from .torch_calls import CallPlan, array_from_tensor, tensor_from_array
from .torch_capture import Dynamic
from .torch_checks import run_eager

if TYPE_CHECKING:
    import torch

# A graph that took another branch differs by about its whole output; ties that fall the other way and rounding by little.
# What precision a port keeps is measured by its validation, with bounds of its own.
ANOTHER = 0.05  # of the norm of the output; of the number of elements where they are integers
RUNS = 16
LARGER = 2  # times the example's elements: what a run may cost
RARE = {
    "bfloat16": "call .float() on the module: float32 holds every value of its weights",
    "float64": "call .float() on the module: its weights are rounded to float32",
}
NOISE = 0.01  # of the spread of an input: repeated rows would tie


class SizeFixed(Exception):
    """The graph gives something else than the module at these sizes."""

    def __init__(self, why: str, sizes: Mapping[str, int]) -> None:
        super().__init__(why)
        self.why = why
        self.sizes = dict(sizes)


def try_sizes(
    function: Any,
    plan: CallPlan,
    tensors: Mapping[str, torch.Tensor],
    dynamic: Dynamic,
    path: Path,
    what: str,
) -> list[dict[str, int]] | None:
    """Run the module and its graph at other sizes than the example's.

    returns: the sizes that the module takes, and at which the graph agrees; None where onnxruntime is not installed
    raises:  SizeFixed; UnsupportedModel for a dtype that onnxruntime cannot compute in, also without free sizes
    """
    base = sizes_of(tensors, dynamic)
    dtypes = _rare_dtypes(function, tensors)
    if not base and not dtypes:
        return []
    from porting.original_onnx import OnnxOriginal

    try:
        graph = OnnxOriginal(path)
    except DeviceUnavailable:
        return None
    except PortingError as error:
        if dtypes:
            raise _not_in(dtypes, what, error) from error
        raise SizeFixed(f"onnxruntime does not load the graph: {error.what}", base) from error
    if not base:
        graph.close()
        return []
    held: list[dict[str, int]] = []
    runs = 0
    try:
        for sizes in _candidates(base, held):
            if runs >= RUNS:
                break
            other = resized(tensors, dynamic, sizes)
            if elements(other) > LARGER * elements(tensors):
                continue
            runs += 1
            try:
                expected = run_eager(function, plan, other, what)
            except InputError:
                continue  # the module itself does not take them
            _require_like({name: array_from_tensor(t) for name, t in expected.items()}, graph, other, sizes)
            held.append(sizes)
    finally:
        graph.close()
    return held


def _rare_dtypes(function: Any, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Which of the dtypes that onnxruntime has few operators for the module or its inputs hold."""
    held = [*tensors.values(), *getattr(function, "parameters", list)(), *getattr(function, "buffers", list)()]
    return sorted({str(t.dtype).removeprefix("torch.") for t in held} & RARE.keys())


def _not_in(dtypes: Sequence[str], what: str, error: PortingError) -> UnsupportedModel:
    reason = re.sub(r"Load model from \S+ failed:", "", error.what.rpartition("onnxruntime: ")[2]).strip()
    return UnsupportedModel(
        f"{what} computes in {', '.join(dtypes)}, and onnxruntime does not: {reason}",
        where="the module",
        next="; ".join(RARE[dtype] for dtype in dtypes) + "; give examples in float32 then",
    )


def elements(tensors: Mapping[str, torch.Tensor]) -> int:
    """Numbers in all inputs together."""
    return sum(tensor.numel() for tensor in tensors.values())


def sizes_of(tensors: Mapping[str, torch.Tensor], dynamic: Dynamic) -> dict[str, int]:
    """Name of each free size -> its value in an example."""
    return {name: tensors[key].shape[axis] for key, axes in dynamic.items() for axis, name in axes.items()}


def resized(tensors: Mapping[str, torch.Tensor], dynamic: Dynamic, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The example with other sizes: cut, or repeated with a little noise on floats."""
    changed = {}
    for key, tensor in tensors.items():
        array = array_from_tensor(tensor)
        for axis, name in dynamic.get(key, {}).items():
            if array.shape[axis] != sizes[name]:
                array = np.take(array, np.arange(sizes[name]) % max(array.shape[axis], 1), axis=axis)
        if array.shape != tuple(tensor.shape) and array.dtype.kind == "f":
            noise = np.random.default_rng(len(key)).standard_normal(array.shape)
            array = (array + noise * NOISE * float(array.astype(np.float64).std() if array.size else 0)).astype(array.dtype)
        changed[key] = tensor_from_array(array, key)
    return changed


def _candidates(base: Mapping[str, int], held: Sequence[Mapping[str, int]]) -> Iterator[dict[str, int]]:
    """Sizes to try, the telling ones first: one more (another parity), one, and all alike or in the other order.

    held: those that the module took so far; for a size that it took at one value only, larger steps follow
    """
    seen = [dict(base)]

    def fresh(sizes: dict[str, int]) -> Iterator[dict[str, int]]:
        if sizes not in seen and min(sizes.values()) > 0:
            seen.append(sizes)
            yield sizes

    names = list(base)
    for change in (lambda n: base[n] + 1, lambda n: 1, lambda n: 2, lambda n: base[n] - 1):
        for name in names:
            yield from fresh({**base, name: change(name)})
    yield from fresh(dict.fromkeys(names, min(base.values())))
    yield from fresh(dict(zip(names, list(base.values())[::-1], strict=True)))
    for step in (8, 16, 32, 64):
        for name in names:
            if all(sizes[name] == base[name] for sizes in held):
                yield from fresh({**base, name: base[name] + step})


def _require_like(
    expected: Mapping[str, np.ndarray], graph: Any, feeds: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> None:
    try:
        got = graph.run({name: array_from_tensor(tensor) for name, tensor in feeds.items()})
    except PortingError as error:
        raise SizeFixed(f"onnxruntime cannot run the graph there: {error.what}", sizes) from error
    for output, (name, reference) in zip(graph.outputs, expected.items(), strict=True):  # in one order; names may differ
        value = np.asarray(got[output.name])
        if value.shape != reference.shape:
            raise SizeFixed(f"{name} has shape {list(value.shape)} there, the module's has {list(reference.shape)}", sizes)
        share = _difference(value, reference)
        if not share <= ANOTHER:
            raise SizeFixed(f"{name} differs from the module's by {share:.0%} there", sizes)


def _difference(value: np.ndarray, reference: np.ndarray) -> float:
    """Relative difference in the Euclidean norm; of integers the share of elements that differ. NaN counts where only one has it."""
    if not reference.size:
        return 0.0
    if reference.dtype.kind in "biu":
        return float(np.mean(value != reference))
    a, b = value.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.isfinite(a[~same]).all() or not np.isfinite(b[~same]).all():
        return 1.0
    return float(np.linalg.norm((a - b)[~same]) / max(np.linalg.norm(b[np.isfinite(b)]), np.finfo(np.float32).tiny))
