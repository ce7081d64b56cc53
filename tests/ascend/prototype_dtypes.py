"""What prototypes of the graph engine's operators name for data inputs of ONNX operators: hicann/ops-nn e5c3fa932, ops-math c41933244, ops-cv 6ae87653.

Read once from those sources, beside the rules and not from them. Only those that write their dtypes out; of a type of their own nothing is said.
"""

FLOATS = {"float32", "float16"}
HALVES = {"bfloat16"}
SMALL = {"int8", "uint8"}
MIDDLE = {"int16", "uint16"}
SIGNED = {"int32", "int64"}
UNSIGNED = {"uint32", "uint64"}
NUMBERS = FLOATS | {"float64"} | SMALL | MIDDLE | SIGNED | UNSIGNED
PROTOTYPES: dict[str, tuple[tuple[int, ...], set[str]]] = {
    "Conv": ((0, 1, 2), FLOATS | HALVES | {"int8"}),
    "ConvTranspose": ((0, 1), {"float16", "int8"} | HALVES),
    "MatMul": ((0, 1), FLOATS | HALVES | {"int32", "int8"}),
    "Gemm": ((0, 1, 2), FLOATS | HALVES),
    "Add": ((0, 1), FLOATS | HALVES | SMALL | SIGNED | {"bool", "int16", "float64"}),
    "Sub": ((0, 1), FLOATS | HALVES | SMALL | MIDDLE | SIGNED | {"bool", "float64"}),
    "Div": ((0, 1), FLOATS | HALVES | SMALL | MIDDLE | SIGNED | {"bool", "float64"}),
    "Sqrt": ((0,), FLOATS | HALVES),
    "Relu": ((0,), FLOATS | HALVES | SMALL | MIDDLE | SIGNED | {"float64"}),
    "LeakyRelu": ((0,), FLOATS | HALVES | {"float64"}),
    "Softmax": ((0,), FLOATS | HALVES | {"float64"}),
    "LayerNormalization": ((0, 1, 2), FLOATS | HALVES),
    "InstanceNormalization": ((0, 1, 2), FLOATS | HALVES),
    "GatherElements": ((0,), NUMBERS | HALVES | {"bool"}),
    "GatherND": ((0,), NUMBERS | HALVES | {"bool"}),
    "Where": ((1, 2), NUMBERS | HALVES | {"bool"}),
    "Cast": ((0,), NUMBERS | HALVES | {"bool"}),
    "Concat": ((0,), (NUMBERS | HALVES | {"bool"})),
    "Split": ((0,), NUMBERS | HALVES | {"bool"}),
    "Transpose": ((0,), NUMBERS | HALVES | {"bool"}),
    "Expand": ((0,), FLOATS | HALVES | SMALL | SIGNED | {"bool"}),
    "Tile": ((0,), NUMBERS | HALVES | {"bool"}),
    "CumSum": ((0,), NUMBERS | HALVES),
    "Einsum": ((0,), FLOATS | {"int32"}),
    "MaxPool": ((0,), FLOATS | HALVES),
    "AveragePool": ((0,), FLOATS | {"float64"}),
    "GlobalAveragePool": ((0,), FLOATS | {"float64"}),
    "Resize": ((0,), FLOATS | SMALL | MIDDLE | SIGNED | {"float64"}),
    "GridSample": ((0, 1), FLOATS),
    "NonZero": ((0,), NUMBERS | HALVES | {"bool"}),
    "IsNaN": ((0,), FLOATS | HALVES | {"float64"}),
    "Mod": ((0, 1), FLOATS | HALVES | SMALL | SIGNED | {"float64"}),
    "OneHot": ((0,), SIGNED | {"uint8"}),
    "Mish": ((0,), FLOATS | HALVES),
}
