"""Finding backends and architectures by name: a table of built-ins, and entry points for everybody else.

Only the one that is named gets imported. A name given twice is an error, and a plug-in never replaces a built-in.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from porting.errors import DeviceUnavailable, UsageError, nearest

BACKENDS = {
    "null": "porting.backends.null:NullBackend",
    "cpu": "porting.backends.cpu:CpuBackend",
    "cuda": "porting.backends.cuda:CudaBackend",
    "ascend": "porting.backends.ascend.backend:AscendBackend",
    "ascend-sim": "porting.backends.ascend_sim:AscendSimBackend",
}
BACKEND_GROUP = "porting.backends"

ARCHITECTURES = {
    "BertForMaskedLM": "porting.converters.architectures.bert",
    "BertModel": "porting.converters.architectures.bert",
    "LlamaForCausalLM": "porting.converters.architectures.llama",
    "MistralForCausalLM": "porting.converters.architectures.mistral",
    "Qwen2ForCausalLM": "porting.converters.architectures.qwen2",
    "Qwen3ForCausalLM": "porting.converters.architectures.qwen3",
    "RobertaForMaskedLM": "porting.converters.architectures.roberta",
    "RobertaModel": "porting.converters.architectures.roberta",
    "XLMRobertaForMaskedLM": "porting.converters.architectures.xlm_roberta",
    "XLMRobertaModel": "porting.converters.architectures.xlm_roberta",
}
ARCHITECTURE_GROUP = "porting.converters"


@cache
def _plugins(group: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def names(group: str) -> list[str]:
    """Every name of a group, built-in or plug-in, sorted."""
    builtin = BACKENDS if group == BACKEND_GROUP else ARCHITECTURES
    return sorted({*builtin, *_plugins(group)})


def _load(group: str, builtin: dict[str, str], name: str) -> Any:
    points = _plugins(group).get(name, [])
    if name in builtin and points:
        raise UsageError(
            f"{name!r} is built in, and {points[0].value!r} claims the same name",
            where=f"entry point group {group}",
            next="uninstall the plug-in or have it renamed; a built-in name is never overridden",
        )
    if len(points) > 1:
        claims = ", ".join(repr(p.value) for p in points)
        raise UsageError(
            f"{name!r} is given by {len(points)} plug-ins: {claims}",
            where=f"entry point group {group}",
            next="uninstall all but one",
        )
    if name in builtin:
        module, _, attribute = builtin[name].partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    if points:
        try:
            return points[0].load()
        except Exception as error:
            raise DeviceUnavailable(
                f"plug-in {name!r} ({points[0].value}) failed to import: {type(error).__name__}: {error}",
                where=f"entry point group {group}",
                next="update or uninstall the plug-in; nothing else is affected by it",
            ) from error
    return None


def load_backend(name: str) -> Any:
    """The backend object called `name`.

    raises: UsageError for an unknown or doubly claimed name, DeviceUnavailable for a plug-in that cannot be imported
    """
    kind = _load(BACKEND_GROUP, BACKENDS, name)
    if kind is None:
        known = names(BACKEND_GROUP)
        raise UsageError(f"unknown device {name!r}", where="--device", next=nearest(name, known))
    return kind()


def load_architecture(name: str) -> Any | None:
    """The module that builds architecture `name` ("LlamaForCausalLM"), or None when nobody covers it."""
    return _load(ARCHITECTURE_GROUP, ARCHITECTURES, name)
