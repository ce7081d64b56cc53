"""What a torch module remembers between calls, in whatever place: a graph remembers nothing, so each such place is named and refused.

buffers            compared bit for bit, and put back
attributes         of every part of the module: numbers, tensors, containers and objects of the user's own classes
TorchScript        attributes that the code of a ScriptModule reads or sets, found in its graph
globals, closures  what the Python code of the parts names outside of them: globals, attributes of classes, variables of an outer function,
                   default values of arguments
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import InputError

from .torch_checks import CARRY, same_bits, some
from .torch_frames import is_users

if TYPE_CHECKING:
    import torch

CODE = (FunctionType, MethodType, functools.partial, staticmethod, classmethod, property, type)


@dataclass(frozen=True)
class Memory:
    """What a module holds before it runs.

    places:  every place where it could remember something, buffers aside -> a digest of its values
    buffers: name -> (the tensor, a copy of its values)
    """

    places: Mapping[str, str]
    buffers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def memory_of(module: torch.nn.Module) -> Memory:
    """To be asked before the module runs, and given to `require_unchanged` afterwards."""
    return Memory(_places(module), {name: (tensor, tensor.clone()) for name, tensor in module.named_buffers()})


def require_unchanged(before: Memory, module: torch.nn.Module, what: str) -> None:
    """raises: InputError for a module that remembers something, naming what; its buffers are then as they were"""
    buffers = before.buffers
    changed = [n for n, tensor in module.named_buffers() if n not in buffers or not same_bits(buffers[n][1], tensor)]
    if changed:
        _put_back(module, {name: buffers[name] for name in changed if name in buffers})
        raise InputError(
            f"{what} changes its own buffers when it runs, which a graph cannot: {some(changed)}", where="forward", next=CARRY
        )
    after = _places(module)
    moved = sorted(n for n in {*before.places, *after} if before.places.get(n) != after.get(n))
    if moved:
        raise InputError(
            f"{what} changes attributes of its own when it runs, or globals that its code names, which a graph cannot: {some(moved)}",
            where="forward",
            next=CARRY,
        )


def _put_back(module: torch.nn.Module, buffers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Buffers as the user gave them: name -> (the tensor, a copy of its values). A forward may have set another tensor in its place."""
    import torch

    parts = dict(module.named_modules())
    for name, (tensor, values) in buffers.items():
        owner, _, own = name.rpartition(".")
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.shape == values.shape:
                tensor.copy_(values)
            setattr(parts[owner], own, tensor)


def _places(module: torch.nn.Module) -> dict[str, str]:
    return {**_attributes(module), **_script_attributes(module), **_outside(module)}


def _attributes(module: torch.nn.Module) -> dict[str, str]:
    import torch

    ours = vars(torch.nn.Module()).keys()
    return {
        f"{name}.{key}".lstrip("."): digest(value)
        for name, part in module.named_modules()
        if not isinstance(part, torch.jit.ScriptModule)  # which keeps what it compiled there, and its own state elsewhere
        for key, value in vars(part).items()
        if key not in ours
    }


# --- TorchScript ------------------------------------------------------------------------------------------------------


def _script_attributes(module: torch.nn.Module) -> dict[str, str]:
    """What the code of scripted parts reads or sets, but parameters and buffers."""
    import torch

    found: dict[str, str] = {}
    done: list[str] = []
    known = {
        name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    }
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and part._c._has_method("forward"):
            if any(name == outer or name.startswith(f"{outer}.") or not outer for outer in done):
                continue  # inlined in the part that holds it
            done.append(name)
            for path in sorted(set(_paths(part.inlined_graph))):
                label = ".".join([name, *path] if name else path)
                if label not in known:
                    found[label] = digest(_follow(part, path))
    return found


def _paths(graph: Any) -> Iterator[tuple[str, ...]]:
    """Attributes that a graph of TorchScript reads or sets, as names from the module to them."""
    self = next(iter(graph.inputs())).debugName()
    paths: dict[str, tuple[str, ...]] = {self: ()}
    for kind in ("prim::GetAttr", "prim::SetAttr"):  # all reads first: they say what an attribute is set of
        for node in graph.findAllNodes(kind, recurse=True):
            owner = paths.get(next(iter(node.inputs())).debugName())
            if owner is None:
                continue
            path = (*owner, node.s("name"))
            if kind == "prim::GetAttr":
                paths[next(iter(node.outputs())).debugName()] = path
            yield path


def _follow(part: Any, path: tuple[str, ...]) -> Any:
    value = part._c
    for name in path:
        value = (
            value.getattr(name) if hasattr(value, "_has_method") and hasattr(value, "getattr") else getattr(value, name, None)
        )
    return value


# --- what the code reaches outside of the module ----------------------------------------------------------------------


