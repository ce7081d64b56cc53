"""From a torch module to an exported program (torch.export), with what torch assumed about sizes on the way.

torch.export runs the module once on tensors without values. Where the module's Python asks about a size that is free, torch notes the answer
as a guard: the program holds only for sizes that answer alike. Where it asks about values, export fails: no graph can follow.
"""

from __future__ import annotations

import ast
import ctypes
import logging
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from porting.errors import UnsupportedModel

from .torch_calls import CallPlan, flat_outputs
from .torch_fastpath import without_fast_path
from .torch_frames import short, where_now, where_raised

if TYPE_CHECKING:
    import torch

FIXED = "its code makes a Python number of that size, which fixes it to the example's"
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


UNLIMITED = 1 << 31  # torch writes "no bound" as numbers far above


@dataclass
class Captured:
    """An exported program.

    symbols: torch's name of a free size -> the user's
    """

    program: Any
    symbols: dict[str, str] = field(default_factory=dict)


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
    try:
        captured = Captured(_export(flat_module(function, plan, what), plan, tensors, dynamic))
    except Exception as error:
        raise _refusal(error, plan, dynamic, what) from error
    _name_sizes(captured, plan, dynamic)
    require_unbounded(captured.program, what)
    return captured


def bounds_of(program: Any) -> dict[str, int]:
    """torch's name of a free size of the inputs -> the largest for which the program holds, where there is one."""
    values = [
        node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and hasattr(node.meta.get("val"), "shape")
    ]
    # of the inputs alone: how many elements a nonzero inside may give has a bound of its own
    free = {
        str(s) for value in values for size in value.shape if not isinstance(size, int) for s in size.node.expr.free_symbols
    }
    ranges = program.range_constraints.items()
    return {str(symbol): int(r.upper) for symbol, r in ranges if str(symbol) in free and r.upper < UNLIMITED}


def require_unbounded(program: Any, what: str) -> None:
    """raises: UnsupportedModel for a program that holds only up to some size, where the user's code decided so"""
    bounds = bounds_of(program).values()
    if bounds:
        raise UnsupportedModel(
            f"{what} computes something else, or nothing, where a free size is above {min(bounds)}: a graph would not stop there",
            where="forward",
            next="fix that size (leave it out of the free ones), or write that part without a Python decision on the size",
        )


def _export(flat: torch.nn.Module, plan: CallPlan, tensors: Mapping[str, torch.Tensor], dynamic: Dynamic) -> Any:
    import torch

    shapes = tuple(dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in plan.names)
    # as torch.onnx does: neither a size of 1 in the example nor an operator's question whether a size is 1 fixes it
    with quiet(), torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(flat, tuple(tensors[n] for n in plan.names), dynamic_shapes=(shapes,), strict=False)


def _refusal(error: Exception, plan: CallPlan, dynamic: Dynamic, what: str) -> Exception:
    text = str(error)
    fixed = _fixed_sizes(text, plan, dynamic)
    if SPECIALISED_TEXT.search(text) and fixed:
        return NotCaptured(FIXED, "", fixed)
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
            found.append(dynamic[name][axis])
    return sorted(set(found))


def _name_sizes(captured: Captured, plan: CallPlan, dynamic: Dynamic) -> None:
    """Give torch's symbols the user's names. raises: NotCaptured when a size that should be free has become a number"""
    program = captured.program
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    fixed = []
    for name, placeholder in zip(plan.names, program.graph_signature.user_inputs, strict=True):
        for axis, size_name in dynamic.get(name, {}).items():
            size = values[placeholder].shape[axis]
            if isinstance(size, int):
                fixed.append(size_name)
            else:
                captured.symbols.setdefault(str(size.node.expr), size_name)
    if fixed:
        raise NotCaptured(FIXED, "", sorted(set(fixed)))


# --- which line decided -----------------------------------------------------------------------------------------------


