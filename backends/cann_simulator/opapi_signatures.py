"""Operators of libopapi that are computed here, and what each is handed, in order. As op-plugin calls them; CANN's pages on aclnn say the same.

    t tensor      o output      m tensor that is changed in place      T list of tensors     O list of outputs
    s scalar      i int64       b int8 or bool                         y dtype               d double      f float
    A int array   B bool array  F float array                          S text                L list of scalars

What each computes is the function of its name in opapi_elements.py, opapi_layout.py, opapi_reductions.py or opapi_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping

_UNARY = (
    "Abs Neg Exp Exp2 Expm1 Log Log2 Log10 Log1p Sqrt Rsqrt Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh "
    "Erf Erfc Erfinv Sign Floor Ceil Round Trunc Frac Relu Silu Sigmoid Hardswish Hardsigmoid Mish Gelu LogicalNot BitwiseNot "
    "IsFinite"
)
_IN_PLACE = "Exp Log Sqrt Rsqrt Reciprocal Sin Cos Tanh Erf Floor Ceil Relu Sigmoid Hardswish Hardsigmoid Mish LogicalNot"
_OF_TWO = "Eq Ne Lt Le Gt Ge BitwiseAnd BitwiseOr BitwiseXor"

# signature -> the operators that have it
_SHARED: Mapping[str, str] = {
    "to": f"{_UNARY} Max Min Nonzero",
    "m": " ".join(f"Inplace{name}" for name in _IN_PLACE.split()) + " InplaceOne InplaceZero",
    "tto": " ".join(f"{name}Tensor" for name in _OF_TWO.split())
    + " Mul Div Maximum Minimum PowTensorTensor LogicalAnd LogicalOr LogicalXor Atan2 RemainderTensorTensor FloorDivide"
    " ClampMinTensor ClampMaxTensor Prelu Embedding MaskedSelect Dot",
    "tso": " ".join(f"{name}Scalar" for name in _OF_TWO.split())
    + " Muls Divs PowTensorScalar RemainderTensorScalar FloorDivides ClampMin ClampMax LeakyRelu",
    "sto": "PowScalarTensor",
    "mt": " ".join(f"Inplace{name}Tensor" for name in _OF_TWO.split() if name != "BitwiseOr")
    + " InplaceMul InplaceDiv InplaceCopy InplaceFillTensor InplaceLogicalAnd InplaceLogicalOr InplacePowTensorTensor",
    "ms": " ".join(f"Inplace{name}Scalar" for name in _OF_TWO.split() if name != "BitwiseOr")
    + " InplaceMuls InplaceDivs InplaceFillScalar InplaceLeakyRelu InplacePowTensorScalar",
    # arithmetic
    "ttso": "Add Sub Lerps",
    "tsso": "Adds Subs Rsubs Clamp Hardtanh Softplus",
    "mts": "InplaceAdd InplaceSub InplaceMaskedFillScalar",
    "mss": "InplaceAdds InplaceSubs InplaceHardtanh",
    "ttto": "SWhere ClampTensor Lerp",
    "tttso": "Addcmul Addcdiv",
    "mtts": "InplaceAddcmul InplaceAddcdiv",
    "ttio": "DivMod",
    "tsio": "DivMods",
    "tssso": "Elu",
    "msss": "InplaceElu",
    "tfffo": "NanToNum",
    # elements made, moved and picked
    "tyo": "Cast Prod",
    "ssso": "Arange",
    "iio": "Eye",
    "mffii": "InplaceNormal",
    "mddii": "InplaceUniform",
    "Tio": "Cat Stack",
    "tAo": "Repeat Flip AdaptiveAvgPool2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d",
    "tAAo": "Roll",
    "tAso": "ConstantPadNd",
    "tio": "Tril Triu Softmax LogSoftmax GeluV2 Glu",
    "tito": "IndexSelect Gather",
    "titto": "ScatterAdd IndexCopy",
    "tittio": "Scatter",
    "mitti": "InplaceScatter",
    "titsio": "ScatterValue",
    "mitsi": "InplaceScatterValue",
    "mitt": "InplaceIndexCopy",
    "tTo": "Index",
    "mTtbb": "IndexPutImpl",
    "mtt": "InplaceMaskedFillTensor InplaceMaskedScatter",
    "tsbbo": "IsInTensorScalar",
    # many to few
    "tAbyo": "Mean ReduceSum",
    "tAbo": "Amax Amin All Any",
    "tAibo": "VarCorrection Std",
    "tibo": "ArgMax ArgMin",
    "tiboo": "MaxDim MinDim",
    "tibyo": "ProdDim",
    "tiyo": "Cumsum",
    "tiibboo": "Topk",
    "tbiboo": "Sort",
    "tsAbo": "Norm",
    "tsAbyo": "LinalgVectorNorm",
    # layers
    "ttob": "Mm Matmul BatchMatMul Mv",
    "tttssob": "Addmm Baddbmm",
    "tttAAAbAiob": "Convolution",
    "tAttdooo": "LayerNorm",
    "tttttbddooo": "BatchNorm",
    "tttiiiidooo": "GroupNorm",
    "ttdoo": "RmsNorm",
    "tAAAAboo": "MaxPool2dWithMask MaxPool2dWithIndices",
    "tAAAbbibo": "AvgPool2d",
    "tAffo": "UpsampleNearest2dV2",
    "tAbddo": "UpsampleBilinear2d",
    "tttttttAddiiiSiioooo": "FlashAttentionScore",
}

SIGNATURES: Mapping[str, str] = {name: signature for signature, names in _SHARED.items() for name in names.split()}
