"""From a torch module to an exported program (torch.export), with what torch assumed about sizes on the way.

torch.export runs the module once on tensors without values. Where the module's Python asks about a size that is free, torch notes the answer
as a guard: the program holds only for sizes that answer alike. Where it asks about values, export fails: no graph can follow.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from porting.errors import UnsupportedModel

from .torch_calls import CallPlan, flat_outputs
from .torch_frames import short, where_now, where_raised

if TYPE_CHECKING:
    import torch

SHAPES_LOGGER = "torch.fx.experimental.symbolic_shapes"
# what torch.export raises where Python asks a tensor for its value; torch 2.13.0, torch/fx/experimental/symbolic_shapes.py,
# torch/_subclasses/fake_tensor.py, torch/_dynamo/exc.py
DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "UserErrorType.DYNAMIC_CONTROL_FLOW",
)
DATA_DEPENDENT_TEXT = re.compile(
    r"data.dependent|dynamic control flow|\.(numpy|tolist|data_ptr)\(\) is not supported", re.IGNORECASE
)
SPECIALISED_TEXT = re.compile(
    r"specialized (it )?to be a constant|inferred a static shape|0/1 specialized|specialized due to", re.IGNORECASE
)
INPUT_SIZE = re.compile(r"L\['flat'\]\[(\d+)\]\.size\(\)\[(\d+)\]|inputs\['flat'\]\[(\d+)\]\.shape\[(\d+)\]")

Dynamic = Mapping[str, Mapping[int, str]]  # input name -> {axis: name of the size}


class NotCaptured(Exception):
    """torch.export could not; another exporter may be able to.

    fixed: sizes that should be free and that the module's code fixed, by name
    """

    def __init__(self, why: str, where: str, fixed: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.where = where
        self.fixed = tuple(fixed)


@dataclass
class Captured:
    """An exported program and what it holds for.

    symbols: torch's name of a free size -> the user's
    guards:  line of code that decided by a free size -> what torch assumed there
    least:   user's name -> smallest size that the program holds for, where that is above 2
    """

    program: Any
    symbols: dict[str, str] = field(default_factory=dict)
    guards: dict[str, str] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)


def flat_module(function: Any, plan: CallPlan, what: str) -> torch.nn.Module:
    """A module that takes and returns flat tensors; `function` is its child `module`, where it is a module."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = function

        def forward(self, *flat: Any) -> tuple[Any, ...]:
            result = plan.call(self.module, dict(zip(plan.names, flat, strict=True)))
            return tuple(tensor for _, tensor in flat_outputs(result, what))

    flat = Flat()
    flat.training = False  # of itself only: the module is as its owner wants it, and an exported program has no eval()
    return flat


def capture(function: Any, plan: CallPlan, tensors: Mapping[str, torch.Tensor], dynamic: Dynamic, what: str) -> Captured:
    """torch.export of a module for flat inputs.

    raises: UnsupportedModel where the code depends on values, NotCaptured for everything else that torch.export cannot do
    """
    import torch

    free = {axis: torch.export.Dim.DYNAMIC for axis in range(32)}
    shapes = tuple({axis: free[axis] for axis in dynamic.get(name, {})} or None for name in plan.names)
    flat = flat_module(function, plan, what)
    with quiet(), _guard_lines() as lines:
        try:
            program = torch.export.export(flat, tuple(tensors[n] for n in plan.names), dynamic_shapes=(shapes,), strict=False)
        except Exception as error:
            raise _refusal(error, plan, dynamic, lines, what) from error
    captured = Captured(program)
    _name_sizes(captured, plan, dynamic, lines)
    return captured


def _refusal(error: Exception, plan: CallPlan, dynamic: Dynamic, lines: dict[str, str], what: str) -> Exception:
    text = str(error)
    fixed = _fixed_sizes(text, plan, dynamic)
    if SPECIALISED_TEXT.search(text) and fixed:
        line = next((at for guard, at in lines.items() if guard.startswith("Eq(") and at), "")
        return NotCaptured(f"its code fixes {', '.join(fixed)} to the size in the example", line, fixed)
    if type(error).__name__ in DATA_DEPENDENT or DATA_DEPENDENT_TEXT.search(text):
        return UnsupportedModel(
            f"{what} decides by the values of a tensor what it computes next, which no graph can follow: {short(error)}",
            where=where_raised(error, "forward"),
            next="choose with torch.where or torch.cond, or move that part out of forward, to the code around the session",
        )
    return NotCaptured(short(error), where_raised(error))


def _fixed_sizes(text: str, plan: CallPlan, dynamic: Dynamic) -> list[str]:
    """Sizes that torch names as fixed and that should be free."""
    found = []
    for match in INPUT_SIZE.finditer(text):
        i, axis = (int(g) for g in match.groups() if g is not None)
        name = plan.names[i]
        if axis in dynamic.get(name, {}):
            found.append(f"{dynamic[name][axis]!r} (axis {axis} of {name})")
    return sorted(set(found))