def _outside(module: torch.nn.Module) -> dict[str, str]:
    """Data that the user's code of a module's parts names and that lies outside of them."""
    import torch

    reach = _Reach({type(part).__module__.partition(".")[0] for part in module.modules()})
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
            for code in (type(part), vars(part).get("forward"), *hooks):
                reach.add("", code)
    return {label: digest(value) for label, value in reach.walk().items()}


class _Reach:
    """Follows functions to what they name.

    packages: those of the module's parts; of other installed packages nothing is followed
    """

    def __init__(self, packages: Set[str]) -> None:
        self._packages = packages
        self._names: set[str] = {"forward", "__call__"}
        self._classes: list[type] = []
        self._functions: list[FunctionType] = []
        self._modules: list[ModuleType] = []
        self._data: dict[str, Any] = {}
        self._seen: set[int] = set()

    def add(self, label: str, value: Any) -> None:
        """A function, class or module to follow; anything else is data."""
        if isinstance(value, (ModuleType, *CODE)):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._add_code(label, value)
        elif label:
            self._data[label] = value

    def _add_code(self, label: str, value: Any) -> None:
        if isinstance(value, (MethodType, staticmethod, classmethod)):
            self.add(label, value.__func__)
        elif isinstance(value, functools.partial):
            self.add(label, value.func)
        elif isinstance(value, property):
            self.add(label, value.fget)
        elif isinstance(value, type):
            self._classes += [c for c in value.__mro__ if c not in self._classes and self._follows(_file(c), c.__module__)]
        elif isinstance(value, ModuleType):
            if self._follows(_file(value), value.__name__):
                self._modules.append(value)
        elif self._follows(value.__code__.co_filename, value.__module__ or ""):
            self._functions.append(value)

    def _follows(self, filename: str, module: str) -> bool:
        installed = "site-packages" in filename or "dist-packages" in filename
        return is_users(filename) and (not installed or module.partition(".")[0] in self._packages)

    def walk(self) -> dict[str, Any]:
        """Label -> value of all data reached."""
        before = -1
        while before != (before := len(self._names) + len(self._seen)):
            for function in list(self._functions):
                self._names |= _names(function.__code__)
                self._look(function.__globals__, function.__module__ or "", _names(function.__code__))
                for name, value in _own_data(function):
                    self.add(f"{function.__qualname__}: {name}", value)
            for kind in list(self._classes):
                self._look(vars(kind), kind.__qualname__, self._names)
            for space in list(self._modules):
                self._look(vars(space), space.__name__, self._names)
        return self._data

    def _look(self, values: Mapping[str, Any], owner: str, names: Set[str]) -> None:
        for name in names & values.keys():
            self.add(f"{owner}.{name}", values[name])


def _names(code: CodeType) -> set[str]:
    """Globals and attributes that code names, that of functions inside it included."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _own_data(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of the functions around it, default values of its arguments, its attributes."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    arguments = inspect.signature(function, follow_wrapped=False).parameters.values()
    yield from ((p.name, p.default) for p in arguments if p.default is not p.empty)
    yield from vars(function).items()


def _file(value: Any) -> str:
    try:
        return inspect.getfile(value)
    except (TypeError, OSError):  # built in
        return "<builtin>"


# --- values -----------------------------------------------------------------------------------------------------------


def digest(value: Any, seen: frozenset[int] = frozenset()) -> str:
    """Equal for equal values. Of objects that are not the user's own, the class alone.

    seen: what `value` lies in, since objects may hold each other
    """
    import torch

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if id(value) in seen:
        return "itself"
    seen |= {id(value)}
    if isinstance(value, torch.Tensor):
        plain = (
            type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu" and value.layout == torch.strided
        )
        if not plain or value.is_quantized:
            return f"{type(value).__name__}{tuple(value.shape)}"
        raw = value.detach().contiguous().view(-1).view(torch.uint8).numpy()
        return f"{value.dtype}{tuple(value.shape)}{hash(raw.tobytes())}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype}{value.shape}{hash(value.tobytes())}"
    if isinstance(value, Mapping):
        return str([(digest(key, seen), digest(item, seen)) for key, item in value.items()])
    if isinstance(value, (list, tuple, deque)):
        return str([digest(item, seen) for item in value])
    if isinstance(value, (set, frozenset)):
        return str(sorted(digest(item, seen) for item in value))
    name = type(value).__qualname__
    if isinstance(value, SimpleNamespace):
        return name + digest(vars(value), seen)
    if isinstance(value, (ModuleType, *CODE)) or not (is_users(_file(type(value))) or isinstance(value, torch.nn.Module)):
        return name
    return name + digest(dict(_held(value)), seen)


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, in its __dict__ or its slots."""
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)