def line_of_decision(
    function: Any,
    plan: CallPlan,
    tensors: Mapping[str, torch.Tensor],
    dynamic: Dynamic,
    what: str,
    sizes: Mapping[str, int] | None = None,
) -> tuple[str, str]:
    """(what the code decided by a free size, the line that did); "" where torch does not say.

    torch tells that in its log only, which is slow to write, so this exports again, once something has gone wrong.

    sizes: sizes for which the decision would be another; None looks for the one that fixed a size
    """
    places = {(i, axis): label for i, name in enumerate(plan.names) for axis, label in dynamic.get(name, {}).items()}
    listener = _Listener(places)
    logger = logging.getLogger(SHAPES_LOGGER)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(listener)
    try:
        with suppress(Exception):
            _export(flat_module(function, plan, what), plan, tensors, dynamic)
    finally:
        logger.setLevel(level)
        logger.removeFilter(listener)
    if sizes is None:
        return next((q for q in listener.decisions if q[0].startswith("Eq(")), ("", ""))
    return next((q for q in listener.decisions if not _holds(q[0], sizes)), ("", ""))


class _Listener(logging.Filter):
    """Keeps what torch logs of its decisions on free sizes, in the user's names, each with the user's line that runs just then."""

    def __init__(self, places: Mapping[tuple[int, int], str]) -> None:
        super().__init__()
        self._places = places
        self._symbols: dict[str, str] = {}
        self.decisions: list[tuple[str, str]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        made = re.match(r"create_symbol (s\d+) = \d+ for L\['flat'\]\[(\d+)\]\.size\(\)\[(\d+)\]", text)
        decided = re.match(r"eval (?!\[guard suppressed)(.*?) \[guard added\]", text)
        if made and (label := self._places.get((int(made[2]), int(made[3])))):
            self._symbols[made[1]] = label
        elif decided and (line := where_now()):
            renamed = re.sub(r"\bs\d+\b", lambda m: self._symbols.get(m[0], m[0]), decided[1])
            self.decisions.append((renamed, line))
        return False


def _holds(decision: str, sizes: Mapping[str, int]) -> bool:
    """Whether torch's text of a decision is true of these sizes; True where it is not plain arithmetic."""
    functions = {"Eq": operator.eq, "Ne": operator.ne, "Mod": operator.mod, "Max": max, "Min": min}
    try:
        tree = ast.parse(decision, mode="eval")
        allowed = (
            ast.Expression,
            ast.Call,
            ast.Compare,
            ast.BinOp,
            ast.UnaryOp,
            ast.Name,
            ast.Constant,
            ast.Load,
            ast.operator,
        )
        if not all(isinstance(node, (*allowed, ast.cmpop, ast.unaryop)) for node in ast.walk(tree)):
            return True
        return bool(eval(compile(tree, "decision", "eval"), {"__builtins__": {}}, {**functions, **sizes}))
    except (SyntaxError, NameError, TypeError, ValueError, ArithmeticError):
        return True


# --- what goes on around an export -----------------------------------------------------------------------------------


@contextmanager
def _native_stdout_to_stderr() -> Iterator[None]:
    """What torch's C++ writes to stdout goes to stderr: stdout is the result of a command, one JSON object for example."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """torch's loggers and warnings say nothing; the warnings are collected. Whatever is wrong comes as an exception."""
    import torch

    root = logging.getLogger("torch")
    loggers = [
        root,
        *(v for k, v in logging.Logger.manager.loggerDict.items() if k.startswith("torch.") and isinstance(v, logging.Logger)),
    ]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        stack.enter_context(_native_stdout_to_stderr())
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(redirect_stderr(StringIO()))  # torch prints the graph of a program that it refuses
        stack.enter_context(recurrent_shapes())
        stack.enter_context(without_fast_path())
        warnings.simplefilter("always")
        logged = torch._C._jit_is_onnx_log_enabled()
        stack.callback(torch._C._jit_set_onnx_log_enabled, logged)
        torch._C._jit_set_onnx_log_enabled(False)  # the TorchScript exporter's, which C++ writes to stdout
        for logger, _, _ in before:
            logger.handlers = []
        root.handlers, root.propagate = [logging.NullHandler()], False
        try:
            yield caught
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate


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
