"""Does the target graph compute what its own precision should? The graph that it is held against, the runs, and the bound.

Held against: the canonical fp32 graph, built again from what lies in the port (codes dequantised by the operator's definition). Its
attention stays Attention over TensorScatter with an explicit mask, where the port has GroupQueryAttention; its matrices are multiplied
as they are stored (FusedMatMul). A fault of FusedMatMul alone, which an fp32 port shares, shows against the reference.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from porting.conversion import MIN_RUNTIME, canonical_graph
from porting.converters.checkpoints.port import PortCheckpoint
from porting.converters.passes.linear_to_fused import linear_to_fused
from porting.errors import InputError, OutOfResources
from porting.gear_runs import buckets_of, run_tokens
from porting.numerics.bounds import UNIT_ROUNDOFF, Bound, activation_quantisation_bound, combined, rounding_bound
from porting.numerics.metrics import compare
from porting.port_folder import MODEL, Port
from porting.port_writer import Source, write_port
from porting.scratch import ScratchFolder
from porting.session import Session, open_session
from porting.types import Checkpoint
from porting.verdict import Check

# Node by node as the graph is written, and weights left in their file: for SmolLM2 110 MB of private memory in place of 910 MB, and
# 0.5 s in place of 1.3 s, against MatMul(x, Transpose(W)), which copies every weight in every run (4 runs of 32 positions, 2 cores).
CANONICAL_DEVICE = "cpu,optimization=off,prepack=0"
CHUNK = 8  # positions per run in the chunked mode
Runs = Callable[[Session], Mapping[str, np.ndarray]]  # case -> array
ManyRuns = Callable[[Session], Mapping[str, Mapping[str, np.ndarray]]]  # output -> case -> array
ACTIVATIONS_IN_INT8 = 4  # accuracy_level of MatMulNBits from which activations are rounded too


@contextmanager
def canonical_session(checkpoint: Checkpoint) -> Iterator[Session]:
    """The fp32 graph of a checkpoint (a source, or a port read back), as a port in a temporary folder, open on CANONICAL_DEVICE."""
    graph, _ = linear_to_fused(canonical_graph(checkpoint).graph)
    described: dict[str, Any] = {"kind": "canonical", "architecture": "", "target": "cpu", "precision": "fp32"}
    described |= {"config": {}, "tensors": {}, "passes": [], "min_runtime": MIN_RUNTIME}
    with ScratchFolder() as folder:
        try:
            port = write_port(graph, Path(folder) / "canonical", described, Source(checkpoint.format, tuple(checkpoint.files)))
        except OutOfResources as error:
            raise OutOfResources(
                f"the reference run needs the weights in fp32: {error.what}",
                where=f"the temporary folder, {tempfile.gettempdir()}",
                next="free space there, or set TMPDIR to a larger place",
            ) from error
        with open_session(port.program(), CANONICAL_DEVICE) as session:
            yield session


@contextmanager
def float_session(port: Port) -> Iterator[Session]:
    """The port's own graph on the CPU, with the activations of its quantised layers left in float32.

    Rounded activations are noise of a few percent in the logits, and a wrong epsilon hides behind it. Without them the same graph, codes
    and scales agree with the canonical graph to fp32 rounding (SmolLM2: 1.4e-6 in int8, 6e-6 in int4, against 3.5e-2 and 4.4e-2).
    """
    model = onnx.load(str(port.path / MODEL), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "MatMulNBits" else ():
            if attribute.name == "accuracy_level":
                attribute.i = 0
    with ScratchFolder() as temporary:
        folder = Path(temporary)
        for entry in port.manifest["files"]:
            if entry["path"] != MODEL:
                (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(port.path / entry["path"], folder / entry["path"])
        onnx.save(model, str(folder / MODEL))
        with open_session(replace(port.program(), model=folder / MODEL), "cpu") as session:
            yield session


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # onnxruntime follows no symbolic links
    except OSError:
        shutil.copyfile(source, target)


def run_whole(session: Session, ids: np.ndarray, buckets: Sequence[int] = ()) -> np.ndarray:
    """Logits of all positions from an empty state: (B, S) int64 -> (B, S, V) float32. In one run, or of a port with gears in few.

    buckets: as `run_tokens` takes them
    """
    if not session.program.gears:
        return session.run({"input_ids": ids})["logits"]
    batch = session.program.gears[0]["input_ids"][0]
    parts = []
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        fed = np.resize(rows, (batch, ids.shape[1]))  # rows are taken again where they do not fill the batch
        parts.append(run_tokens(session, fed, session.new_state(batch=batch), buckets=buckets)[: len(rows)])
    return np.concatenate(parts)


def run_in_chunks(session: Session, ids: np.ndarray) -> np.ndarray:
    """Logits of the same ids with a past: in chunks of CHUNK for the first half, singly after, as generation does. Row by row.

    Of a port with gears: in its shortest one throughout.
    """
    if session.program.gears:
        return run_whole(session, ids, buckets_of(session.program)[:1])
    rows = []
    for row in ids:
        state = session.new_state(len(row))
        parts = [session.run({"input_ids": np.ascontiguousarray(row[None, a:b])}, state)["logits"] for a, b in _cuts(len(row))]
        rows.append(np.concatenate(parts, axis=1))
    return np.concatenate(rows)


def _cuts(length: int) -> list[tuple[int, int]]:
    """[start, stop) of every run; at least two runs for two positions or more, or nothing would have a past."""
    half = max(length // 2, 1)
    starts = [*range(0, half, CHUNK), *range(half, length)]
    return list(zip(starts, [*starts[1:], length], strict=True))


def fidelity_check(
    name: str,
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    bound: Bound,
    detail: str,
    output: str = "logits",
) -> Check:
    """The worst case's relative L2 error, with the place of its largest difference; undecided where the reference shows nothing."""
    title = f"{name}: relative error of {output}"
    try:
        found = {case: compare(reference[case], candidate[case], name=f"{case}/{output}") for case in reference}
    except InputError as error:  # the port's weights make the canonical graph overflow, or give one constant
        return Check(title, "error", None, bound.value, error.where, error.what)
    worst = max(found, key=lambda case: badness(found[case].rel_l2))
    where = found[worst].where(f"{worst}/{output}")
    return Check.at_most(title, found[worst].rel_l2, bound.value, where, f"{detail}. {bound.derivation}")


