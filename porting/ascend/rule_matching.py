"""Whether a node or a graph fits what a rule says; the words are explained in rules.py.

Every function gives what was found there, for the report, or None where the rule does not speak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from porting.ascend import rule_predicates
from porting.ascend.graph_facts import GraphFacts, NodeFacts, ValueFacts

Found = list[str] | None


def node_matches(match: Mapping[str, Any], node: NodeFacts) -> Found:
    """`op`, `registered` and `precision` were looked at before."""
    domain = match.get("domain", "")
    if domain != "*" and node.domain not in ((domain,) if isinstance(domain, str) else domain):
        return None
    found: list[str] = []
    for key, check in _NODE_CHECKS.items():
        if key in match:
            told = check(match[key], node)
            if told is None:
                return None
            found += told
    return found


def graph_matches(match: Mapping[str, Any], facts: GraphFacts) -> Found:
    found: list[str] = []
    for key, check in _GRAPH_CHECKS.items():
        if key in match:
            told = check(match[key], facts)
            if told is None:
                return None
            found += told
    return found


# --- nodes --------------------------------------------------------------------------------------------------------


def _opset(bounds: Sequence[int | None], node: NodeFacts) -> Found:
    return [f"opset {node.opset}"] if _within(node.opset, bounds) else None


def _attributes(wanted: Mapping[str, Any], node: NodeFacts) -> Found:
    found = []
    for name, condition in wanted.items():
        present = name in node.attributes
        if condition.get("present") is not None and condition["present"] != present:
            return None
        value = node.attributes.get(name, condition.get("default"))
        if set(condition) - {"present", "default"} and not _number(condition, value):
            return None
        found.append(f"{name}={_short(value)}" if present else f"no {name}")
    return found


def _inputs(wanted: Mapping[str, Any], node: NodeFacts) -> Found:
    return _values(wanted, node.inputs, "input")


def _outputs(wanted: Mapping[str, Any], node: NodeFacts) -> Found:
    return _values(wanted, tuple(v if v.name else None for v in node.outputs), "output")


def _values(wanted: Mapping[str, Any], values: Sequence[ValueFacts | None], kind: str) -> Found:
    found: list[str] = []
    for place, condition in wanted.items():
        if place == "any":
            told = next((t for v in values if v is not None and (t := _value(condition, v)) is not None), None)
        else:
            told = _value(condition, values[int(place)] if int(place) < len(values) else None)
        if told is None:
            return None
        found += [f"{kind} {place if place != 'any' else ''}".rstrip() + f": {t}" for t in told]
    return found


def _either(condition: Mapping[str, Any], node: NodeFacts) -> Found:
    return _values({"any": condition}, tuple(v for v in (*node.inputs, *node.outputs) if v is not None and v.name), "value")


def _inside(wanted: bool | Sequence[str], node: NodeFacts) -> Found:
    hit = bool(node.inside) is wanted if isinstance(wanted, bool) else any(op in wanted for op in node.inside)
    return [f"inside {' in '.join(reversed(node.inside))}"] if hit else None


def _sized(wanted: bool, node: NodeFacts) -> Found:
    return [] if node.sized_by_values == wanted else None


def _sizes_outputs(wanted: bool, node: NodeFacts) -> Found:
    if bool(node.sizes_outputs) != wanted:
        return None
    return [f"the size of {_list(node.sizes_outputs)}"] if wanted else []


def _when(names: Sequence[str], node: NodeFacts) -> Found:
    found = []
    for name in names:
        told = rule_predicates.OF_NODES[name](node)
        if told is None:
            return None
        found.append(told)
    return found


_NODE_CHECKS: Mapping[str, Callable[[Any, NodeFacts], Found]] = {
    "opset": _opset,
    "sized_by_values": _sized,
    "sizes_outputs": _sizes_outputs,
    "attributes": _attributes,
    "inputs": _inputs,
    "outputs": _outputs,
    "values": _either,
    "inside": _inside,
    "when": _when,
}
NODE_KEYS = frozenset(_NODE_CHECKS) | {"op", "domain", "registered", "precision"}


# --- graphs -------------------------------------------------------------------------------------------------------


def _imports(bounds: Sequence[int | None], facts: GraphFacts) -> Found:
    said = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in sorted(facts.opsets.items()))
    return [said] if _within(len(facts.opsets), bounds) else None


def _main_opset(bounds: Sequence[int | None], facts: GraphFacts) -> Found:
    known = facts.opsets.get("")
    return [f"opset {known}"] if known is not None and _within(known, bounds) else None


def _ir_version(bounds: Sequence[int | None], facts: GraphFacts) -> Found:
    known = facts.ir_version
    return [f"IR version {known}"] if known is not None and _within(known, bounds) else None


def _functions(wanted: bool, facts: GraphFacts) -> Found:
    return [_list(facts.functions)] if bool(facts.functions) == wanted else None


def _external_keys(condition: Mapping[str, Any], facts: GraphFacts) -> Found:
    hits = sorted(key for key in facts.external_keys if _number(condition, key))
    return [_list(hits)] if hits else None


def _graph_inputs(condition: Mapping[str, Any] | str, facts: GraphFacts) -> Found:
    if condition == "none":
        return None if any(not v.is_constant for v in facts.inputs) else ["no input"]
    return _graph_values(condition, facts.inputs)


def _graph_outputs(condition: Mapping[str, Any], facts: GraphFacts) -> Found:
    return _graph_values(condition, facts.outputs)


def _graph_values(condition: Any, values: Sequence[ValueFacts]) -> Found:
    hits = [f"{v.name} ({', '.join(told)})" for v in values if (told := _value(condition, v)) is not None]
    return [_list(hits)] if hits else None


def _graph_when(names: Sequence[str], facts: GraphFacts) -> Found:
    found = []
    for name in names:
        told = rule_predicates.OF_GRAPHS[name](facts)
        if told is None:
            return None
        found.append(told)
    return found


_GRAPH_CHECKS: Mapping[str, Callable[[Any, GraphFacts], Found]] = {
    "imports": _imports,
    "opset": _main_opset,
    "ir_version": _ir_version,
    "functions": _functions,
    "external_keys": _external_keys,
    "inputs": _graph_inputs,
    "outputs": _graph_outputs,
    "when": _graph_when,
}
GRAPH_KEYS = frozenset(_GRAPH_CHECKS) | {"precision"}


# --- values and numbers -------------------------------------------------------------------------------------------


def _value(condition: Mapping[str, Any], value: ValueFacts | None) -> Found:
    if value is None or not condition.get("present", True):
        return [] if value is None and condition.get("present") is False else None
    found = []
    for key, wanted in condition.items():
        if key == "present":
            continue
        told = _VALUE_CHECKS[key](wanted, value)
        if told is None:
            return None
        found += [told] if told else []
    return found or ["given"]


def _dtype(wanted: Sequence[str], value: ValueFacts) -> str | None:
    return value.dtype if value.dtype in wanted else None


def _not_dtype(wanted: Sequence[str], value: ValueFacts) -> str | None:
    return value.dtype if value.dtype is not None and value.dtype not in wanted else None


def _rank(bounds: Sequence[int | None], value: ValueFacts) -> str | None:
    return f"rank {value.rank}" if value.rank is not None and _within(value.rank, bounds) else None


def _numbers(condition: Mapping[str, Any], value: ValueFacts) -> str | None:
    array = _plain(value)
    if array is None:
        return None
    numbers = array.reshape(-1).tolist()
    return _short(numbers) if _number(condition, numbers) else None


def _infinite(wanted: bool, value: ValueFacts) -> str | None:
    numbers = _plain(value)
    return "infinite" if numbers is not None and bool(np.isinf(numbers).any()) == wanted else None


def _plain(value: ValueFacts) -> np.ndarray | None:
    """The numbers of a small constant in a dtype of numpy's own; None for texts, complex numbers and what was not read."""
    numbers = value.constant
    if numbers is None or numbers.dtype.kind in "cOSU":
        return None
    return numbers if numbers.dtype.kind in "biuf" else numbers.astype(np.float32)


