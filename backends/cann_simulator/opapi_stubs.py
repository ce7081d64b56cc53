"""The C functions of libopapi, as C++ text: a pair for each operator, whose arguments are read here and computed with in Python.

Operators that are not in opapi_signatures.py answer by name that they are not simulated: those that torch-npu 2.13.0 asks for by name stand in
shim/opapi_names.txt. A function that is missing would send torch_npu on to its older operators, in silence.
"""

from __future__ import annotations

from pathlib import Path

from .opapi_signatures import SIGNATURES

FILE = "opapi_stubs.cpp"
NAMES = Path(__file__).with_name("shim") / "opapi_names.txt"
_TYPES = {
    "t": "const aclTensor*",
    "o": "aclTensor*",
    "m": "aclTensor*",
    "T": "const aclTensorList*",
    "O": "aclTensorList*",
    "s": "const aclScalar*",
    "L": "const aclScalarList*",
    "i": "int64_t",
    "b": "int8_t",
    "y": "int32_t",
    "d": "double",
    "f": "float",
    "A": "const aclIntArray*",
    "B": "const aclBoolArray*",
    "F": "const aclFloatArray*",
    "S": "const char*",
}


def source() -> str:
    """The text of FILE."""
    lines = ['#include "opapi.h"', ""]
    lines += [_pair(name, signature) for name, signature in sorted(SIGNATURES.items())]
    lines += [_refusal(name) for name in sorted(set(NAMES.read_text(encoding="utf-8").split()) - set(SIGNATURES))]
    return "\n".join(lines) + "\n"


def _pair(name: str, signature: str) -> str:
    parameters = ", ".join(f"{_TYPES[kind]} a{i}" for i, kind in enumerate(signature))
    taken = ", ".join(f"sim::taken('{kind}', a{i})" for i, kind in enumerate(signature))
    return (
        f"API aclError aclnn{name}GetWorkspaceSize({parameters}, uint64_t* size, aclOpExecutor** executor) "
        f'{{ return sim::first_phase("{name}", {{{taken}}}, size, executor); }}\n'
        f"API aclError aclnn{name}(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) "
        f'{{ return sim::second_phase("{name}", executor, stream); }}'
    )


def _refusal(name: str) -> str:
    return "".join(
        f'API aclError aclnn{name}{phase}() {{ return sim::not_in_opapi("aclnn{name}"); }}\n'
        for phase in ("GetWorkspaceSize", "")
    )
