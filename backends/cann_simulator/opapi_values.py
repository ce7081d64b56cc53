"""Numbers of the simulated chip: what is rounded on the way into its matrix unit and out of an operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from porting.ascend.precision import cannot_keep
from porting.ascend.soc import Soc

from .arithmetic import shortened

HALVES = (torch.float16, torch.bfloat16)
LARGEST_HALF = 65504.0
# cubeMathType of CANN's pages on aclnnMatmul and aclnnConvolution
KEEP_DTYPE, ALLOW_FP32_DOWN_PRECISION, USE_FP16, USE_HF32 = range(4)


@dataclass(frozen=True)
class Found:
    """A result whose size the operator found out; the output has room for the largest."""

    value: torch.Tensor


@dataclass(frozen=True)
class Chip:
    """What an operator must know of the SoC.

    saturates: half floats end at their largest number, and NaN becomes 0
    """

    soc: Soc

    @property
    def saturates(self) -> bool:
        return self.soc.saturates is True


def saturated(x: torch.Tensor) -> torch.Tensor:
    """What a chip without Inf and NaN stores of a number in fp16."""
    return torch.nan_to_num(x.float(), nan=0.0, posinf=LARGEST_HALF, neginf=-LARGEST_HALF).clamp(-LARGEST_HALF, LARGEST_HALF)


def hf32(x: torch.Tensor) -> torch.Tensor:
    """float32 with the 11 bits of a significand that HF32 keeps, as float32."""
    return torch.from_numpy(shortened(x.detach().contiguous().numpy()))


def into_matrix_unit(x: torch.Tensor, math: int, stored: torch.dtype, chip: Chip) -> torch.Tensor:
    """An operand as the matrix unit takes it, as float32.

    math:   cubeMathType
    stored: the operand's dtype in memory; other than float32 it is taken as it is
    raises: ValueError for float32 that the unit of the SoC cannot take
    """
    if stored != torch.float32:
        return x
    narrow = cannot_keep(chip.soc, "MatMul")
    if narrow and math in (KEEP_DTYPE, USE_HF32):
        raise ValueError(f"the matrix unit of {chip.soc.name} takes no float32, and cubeMathType is {math}")
    if math == USE_FP16 or (narrow and math == ALLOW_FP32_DOWN_PRECISION):
        return (saturated(x) if chip.saturates else x).half().float()
    if math in (ALLOW_FP32_DOWN_PRECISION, USE_HF32):
        return hf32(x)
    return x
