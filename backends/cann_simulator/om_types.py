"""AscendCL's numbers of dtypes, and what they are in numpy and ONNX. Source: aclDataType in acl_base_rt.h."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from onnx import TensorProto

ACL_FLOAT, ACL_FLOAT16, ACL_UINT8, ACL_INT64, ACL_BF16 = 0, 1, 4, 9, 27
ACL_TYPES: Mapping[int, int] = {  # element type of ONNX -> aclDataType
    TensorProto.FLOAT: ACL_FLOAT,
    TensorProto.FLOAT16: ACL_FLOAT16,
    TensorProto.INT8: 2,
    TensorProto.INT32: 3,
    TensorProto.UINT8: ACL_UINT8,
    TensorProto.INT16: 6,
    TensorProto.UINT16: 7,
    TensorProto.UINT32: 8,
    TensorProto.INT64: ACL_INT64,
    TensorProto.UINT64: 10,
    TensorProto.DOUBLE: 11,
    TensorProto.BOOL: 12,
    TensorProto.BFLOAT16: ACL_BF16,
}
NUMPY_TYPES: Mapping[int, np.dtype] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int8),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    6: np.dtype(np.int16),
    7: np.dtype(np.uint16),
    8: np.dtype(np.uint32),
    9: np.dtype(np.int64),
    10: np.dtype(np.uint64),
    11: np.dtype(np.float64),
    12: np.dtype(np.bool_),
    27: np.dtype(ml_dtypes.bfloat16),
}
OUTPUT_TYPES: Mapping[str, int] = {  # of --output_type
    "FP32": 0,
    "FP16": 1,
    "INT8": 2,
    "INT16": 6,
    "UINT16": 7,
    "UINT8": 4,
    "INT32": 3,
    "INT64": 9,
    "UINT32": 8,
    "UINT64": 10,
    "DOUBLE": 11,
}


def itemsize_of(acl_dtype: int) -> int:
    return NUMPY_TYPES[acl_dtype].itemsize
