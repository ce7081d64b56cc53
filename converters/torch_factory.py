"""From `package.module:factory` to the torch module that it returns."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from porting.errors import DeviceUnavailable, InputError, UsageError, nearest

from .torch_frames import printing_to_stderr, short, where_raised

if TYPE_CHECKING:
    import torch

FORM = "write --model package.module:factory, or --model path/to/file.py:factory"


def require_torch() -> None:
    """raises: DeviceUnavailable when torch, or what it needs to export, is not installed"""
    for name in ("torch", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DeviceUnavailable(
                f"{name} is not installed, which models in torch need: {error}",
                where="the torch extra",
                next="pip install 'porting[torch]'",
            ) from error


def module_from_factory(spec: str) -> tuple[torch.nn.Module, str, list[Path]]:
    """(module, name of the factory, its source file): the factory is imported and called without arguments.

    The current folder comes first on the path that Python imports from, as with `python -m`; of a file.py its folder does. Both stay
    there, since a module may import more when it runs. A factory may be a function, a class, or a torch module that lies there ready.

    raises: UsageError for a spec of another form, no such attribute, a factory that needs arguments; InputError for one that cannot be
            imported, that raises (with its message and line), or that gives no torch module
    """
    name, colon, attribute = spec.rpartition(":")
    if not colon or not name or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", attribute):
        raise UsageError(f"{spec!r} names no factory", where="--model", next=FORM)
    namespace = _import_file(Path(name), spec) if name.endswith(".py") else _import_name(name, spec)
    factory: Any = namespace
    for part in attribute.split("."):
        try:
            factory = getattr(factory, part)
        except AttributeError:
            known = [n for n in vars(factory) if not n.startswith("_") and callable(vars(factory)[n])]
            raise UsageError(f"{name} has no {part!r}", where="--model", next=nearest(part, known)) from None
    return _called(factory, spec), attribute, _source(factory, namespace)


def _called(factory: Any, spec: str) -> torch.nn.Module:
    import torch

    if isinstance(factory, torch.nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(f"{spec} is a {type(factory).__name__}, which cannot be called", where="--model", next=FORM)
    _require_no_arguments(factory, spec)
    try:
        with printing_to_stderr():
            made = factory()
    except (Exception, SystemExit) as error:
        raise InputError(f"the factory {spec} raised {short(error)}", where=where_raised(error, "--model")) from error
    if not isinstance(made, torch.nn.Module):
        raise InputError(
            f"the factory {spec} gave a {type(made).__name__}: expected a torch.nn.Module",
            where="--model",
            next="name a function, or a class, that returns the module",
        )
    return made


def _require_no_arguments(factory: Any, spec: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: calling it will tell
        return
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if needed:
        name = spec.rpartition(":")[2]
        raise UsageError(
            f"the factory {spec} needs arguments: {', '.join(needed)}",
            where="--model",
            next=f"wrap it in a function without arguments: def make(): return {name}({needed[0]}=...)",
        )


def _import_name(name: str, spec: str) -> ModuleType:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UsageError(f"{spec!r} names no factory: {name!r} is no name of a Python module", where="--model", next=FORM)
    _importable(os.getcwd())
    return _imported(name, spec)


def _import_file(path: Path, spec: str) -> ModuleType:
    path = Path(os.path.abspath(path))
    if not path.is_file():
        raise UsageError(f"no such file: {path.name}", where=f"--model {spec}", next=FORM)
    name, folder = path.stem, path.parent
    while (
        folder / "__init__.py"
    ).is_file() and folder != folder.parent:  # part of a package: its relative imports need the whole name
        name, folder = f"{folder.name}.{name}", folder.parent
    _importable(os.getcwd())
    _importable(str(folder))
    module = _imported(name, spec)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise UsageError(
            f"importing {name} gives {found}, not {path}: another module has that name",
            where="--model",
            next="rename the file, or run from its folder",
        )
    return module


def _importable(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _imported(name: str, spec: str) -> ModuleType:
    try:
        with printing_to_stderr():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(
                f"there is no Python module {error.name!r}",
                where=f"--model {spec}",
                next="run from the folder that holds it, or install its package; " + FORM,
            ) from error
        raise InputError(
            f"importing {name} failed: it needs {error.name!r}, which is not installed",
            where=where_raised(error, f"--model {spec}"),
            next=f"install what brings {error.name!r}",
        ) from error
    except (Exception, SystemExit) as error:  # a script that parses its arguments on import exits
        raise InputError(f"importing {name} raised {short(error)}", where=where_raised(error, f"--model {spec}")) from error


def _source(factory: Any, namespace: ModuleType) -> list[Path]:
    """The file that the factory is written in, for the list of what a port was made from."""
    candidates: Sequence[Any] = (inspect.unwrap(factory) if callable(factory) else factory, namespace)
    for candidate in candidates:
        try:
            found = inspect.getsourcefile(candidate)
        except TypeError:
            continue
        if found and os.path.isfile(found):
            return [Path(found)]
    return []