def _name_sizes(captured: Captured, plan: CallPlan, dynamic: Dynamic, lines: dict[str, str]) -> None:
    """Give torch's symbols the user's names. raises: NotCaptured when a size that should be free has become a number"""
    program = captured.program
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    fixed = []
    for name, placeholder in zip(plan.names, program.graph_signature.user_inputs, strict=True):
        for axis, size_name in dynamic.get(name, {}).items():
            size = values[placeholder].shape[axis]
            if isinstance(size, int):
                fixed.append(f"{size_name!r} (axis {axis} of {name})")
            else:
                captured.symbols.setdefault(str(size.node.expr), size_name)
    if fixed:
        raise NotCaptured(f"its code fixes {', '.join(fixed)} to the size in the example", "", fixed)
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) in captured.symbols and int(bounds.lower) > 2:
            captured.least[captured.symbols[str(symbol)]] = int(bounds.lower)
    if getattr(program, "_guards_code", None):
        for text, line in lines.items():
            if line and not text.startswith("Eq("):  # equal sizes have become one symbol
                captured.guards.setdefault(line, _renamed(text, captured.symbols))


def _renamed(text: str, symbols: Mapping[str, str]) -> str:
    return re.sub(r"\bs\d+\b", lambda m: symbols.get(m[0], m[0]), text)


# --- what goes on around an export -----------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """torch's loggers and warnings say nothing; the warnings are collected. Whatever is wrong comes as an exception."""
    root = logging.getLogger("torch")
    loggers = [
        root,
        *(v for k, v in logging.Logger.manager.loggerDict.items() if k.startswith("torch.") and isinstance(v, logging.Logger)),
    ]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(redirect_stderr(StringIO()))  # torch prints the graph of a program that it refuses
        stack.enter_context(recurrent_shapes())
        warnings.simplefilter("always")
        for logger, _, _ in before:
            logger.handlers = []
        root.handlers, root.propagate = [logging.NullHandler()], False
        try:
            yield caught
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def _guard_lines() -> Iterator[dict[str, str]]:
    """What torch asks about free sizes while it exports -> the user's line that asked. torch says so only in its log."""
    lines: dict[str, str] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            match = re.match(r"eval (?!\[guard suppressed)(.*?) \[guard added\]", record.getMessage())
            if match:
                lines.setdefault(match[1], where_now())

    logger, handler = logging.getLogger(SHAPES_LOGGER), Handler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """aten.lstm and aten.gru stay one operator each whose output shapes are known, also where the time axis is free.

    torch's own rule for tensors without values unrolls them over time, which fixes that axis. Only for the two that torch.onnx
    translates as they are; with projections (h and c of different widths) torch's rule stays.
    source: torch 2.13.0, torch/_decomp/decompositions.py (lstm_impl), torch/export/_patches.py (how a rule is replaced)
    """
    import torch
    from torch._decomp import global_decomposition_table

    table = global_decomposition_table["post_autograd"]
    aten, key = torch.ops.aten, torch._C.DispatchKey.CompositeImplicitAutograd
    rules: dict[Any, Callable[..., Any]] = {
        aten.lstm.input: _lstm_shapes(table.get(aten.lstm.input)),
        aten.gru.input: _gru_shapes,
    }
    saved = {op: (dict(op.py_kernels), table.get(op)) for op in rules}
    for op, rule in rules.items():
        for k in {*op.py_kernels, key}:
            op.py_kernels[k] = rule
        table[op] = rule
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, (kernels, entry) in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
            table.pop(op, None) if entry is None else table.__setitem__(op, entry)


def _lstm_shapes(unrolled: Callable[..., Any] | None) -> Callable[..., Any]:
    def rule(
        x: Any, hx: Any, params: Any, has_biases: Any, layers: Any, dropout: Any, train: Any, both_ways: Any, first: Any
    ) -> Any:
        import torch

        if unrolled is not None and hx[0].shape[-1] != hx[1].shape[-1]:
            return unrolled(x, hx, params, has_biases, layers, dropout, train, both_ways, first)
        width = hx[0].shape[-1] * (2 if both_ways else 1)
        return x.new_empty((*x.shape[:-1], width)), torch.empty_like(hx[0]), torch.empty_like(hx[1])

    return rule


def _gru_shapes(
    x: Any, h: Any, params: Any, has_biases: Any, layers: Any, dropout: Any, train: Any, both_ways: Any, first: Any
) -> Any:
    import torch

    return x.new_empty((*x.shape[:-1], h.shape[-1] * (2 if both_ways else 1))), torch.empty_like(h)