def badness(value: float) -> float:
    """For comparing errors: NaN is the worst of all."""
    return float("inf") if value != value else value


@dataclass(frozen=True)
class Products:
    """The inner products of a graph.

    linear:    length of each layer's, in graph order, the head last; 0 where the graph does not say
    quantised: for each, the values per scale of its activations, 0 where those stay float
    attention: attention nodes, each with two products: over head_dim, and over the positions it looks at
    head_dim:  the longest cache row, 0 without a cache
    """

    linear: list[int]
    quantised: list[int]
    attention: int
    head_dim: int


def products(port: Port) -> Products:
    """Read the inner products off a port's graph."""
    linear, quantised, attention = [], [], 0
    for node in ir.load(port.path / MODEL).graph:
        if node.op_type == "MatMulNBits":
            linear.append(node.attributes["K"].as_int())
            level = node.attributes["accuracy_level"].as_int() if "accuracy_level" in node.attributes else 0
            quantised.append(node.attributes["block_size"].as_int() if level >= ACTIVATIONS_IN_INT8 else 0)
        elif node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
            linear.append(_summed(node))
            quantised.append(0)
        elif node.op_type in ("Attention", "GroupQueryAttention"):
            attention += 1
    program = port.program()
    caches = {pair.input for pair in program.state.pairs if pair.axis is not None}
    dims = [spec.shape[-1] for spec in program.inputs if spec.name in caches and spec.shape]
    return Products(linear, quantised, attention, max((d for d in dims if isinstance(d, int)), default=0))


def _summed(node: ir.Node) -> int:
    """Length of the sums of a matrix product, from whichever side has a known shape; 0 when neither has."""
    for side, flag, along in ((1, "transB", (-2, -1)), (0, "transA", (-1, -2))):
        value = node.inputs[side]
        turned = flag in node.attributes and node.attributes[flag].as_int() != 0
        if value is not None and value.shape is not None and len(value.shape) > 1:
            size = value.shape[along[turned]]
            if isinstance(size, int):
                return size
    return 0


