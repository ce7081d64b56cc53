"""MatMul(x, Transpose(W)) -> com.microsoft.MatMulNBits(x, codes, scales[, zero points]), weights rounded to nearest in blocks.

Blocks lie along the input axis of W (out, in); the last block may be partial and is padded with zeros. int8 is symmetric with the implied zero point
128; int4 is asymmetric with a zero point per block, so that 0 is exact in both. Codes are made while the port is written, a row stripe
at a time.

Refuses when W is not a streamed initializer of rank 2, or is transposed otherwise. Embeddings, norms and biases stay as they are.
Bound: each weight moves by half a step of its block at most; at accuracy level 4 the operator moves each input by 1/254 of the largest
in its block of 32 as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from porting.errors import UnsupportedModel
from porting.types import Graph, TensorSpec
from porting.weights import Stream, dtype_of, stream_of, tensors_of

from ..graph_builder import MODULE
from .attention_to_gqa import MICROSOFT
from .rewriting import copied, ints_of, made_by, node_like, pruned, take_over, weight_of

MAY_READ_MATRICES = {("", "Gather"), (MICROSOFT, "MatMulNBits")}  # an embedding; the scales of what is quantised
# onnxruntime computes in int8 with activations quantised per block; 8 bits are slow without it (measured: 3 to 5 tokens/s)
ACCURACY_LEVEL_INT8 = 4


@dataclass(frozen=True)
class Scheme:
    """bits per weight, input elements per block, and whether a block has a zero point of its own."""

    bits: int
    block: int
    zero_points: bool

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1


INT8 = Scheme(bits=8, block=32, zero_points=False)
INT4 = Scheme(bits=4, block=32, zero_points=True)
SCHEMES = {"int8": INT8, "int4": INT4}
# A smaller scale has few bits left and would miss its block by many steps; with this one such a block loses less than 1e-38.
SMALLEST = np.finfo(np.float32).smallest_normal


def quantize_rows(w: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, ...]:
    """Round rows of a weight to nearest.

    w:       (rows, n_in) float32
    returns: codes (rows, blocks, block * bits / 8) uint8, low nibble first; scales (rows, blocks) float32;
             with zero points: (rows, ceil(blocks * bits / 8)) uint8. A block that holds NaN or infinity, or spans more than
             float32 does, has a scale that is not finite: the writer of ports refuses it by name
    source:  onnxruntime ContribOperators.md, MatMulNBits
    """
    rows, n_in = w.shape
    blocks = -(-n_in // scheme.block)
    if blocks * scheme.block != n_in:
        w = np.pad(w, ((0, 0), (0, blocks * scheme.block - n_in)))
    w = w.reshape(rows, blocks, scheme.block)
    with np.errstate(invalid="ignore", over="ignore"):  # see `returns`
        if scheme.zero_points:
            low, high = np.minimum(w.min(axis=2), 0), np.maximum(w.max(axis=2), 0)
            scales = np.maximum((high - low) / np.float32(scheme.top), SMALLEST)
            zeros = np.clip(np.rint(-low / scales), 0, scheme.top)
        else:
            half = 1 << (scheme.bits - 1)
            scales = np.maximum(np.abs(w).max(axis=2) / np.float32(half - 1), SMALLEST)
            zeros = np.full_like(scales, half)
        codes = np.clip(np.rint(w / scales[..., None]) + zeros[..., None], 0, scheme.top).astype(np.uint8)
    packed = codes if scheme.bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    if not scheme.zero_points:
        return packed, scales
    points = np.nan_to_num(zeros).astype(np.uint8)
    if scheme.bits == 4:
        points = np.pad(points, ((0, 0), (0, blocks % 2)))
        points = points[:, 0::2] | (points[:, 1::2] << 4)
    return packed, scales, points


def dequantize_rows(codes: np.ndarray, scales: np.ndarray, points: np.ndarray | None, n_in: int, bits: int) -> np.ndarray:
    """The weights that codes stand for, by the operator's own definition: (code - zero point) * scale.

    codes:   (rows, blocks, block * bits / 8) uint8
    scales:  (rows, blocks) float32
    points:  (rows, ceil(blocks * bits / 8)) uint8, or None for 2 ** (bits - 1)
    returns: (rows, n_in) float32
    """
    rows, blocks = scales.shape
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, blocks, -1)
        if points is not None:
            points = np.stack([points & 15, points >> 4], axis=-1).reshape(rows, -1)[:, :blocks]
    zeros = np.float32(1 << (bits - 1)) if points is None else points.astype(np.float32)[..., None]
    return ((codes.astype(np.float32) - zeros) * scales[..., None]).reshape(rows, -1)[:, :n_in]


def quantize_linear(graph: Graph, scheme: Scheme) -> tuple[Graph, int]:
    """Rewrite every linear layer with weights of `scheme`."""
    new = copied(graph)
    body = new.model.graph
    made: dict[str, list[ir.Value]] = {}
    changes = 0
    for node in [n for n in body if n.op_type == "MatMul" and n.domain == ""]:
        transpose = made_by(node.inputs[1], "Transpose")
        weight = transpose.inputs[0] if transpose is not None and ints_of(transpose, "perm") == [1, 0] else None
        found = stream_of(weight_of(weight))
        if weight is None or found is None or len(found[0].outputs[0].shape) != 2:
            continue
        name = str(weight.name)
        if name not in made:  # a tied head and an embedding share a weight, not its codes
            made[name] = [_register(body, t) for t in tensors_of(quantized_stream(found[0], scheme))]
        n_out, n_in = (int(d) for d in found[0].outputs[0].shape if d is not None)
        quantized = node_like(
            node,
            "MatMulNBits",
            [node.inputs[0], *made[name]],
            domain=MICROSOFT,
            N=n_out,
            K=n_in,
            bits=scheme.bits,
            block_size=scheme.block,
            accuracy_level=ACCURACY_LEVEL_INT8,
        )
        take_over(node.outputs[0], quantized.outputs[0])
        changes += 1
    if changes:
        body.opset_imports[MICROSOFT] = 1
        new = pruned(new)
    return new, changes


def require_quantized(graph: Graph) -> None:
    """Refuse a graph in which something but an embedding still computes with a float matrix.

    A layer that `quantize_linear` did not recognise stays right, but the port would be larger and slower than its name says.

    raises: UnsupportedModel naming the modules and their weights
    """
    body = graph.model.graph
    values = [value for part in (body, *body.subgraphs()) for value in part.initializers.values()]
    values += [node.outputs[0] for node in body.all_nodes() if node.op_type == "Constant"]
    left = []
    for value in values:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) < 2:
            continue
        for node, _ in value.uses():
            if (node.domain, node.op_type) not in MAY_READ_MATRICES:
                left.append(f"{node.metadata_props.get(MODULE) or node.name} ({node.op_type} of {value.name})")
    if left:
        raise UnsupportedModel(
            f"{len(left)} layers were not quantised: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}",
            where="pass quantize_linear",
            next="convert with precision fp32; a layer of this shape needs a case in the pass",
        )


def quantized_stream(source: Stream, scheme: Scheme) -> Stream:
    """A weight's stream as codes, scales and, if the scheme has them, zero points."""
    spec = source.outputs[0]
    rows, n_in = (int(d) for d in spec.shape if d is not None)
    blocks = -(-n_in // scheme.block)
    outputs = [
        TensorSpec(f"{spec.name}.codes", "uint8", (rows, blocks, scheme.block * scheme.bits // 8)),
        TensorSpec(f"{spec.name}.scales", "float32", (rows, blocks)),
    ]
    if scheme.zero_points:
        outputs.append(TensorSpec(f"{spec.name}.zero_points", "uint8", (rows, -(-blocks * scheme.bits // 8))))

    def make(start: int, stop: int) -> tuple[np.ndarray, ...]:
        return quantize_rows(source.make(start, stop)[0].astype(dtype_of("float32"), copy=False), scheme)

    return Stream(outputs, rows, source.sources, make)


def _register(body: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
    body.register_initializer(value)
    return value
