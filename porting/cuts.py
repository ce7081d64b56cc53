"""Where an .onnx file shall end, and which of its inputs are constants: what a user says of a file that he wants a part of.

Detectors often end in steps that belong on the host (NonMaxSuppression, NonZero); some models have an input that only chooses a branch. The
cut is made where a file is read (converters/checkpoints/onnx_cut.py), so that a port and the untouched file have one interface.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from porting.errors import UsageError
from porting.verdict import printable

Number = bool | int | float
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
CUT_HERE = "what comes after can run on the host:"  # before the options that cut there
_NAMED = 20  # outputs and inputs that a report lists


@dataclass(frozen=True)
class Cut:
    """
    outputs: values of the graph that become its only outputs, or names of nodes that have one; () for the file's own
    fixed:   input -> the number that it always is
    """

    outputs: tuple[str, ...] = ()
    fixed: Mapping[str, Number] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.outputs or self.fixed)

    def __str__(self) -> str:
        """ "up to boxes, scores, with sr = 16000" """
        parts = [f"up to {_listed(self.outputs)}"] if self.outputs else []
        parts += [f"with {_listed([f'{name} = {spelled(value)}' for name, value in self.fixed.items()])}"] if self.fixed else []
        return ", ".join(parts)


def cut_of(outputs: Sequence[str] = (), fix: Mapping[str, Any] | None = None) -> Cut:
    """What a caller of the Python functions says. raises: UsageError for what is no name, and no finite number"""
    if isinstance(outputs, str) or not isinstance(outputs, Sequence) or not all(isinstance(name, str) for name in outputs):
        raise UsageError("outputs come as a sequence of names", where="outputs", next='outputs=("boxes", "scores")')
    if fix is not None and not isinstance(fix, Mapping):
        raise UsageError(f"fixed inputs come as a mapping, got a {type(fix).__name__}", where="fix", next='fix={"sr": 16000}')
    return Cut(tuple(outputs), {_name(name): _number(name, value) for name, value in (fix or {}).items()})


def parse_fix(texts: Sequence[str]) -> dict[str, Number]:
    """`["sr=16000", "half=false"]` -> {"sr": 16000, "half": False}. raises: UsageError"""
    found: dict[str, Number] = {}
    for given in texts:
        name, equals, text = given.rpartition("=")  # a value has no "=", a name may
        value = _parsed(text.strip())
        if not (name and equals) or value is None or name in found:
            why = "given twice" if name in found else "not an input and a number"
            raise UsageError(
                f"{why}: {printable(given, 100)!r}",
                where="--fix",
                next="write --fix INPUT=NUMBER or --fix INPUT=true, once each input",
            )
        found[name] = value
    return found


def spelled(value: Number) -> str:
    """A number as `--fix` takes it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def cut_config(config: Mapping[str, Any]) -> Cut:
    """The cut that a port was made with, from its port.json. raises: UsageError for what is none"""
    return cut_of(config.get("cut_outputs", ()), config.get("fixed_inputs"))


def cut_details(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of a cut, from the config of what was made; nothing where nothing was cut."""
    return {name: config[name] for name in ("cut_outputs", "fixed_inputs", "cut_inputs") if config.get(name)}


def _parsed(text: str) -> Number | None:
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise UsageError(f"an input's name is text, got a {type(name).__name__}", where="fix", next='fix={"sr": 16000}')
    return name


def _number(name: Any, value: Any) -> Number:
    """numpy's scalars, and arrays of one element, as Python's. raises: UsageError"""
    if not isinstance(value, (bool, int, float)) and hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    shown = printable(repr(value), 60)
    raise UsageError(
        f"{shown} is no finite number",
        where=f"fix {printable(str(name), 60)!r}",
        next="a number, True or False; one for all of it",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(printable(name, 60) for name in names[:_NAMED])}{more}"
