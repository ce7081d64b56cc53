"""From arrays by name to a call of a torch module, and from what it returns back to arrays by name.

A graph has flat tensors as inputs and outputs; a `forward` may take and return tuples, dicts and dataclasses. A tensor inside
argument `hx` is called `hx_0` (second level of a tuple) or `hx_name` (of a dict); an output after its field, or "output", "output_0".
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from porting.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NUMBERS = {int: int, float: float, bool: bool, "int": int, "float": float, "bool": bool}
UNNAMED = re.compile(r"arr_\d+")  # what numpy.savez calls arrays that were given no name


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where tensor `name` goes in the arguments."""

    name: str


@dataclasses.dataclass(frozen=True)
class CallPlan:
    """How a module is called.

    names:     the flat inputs, in the order of the graph
    args:      positional arguments, each tensor replaced by its Slot
    kwargs:    the same for arguments by name
    constants: argument name -> number or None that is fixed in the graph
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    constants: Mapping[str, Any]

    def call(self, function: Callable[..., Any], tensors: Mapping[str, torch.Tensor]) -> Any:
        """What `function` returns for the flat inputs."""
        args = [_filled(value, tensors) for value in self.args]
        return function(*args, **{name: _filled(value, tensors) for name, value in self.kwargs.items()})


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """The arguments of a `forward` without self; of a TorchScript method by its schema."""
    schema = getattr(function, "schema", None)
    if schema is None:
        return list(inspect.signature(function).parameters.values())
    return [
        inspect.Parameter(
            a.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=a.default_value if a.has_default_value() else inspect.Parameter.empty,
            annotation=str(a.type),
        )
        for a in schema.arguments[1:]
    ]


def plan_call(parameters: Sequence[inspect.Parameter], example: Any, what: str) -> tuple[CallPlan, dict[str, torch.Tensor]]:
    """How `forward` is called for an example, and the example's tensors by flat name, copied.

    example: a tuple of positional arguments, a mapping by argument name (or by flat name, `hx_0`), or one array or tensor
    what:    the module's name, for errors
    raises:  InputError for arguments that the signature does not take, or that are neither tensors nor numbers
    """
    if isinstance(example, Mapping):
        by_name = {str(name): value for name, value in example.items()}
        if by_name and all(UNNAMED.fullmatch(name) for name in by_name):
            return plan_call(parameters, tuple(by_name[f"arr_{i}"] for i in sorted(int(n[4:]) for n in by_name)), what)
        args, kwargs = _bind_names(parameters, by_name, what)
    else:
        values = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        args, kwargs = _bind_positions(parameters, values, what), []
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, Any] = {}
    known = {p.name: p for p in parameters}

    def template(name: str, value: Any) -> Any:
        return _template(name, _number(known.get(name), value), tensors, constants, what)

    filled = tuple(template(name, value) for name, value in args)
    named = {name: template(name, value) for name, value in kwargs}
    if not tensors:
        raise InputError(f"the example gives {what} no tensor", where="inputs", next="give at least one array")
    return CallPlan(tuple(tensors), filled, named, constants), tensors


Bound = list[tuple[str, Any]]


def _bind_positions(parameters: Sequence[inspect.Parameter], values: tuple[Any, ...], what: str) -> Bound:
    names = [p.name for p in parameters if p.kind in POSITIONAL]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if len(values) > len(names):
        if rest is None:
            raise InputError(
                f"the example has {len(values)} arguments, {what}.forward takes {len(names)}: {', '.join(names) or 'none'}",
                where="inputs",
                next="give one array per argument, in their order",
            )
        names += [f"{rest}_{i}" for i in range(len(values) - len(names))]
    _require_all(parameters, set(names[: len(values)]), what)
    return list(zip(names, values, strict=False))


def _bind_names(parameters: Sequence[inspect.Parameter], values: dict[str, Any], what: str) -> tuple[Bound, Bound]:
    """(positional arguments, arguments by name): positional as far as they have no gap, as people call it."""
    taken: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    named = [p.name for p in parameters if p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for key, value in values.items():
        owners = [n for n in [*named, *([rest] if rest else [])] if key.startswith(f"{n}_")]
        if key in named:
            taken[key] = value
        elif owners:
            owner = max(owners, key=len)
            parts.setdefault(owner, {})[key[len(owner) + 1 :]] = value
        elif any_name:
            taken[key] = value
        else:
            raise InputError(
                f"{what}.forward has no argument {key!r}",
                where="inputs",
                next=nearest(key, [*named, *([rest] if rest else [])]),
            )
    for owner, inside in parts.items():
        if owner in taken:
            raise InputError(f"argument {owner!r} is given whole and in parts: {sorted(inside)}", where="inputs")
        taken[owner] = _nested(owner, inside)
    more = taken.pop(rest, ()) if rest else ()
    _require_all(parameters, set(taken), what)
    positional: Bound = []
    for parameter in parameters:
        if parameter.kind not in POSITIONAL or parameter.name not in taken:
            break
        positional.append((parameter.name, taken.pop(parameter.name)))
    positional += [(f"{rest}_{i}", value) for i, value in enumerate(more)]
    return positional, list(taken.items())


def _nested(owner: str, inside: dict[str, Any]) -> Any:
    """`h_0`, `h_1` are a tuple, `h_a`, `h_b` a dict."""
    if not all(key.isdigit() for key in inside):
        return inside
    if sorted(map(int, inside)) != list(range(len(inside))):
        raise InputError(
            f"the parts of argument {owner!r} are not numbered from 0 without a gap: {sorted(inside)}", where="inputs"
        )
    return tuple(inside[str(i)] for i in range(len(inside)))


def _require_all(parameters: Sequence[inspect.Parameter], given: set[str], what: str) -> None:
    needed = [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty and p.kind in (*POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in given]
    numbers = [p.name for p in parameters if p.name in missing and is_number(p)]
    if missing:
        raise InputError(
            f"{what}.forward needs {', '.join(missing)}; the example gives {', '.join(sorted(given)) or 'nothing'}",
            where="inputs",
            next="give an array for every argument that has no default"
            + (f"; a number for {', '.join(numbers)}, which becomes a constant of the port" if numbers else ""),
        )


def _number(parameter: inspect.Parameter | None, value: Any) -> Any:
    """The Python number behind a 0-D array, where the signature says that the argument is one."""
    if parameter is None or not isinstance(value, (np.ndarray, np.generic)) or np.ndim(value):
        return value
    convert = NUMBERS.get(_kind(parameter))
    return value if convert is None else convert(value)


def is_number(parameter: inspect.Parameter) -> bool:
    """Whether the signature says that an argument is a Python number."""
    return _kind(parameter) in NUMBERS


def _kind(parameter: inspect.Parameter) -> Any:
    return parameter.annotation if parameter.annotation is not inspect.Parameter.empty else type(parameter.default)


def _template(name: str, value: Any, tensors: dict[str, Any], constants: dict[str, Any], what: str) -> Any:
    """`value` with a Slot for every tensor, which goes into `tensors`."""
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        if name in tensors:
            raise InputError(f"two inputs would both be called {name!r}", where="inputs", next="rename one of the arguments")
        tensors[name] = tensor_from_array(value, name)
        return Slot(name)
    if isinstance(value, Mapping):
        return {key: _template(f"{name}_{key}", item, tensors, constants, what) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_template(f"{name}_{i}", item, tensors, constants, what) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if value is None or isinstance(value, (bool, int, float, str)):
        constants[name] = value
        return value
    raise InputError(
        f"argument {name!r} of {what} is a {type(value).__name__}: only tensors, arrays, numbers, text, tuples and dicts are taken",
        where="inputs",
        next="wrap the module in one whose forward takes tensors",
    )


def _filled(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, Slot):
        return tensors[value.name]
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_filled(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


# --- outputs ------------------------------------------------------------------------------------------------------


def flat_outputs(value: Any, what: str) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that a module returned, in its order; None is left out.

    raises: InputError for what is no tensor
    """
    found: list[tuple[tuple[str, ...], Any]] = []
    _walk(value, (), found, what)
    if not found:
        raise InputError(f"{what}.forward returns no tensor", where="outputs", next="return at least one tensor")
    unnamed = len(found) == 1 and all(part.isdigit() for part in found[0][0])
    names: list[str] = []
    for path, _ in found:
        name = "output" if unnamed or not path else "_".join(("output", *path) if path[0].isdigit() else path)
        names.append(unique(name, names))
    return [(name, tensor) for name, (_, tensor) in zip(names, found, strict=True)]


