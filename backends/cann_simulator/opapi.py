"""Operators of libopapi: what the shim hands over becomes torch tensors on device memory, and what they compute is written there.

The arithmetic is torch's on the CPU, rounded once where an operator stores: half floats of a saturating SoC are clipped, matrix products and
convolutions take what their cubeMathType says. Inside a kernel nothing is modelled: accumulators, fusion, the order of sums.
"""

from __future__ import annotations

import ctypes as C
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from . import opapi_elements, opapi_layers, opapi_layout, opapi_reductions
from .machine import Machine, Refused
from .opapi_signatures import SIGNATURES
from .opapi_values import HALVES, Chip, Found, saturated

PARAM_INVALID = 161002  # ACLNN_ERR_PARAM_INVALID
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **opapi_elements.OPERATORS,
    **opapi_layout.OPERATORS,
    **opapi_reductions.OPERATORS,
    **opapi_layers.OPERATORS,
}


class OperandView(C.Structure):
    """sim::OperandView of opapi.h."""

    _fields_ = (
        ("data", C.c_void_p),
        ("dims", C.POINTER(C.c_int64)),
        ("strides", C.POINTER(C.c_int64)),
        ("rank", C.c_int32),
        ("dtype", C.c_int32),
    )


class OpArgument(C.Structure):
    """sim::OpArgument of opapi.h."""

    _fields_ = (
        ("kind", C.c_char),
        ("absent", C.c_int8),
        ("dtype", C.c_int32),
        ("integer", C.c_int64),
        ("real", C.c_double),
        ("data", C.c_void_p),
        ("count", C.c_uint64),
    )


def run(name: str, count: int, arguments: int, machine: Machine) -> Iterator[tuple[int, Sequence[int]]]:
    """Compute one operator into its outputs.

    arguments: where the shim's OpArguments lie
    yields:    (argument, dims) of outputs whose size the operator found out
    raises:    Refused
    """
    function = FUNCTIONS.get(name) or FUNCTIONS.get(name.removeprefix("Inplace"))
    if function is None:
        raise Refused(561000, f"aclnn{name}: this operator is not simulated")
    given = [_read(entry) for entry in (OpArgument * count).from_address(arguments)]
    signature = SIGNATURES[name]
    chip = Chip(machine.chip())
    _require_dtypes(name, given, chip)
    inputs = [value for value, kind in zip(given, signature, strict=True) if kind not in "oO"]
    targets = [place for place, kind in enumerate(signature) if kind in "omO"]
    context = {
        "chip": chip,
        "outputs": tuple(given[place] for place in targets),
        "kinds": [value.dtype for value in inputs if isinstance(value, torch.Tensor)],
    }
    wanted = {key: context[key] for key in _keywords(function)}
    with torch.no_grad():
        try:
            made = function(*map(_wide, inputs), **wanted)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            raise Refused(PARAM_INVALID, f"EZ1001: aclnn{name}: {str(error)[:300]}", True) from error
        results = made if isinstance(made, tuple) else (made,)
        if len(results) != len(targets):
            raise Refused(PARAM_INVALID, f"aclnn{name}: {len(results)} results for {len(targets)} outputs")
        for place, result in zip(targets, results, strict=True):
            found = _store(name, given[place], result, chip)
            if found is not None:
                yield place, found


@cache
def _keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a function asks for beside the operator's inputs: "chip", "outputs", "kinds" (dtypes of its tensors, as they are stored)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # torch's own
        return ()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in ("chip", "outputs", "kinds"))


def _wide(value: Any) -> Any:
    """Half floats as float32: an operator rounds once, where it stores."""
    if isinstance(value, list):
        return [_wide(one) for one in value]
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


# --- in ----------------------------------------------------------------------------------------------------------


def _read(argument: OpArgument) -> Any:
    kind = argument.kind.decode()
    if argument.absent:
        return None
    if kind in "tom":
        return _tensor(OperandView.from_address(argument.data))
    if kind in "TO":
        views = (OperandView * argument.count).from_address(argument.data) if argument.count else ()
        return [_tensor(view) for view in views]
    if kind in "AB":
        return list((C.c_int64 * argument.count).from_address(argument.data)) if argument.count else []
    if kind == "F":
        return list((C.c_double * argument.count).from_address(argument.data)) if argument.count else []
    if kind == "s":
        return _scalar(argument)
    if kind == "S":
        return C.string_at(argument.data, argument.count).decode()
    if kind == "y":
        return _dtype(argument.integer)
    if kind == "b":
        return argument.integer
    return argument.real if kind in "df" else argument.integer


def _dtype(code: int) -> torch.dtype:
    if code not in DTYPES:
        raise Refused(PARAM_INVALID, f"EZ3002: aclDataType {code} is not simulated", True)
    return DTYPES[code]


def _tensor(view: OperandView) -> torch.Tensor | None:
    """Device memory as a tensor; nothing is copied."""
    if view.rank < 0:
        return None
    dtype, shape = _dtype(view.dtype), tuple(view.dims[: view.rank])
    if not view.data:
        return torch.empty(shape, dtype=dtype)
    strides = tuple(view.strides[: view.rank])
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    memory = (C.c_char * (span * dtype.itemsize)).from_address(view.data)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def _scalar(argument: OpArgument) -> Any:
    dtype = _dtype(argument.dtype)
    return torch.frombuffer(bytearray(C.string_at(argument.data, dtype.itemsize)), dtype=dtype)[0].item()


def _require_dtypes(name: str, given: Sequence[Any], chip: Chip) -> None:
    """raises: Refused for bfloat16 on a chip without"""
    if chip.soc.bf16 is not False:
        return
    for value in given:
        tensors = value if isinstance(value, list) else [value]
        if any(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bfloat16 for tensor in tensors):
            raise Refused(PARAM_INVALID, f"EZ1001: aclnn{name}: {chip.soc.name} has no bfloat16", True)


# --- out ---------------------------------------------------------------------------------------------------------


def _store(name: str, target: Any, result: Any, chip: Chip) -> Sequence[int] | None:
    """Write a result where the client wants it. returns: its dims, where they are found out by the operator"""
    if isinstance(target, list):
        for one, value in zip(target, result, strict=True):
            _store(name, one, value, chip)
        return None
    if target is None or result is None:
        return None
    if isinstance(result, Found):
        value, room = result.value, target
        if value.dim() != room.dim() or any(n > most for n, most in zip(value.shape, room.shape, strict=True)):
            raise Refused(PARAM_INVALID, f"aclnn{name}: {list(value.shape)} does not fit in an output of {list(room.shape)}")
        room.view(-1)[: value.numel()].copy_(value.reshape(-1))
        return tuple(value.shape)
    if result.shape != target.shape:
        raise Refused(
            PARAM_INVALID, f"EZ1001: aclnn{name}: gives {list(result.shape)}, the output is {list(target.shape)}", True
        )
    if chip.saturates and target.dtype == torch.float16:
        result = saturated(result)
    target.copy_(result)
    return None