def _said(hit: bool, text: str) -> str | None:
    return text if hit else None


_VALUE_CHECKS: Mapping[str, Callable[[Any, ValueFacts], str | None]] = {
    "dtype": _dtype,
    "not_dtype": _not_dtype,
    "rank": _rank,
    "numbers": _numbers,
    "infinite": _infinite,
    "constant": lambda wanted, v: _said(v.is_constant == wanted, "constant" if wanted else "not a constant"),
    "read": lambda wanted, v: _said((v.constant is not None) == wanted, ""),
    "used": lambda wanted, v: _said(v.used == wanted, "used" if wanted else "not used"),
    "ranked": lambda wanted, v: _said((v.shape is not None) == wanted, "" if wanted else "unknown rank"),
    "zero_dim": lambda wanted, v: _said((0 in (v.shape or ())) == wanted, f"shape {list(v.shape or ())}"),
}
VALUE_KEYS = frozenset(_VALUE_CHECKS) | {"present"}


def _number(condition: Mapping[str, Any], value: Any) -> bool:
    """Whether a value, or any of a list, meets every part of a condition."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(all(check(one, condition[key]) for key, check in _NUMBER_CHECKS.items() if key in condition) for one in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


_NUMBER_CHECKS: Mapping[str, Callable[[Any, Any], bool]] = {
    "is": lambda value, wanted: value == wanted,
    "not": lambda value, wanted: value is not None and value != wanted,
    "in": lambda value, wanted: value in wanted,
    "not_in": lambda value, wanted: value is not None and value not in wanted,
    "over": lambda value, wanted: _is_number(value) and value > wanted,
    "below": lambda value, wanted: _is_number(value) and value < wanted,
}
NUMBER_KEYS = frozenset(_NUMBER_CHECKS)


def _within(number: int, bounds: Sequence[int | None]) -> bool:
    low, high = bounds
    return (low is None or low <= number) and (high is None or number <= high)


def _list(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(value: Any) -> str:
    if isinstance(value, ValueFacts):
        return f"{value.dtype}{list(value.shape or ())}"
    if isinstance(value, (list, tuple)):
        return f"[{_list([str(v) for v in value], 8)}]"
    return str(value)