def _walk(value: Any, path: tuple[str, ...], found: list[tuple[tuple[str, ...], Any]], what: str) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.layout != torch.strided or value.is_quantized:
            raise InputError(
                f"{what} returns a tensor of {value.dtype}, {value.layout} at {'.'.join(path) or 'output'}, which ONNX does not have",
                where="outputs",
                next="return torch.view_as_real(...), .to_dense() or .dequantize() of it",
            )
        found.append((path, value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _walk(item, (*path, str(key)), found, what)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            _walk(getattr(value, item.name), (*path, item.name), found, what)
    elif isinstance(value, (tuple, list)):
        keys = getattr(value, "_fields", None) or [str(i) for i in range(len(value))]
        for key, item in zip(keys, value, strict=True):
            _walk(item, (*path, key), found, what)
    elif value is not None:
        raise InputError(
            f"{what} returns a {type(value).__name__} at {'.'.join(path) or 'output'}: only tensors, in tuples, dicts or dataclasses, "
            "can be outputs of a graph",
            where="outputs",
            next="wrap the module in one that returns the tensors you need",
        )


def unique(name: str, taken: Sequence[str] | set[str]) -> str:
    """`name`, or the first of name_2, name_3 ... that is not taken."""
    candidate, n = name, 1
    while candidate in taken:
        n += 1
        candidate = f"{name}_{n}"
    return candidate


# --- arrays -------------------------------------------------------------------------------------------------------


def tensor_from_array(array: Any, name: str) -> torch.Tensor:
    """A copy as a torch tensor on the CPU. raises: InputError for a dtype that torch does not have"""
    import torch

    if isinstance(array, torch.Tensor):
        return array.detach().cpu().clone()
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise InputError(
            f"input {name!r} is {array.dtype}{list(array.shape)}, which torch does not have", where="inputs"
        ) from error


def array_from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """A copy as a numpy array; bfloat16 as ml_dtypes has it."""
    import torch

    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