def rounding(port: Port, positions: int) -> Bound:
    """What fp32 roundings amount to in this port's graph, relative L2 of the logits.

    positions: the longest case, over which attention sums
    """
    found = products(port)
    longest = max([*found.linear, positions])
    lengths = [length or longest for length in found.linear]
    attention = [found.head_dim or longest, positions] * found.attention
    return rounding_bound(
        [*attention, *lengths[:-1]], UNIT_ROUNDOFF["float32"], residual_blocks=_residual(found), final=lengths[-1:]
    )


def fidelity_bound(port: Port, positions: int, run: Runs, own: Mapping[str, np.ndarray]) -> Bound:
    """As `fidelity_bounds`, of a graph with one output: case -> array."""
    return fidelity_bounds(port, positions, lambda session: {"": run(session)}, {"": own})[""]


def fidelity_bounds(port: Port, positions: int, run: ManyRuns, own: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Bound]:
    """What the roundings of the port's precision amount to, relative L2 of each output.

    positions: the longest case
    run:       the cases on a session: output -> case -> array
    own:       what that gives for the canonical graph of the port's weights; where activations are rounded to int8, the graph is run
               once more to measure by how much it amplifies such noise
    """
    plain = rounding(port, positions)
    found = products(port)
    blocks = [block for block in found.quantised if block]
    if not blocks:
        return dict.fromkeys(own, plain)
    head = int(found.quantised[-1] > 0)
    counted = {"products": len(blocks) - head, "block": max(blocks), "residual_blocks": _residual(found), "final": head}
    expected = activation_quantisation_bound(**counted).value
    each = activation_quantisation_bound(0, max(blocks), final=1).value  # of one product
    return {
        name: combined(plain, activation_quantisation_bound(**counted, amplification=max(1.0, noise / expected)))
        for name, noise in noise_at_the_end(port, run, own, each).items()
    }


def rounds_activations(port: Port) -> bool:
    """Whether a layer of the port computes with rounded activations."""
    return any(products(port).quantised)


def _residual(found: Products) -> int:
    """A decoder layer adds its attention and its MLP to the residual stream; a graph without attention is taken as a plain chain."""
    return 2 * found.attention


def noise_at_the_end(port: Port, run: ManyRuns, own: Mapping[str, Mapping[str, np.ndarray]], size: float) -> dict[str, float]:
    """Relative L2 error of each output, of its worst case, when every matrix product of the canonical graph is off by `size`.

    A weight times (1 +- size), the sign at random, changes a product of independent terms by `size` relative to the root mean square of
    what it sums, as rounding its activations does.
    """
    with canonical_session(_Shaken(PortCheckpoint(port), size)) as session:
        shaken = run(session)
    return {output: _largest_error(by_case, shaken[output]) for output, by_case in own.items()}


def _largest_error(own: Mapping[str, np.ndarray], shaken: Mapping[str, np.ndarray]) -> float:
    try:
        return max(compare(own[case], shaken[case], name=case).rel_l2 for case in own)
    except InputError:  # `own` shows nothing, and the check that it is for will say so
        return 0.0


class _Shaken:
    """A checkpoint whose matrices are off by a factor of 1 +- size; what is looked up (embeddings) and vectors stay."""

    format = "port"

    def __init__(self, held: PortCheckpoint, size: float) -> None:
        self.path, self.config, self.files, self.tensors = held.path, held.config, held.files, held.tensors
        self._held, self._size = held, np.float32(size)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = self._held.rows(name, start, stop)
        if not self.tensors[name].dtype.startswith("INT"):  # kept plain: no product with rounded activations
            return rows
        rng = np.random.default_rng([*name.encode(), start])
        signs = np.unpackbits(rng.integers(0, 256, -(-rows.size // 8), np.uint8), count=rows.size).reshape(rows.shape)
        return rows * (1 + self._size * (2 * signs.astype(np.float32) - 1))

    def side_files(self) -> Mapping[str, bytes]:
        return {}
