"""Files that hold a torch program: torch.export's .pt2, TorchScript, and modules that were pickled whole.

All three are code. Without `allow_pickle` nothing of them is executed or even given to torch, whose loaders run what they find: also
torch.export.load does, out of the examples and constants that a .pt2 carries.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import InputError, UnsupportedModel, UsageError
from porting.scratch import ScratchFolder
from porting.types import Limit, TensorSpec

from .torch_calls import CallPlan, Slot, array_from_tensor, tensor_from_array
from .torch_capture import Captured, Dynamic, bounds_of
from .torch_checks import require_deterministic
from .torch_export import require_translated
from .torch_factory import require_torch
from .torch_frames import printing_to_stderr, short, where_raised
from .torch_module import DynamicSizes, TorchSource, accounting_of, facts_of, graph_outputs, require_state, source_from_module
from .torch_probe import SizeFixed, try_sizes
from .torch_storage import TRUST, torch_file_kind, unpickled

if TYPE_CHECKING:
    import torch

__all__ = ["open_torch_file", "torch_file_kind"]

CODE = {
    "pt2": "an exported program (.pt2), which torch loads by running what it finds in it",
    "torchscript": "a TorchScript archive, which is code",
    "pickle": "a pickle of more than tensors, which is code",
}
WEIGHTS = "weights without a model: give --model package.module:factory --weights with this file"


def open_torch_file(
    path: str | Path,
    examples: Sequence[Any],
    input_specs: Sequence[TensorSpec] = (),
    dynamic: DynamicSizes | None = None,
    *,
    allow_pickle: bool = False,
    state: Mapping[str, str] | None = None,
) -> TorchSource:
    """Open a .pt2, a TorchScript archive or a pickled module, and export it.

    path, examples, input_specs, dynamic, state: as torch_module.open_factory; a .pt2 may carry an example of its own, and its free sizes are
                  those that it was exported with
    allow_pickle: run what is in the file
    raises:       InputError without `allow_pickle`, before anything of the file runs, for a file that cannot be loaded, and for weights
                  alone; UnsupportedModel for what cannot be exported
    """
    path = Path(path)
    kind = torch_file_kind(path)
    if kind is None:
        raise InputError(
            f"{path.name} is nothing that torch wrote", where=str(path), next="give a .pt2, TorchScript or torch.save file"
        )
    if kind == "state_dict":
        raise InputError(f"{path.name} holds weights only", where=str(path), next=WEIGHTS)
    if not allow_pickle:
        raise InputError(f"{path.name} is {CODE[kind]}; nothing of it was run", where=str(path), next=TRUST)
    require_torch()
    if kind == "pt2":
        return _open_program(path, examples, input_specs, dynamic, state)
    module = _scripted(path) if kind == "torchscript" else _pickled(path)
    format = "torchscript" if kind == "torchscript" else "torch"
    what = getattr(module, "original_name", "") or type(module).__name__
    return source_from_module(module, examples, input_specs, dynamic, state, what, path, format, [path])


def _scripted(path: Path) -> torch.nn.Module:
    import torch

    try:
        with warnings.catch_warnings(), printing_to_stderr():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and its archives are about
            return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise InputError(f"{path.name} cannot be loaded: {short(error)}", where=str(path)) from error


def _pickled(path: Path) -> torch.nn.Module:
    """The one module that a pickle holds, itself or beside other things in a dict."""
    import torch

    with printing_to_stderr():
        made = unpickled(path)
    if isinstance(made, torch.nn.Module):
        return made
    inside = {str(k): v for k, v in made.items() if isinstance(v, torch.nn.Module)} if isinstance(made, Mapping) else {}
    if len(inside) != 1:
        held = f"{len(inside)} modules ({', '.join(inside)})" if inside else f"no module, a {type(made).__name__}"
        raise InputError(
            f"{path.name} holds {held}; expected one",
            where=str(path),
            next=f"save the module that is meant; or, if it holds {WEIGHTS}",
        )
    return next(iter(inside.values()))


# --- exported programs ------------------------------------------------------------------------------------------------


def _open_program(
    path: Path,
    examples: Sequence[Any],
    specs: Sequence[TensorSpec],
    dynamic: DynamicSizes | None,
    state: Mapping[str, str] | None,
) -> TorchSource:
    import torch

    try:
        with warnings.catch_warnings(), printing_to_stderr():
            warnings.simplefilter("ignore")
            program = torch.export.load(str(path))
            module = program.module()
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be loaded: {short(error)}",
            where=where_raised(error, str(path)),
            next="export it again with this torch",
        ) from error
    what = path.stem
    _require_unchanging(program, path)
    plan = _plan_of(program, path)
    bound = [_flat_example(program, plan, example, path) for example in examples] or _own_example(program, plan, specs, what)
    folder = ScratchFolder()
    try:
        outputs = graph_outputs(module, plan, bound, what)
        require_deterministic(module, plan, bound[0], what)
        require_state(state, plan.names, list(outputs.values()))
        captured, free = _named_sizes(program, plan, specs, dynamic)
        exported = require_translated(captured, plan.names, list(outputs.values()), Path(folder.name), what)
        try:
            exported.tried = try_sizes(module, plan, bound[0], free, exported.path, what)
        except SizeFixed as error:
            raise UnsupportedModel(
                f"the graph made of {path.name} does not hold at {error.sizes}: {error.why}",
                where=str(path),
                next="export it with fixed sizes",
            ) from error
        return TorchSource(
            module,
            plan,
            bound,
            outputs,
            exported,
            folder,
            name=what,
            path=path,
            format="torch-export",
            files=[path],
            facts=facts_of(exported, plan, free, None),
            accounting=accounting_of(module, exported, None),
            state=state,
            limits=_limits(program, plan, free, path),
        )
    except BaseException:
        folder.cleanup()
        raise


def _require_unchanging(program: Any, path: Path) -> None:
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise InputError(
            f"{path.name} changes in place: {', '.join(changed)}",
            where=str(path),
            next="take it as an input and return it as an output",
        )


def _plan_of(program: Any, path: Path) -> CallPlan:
    """How the program is called, its inputs named as torch.export named them. Numbers and None that it was exported with are constants."""
    from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
    from torch.utils import _pytree as pytree

    leaves: list[Any] = []
    constants: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            constants[spec.arg.name] = spec.arg.value
            leaves.append(spec.arg.value)
        elif isinstance(spec.arg, TensorArgument):
            leaves.append(Slot(spec.arg.name))
        else:
            raise UnsupportedModel(
                f"input {spec.arg.name!r} of {path.name} is no tensor: {type(spec.arg).__name__}",
                where=str(path),
                next="export a module that takes a tensor there, or a number that stays as it is",
            )
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return CallPlan(tuple(leaf.name for leaf in leaves if isinstance(leaf, Slot)), tuple(args), kwargs, constants)


def _flat_example(program: Any, plan: CallPlan, example: Any, path: Path) -> dict[str, torch.Tensor]:
    """A user's example, by flat name, or as the positional arguments."""
    from torch.utils import _pytree as pytree

    if isinstance(example, Mapping):
        if set(example) == {f"arr_{i}" for i in range(len(plan.names))}:
            example = {name: example[f"arr_{i}"] for i, name in enumerate(plan.names)}
        if set(example) != set(plan.names):
            raise InputError(
                f"the example gives {', '.join(map(str, example))}, the program takes {', '.join(plan.names)}",
                where="inputs",
                next="give one array for each",
            )
        return {name: tensor_from_array(example[name], name) for name in plan.names}
    leaves = _tensors_of(pytree.tree_leaves(example), plan)
    if len(leaves) != len(plan.names):
        raise InputError(
            f"the example has {len(leaves)} arrays, the program takes {len(plan.names)}: {', '.join(plan.names)}",
            where="inputs",
        )
    return {name: tensor_from_array(leaf, name) for name, leaf in zip(plan.names, leaves, strict=True)}


def _tensors_of(leaves: Sequence[Any], plan: CallPlan) -> list[Any]:
    """An example without the constants of the program, where it has them in their places. raises: InputError where it has others"""
    from torch.utils import _pytree as pytree

    wanted = pytree.tree_leaves((plan.args, dict(plan.kwargs)))
    if len(leaves) != len(wanted):
        return list(leaves)
    pairs = [(leaf, want) for leaf, want in zip(leaves, wanted, strict=True) if not isinstance(want, Slot)]
    other = [(leaf, want) for leaf, want in pairs if type(leaf) is not type(want) or leaf != want]
    if other:
        raise InputError(
            f"the example gives {other[0][0]!r} where the program was exported with {other[0][1]!r}, a constant of it",
            where="inputs",
            next="leave it out, or export the program with that value",
        )
    return [leaf for leaf, want in zip(leaves, wanted, strict=True) if isinstance(want, Slot)]


def _own_example(program: Any, plan: CallPlan, specs: Sequence[TensorSpec], what: str) -> list[dict[str, torch.Tensor]]:
    """The example in the file; else inputs generated from the specs, or from what the program says of its inputs."""
    from torch.utils import _pytree as pytree

    if program.example_inputs is not None:
        leaves = _tensors_of(pytree.tree_leaves(program.example_inputs), plan)
        if len(leaves) == len(plan.names):
            return [{name: tensor_from_array(leaf, name) for name, leaf in zip(plan.names, leaves, strict=True)}]
    from porting.feeds import find_cases

    from .torch_checks import run_eager

    specs = list(specs) or [
        TensorSpec(
            name,
            array_from_tensor(value.new_empty(0)).dtype.name,
            tuple(d if isinstance(d, int) else str(d) for d in value.shape),
        )
        for name, value in _values(program, plan).items()
    ]

    def run(feeds: Mapping[str, Any]) -> Any:
        result = run_eager(program.module(), plan, {n: tensor_from_array(a, n) for n, a in feeds.items()}, what)
        return {name: array_from_tensor(tensor) for name, tensor in result.items()}

    return [{n: tensor_from_array(a, n) for n, a in feeds.items()} for feeds in find_cases(specs, run, wanted=1).feeds.values()]


def _values(program: Any, plan: CallPlan) -> dict[str, Any]:
    """What torch knows of each input without its values."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return {name: values[name] for name in plan.names}


def _limits(program: Any, plan: CallPlan, free: Dynamic, path: Path) -> dict[str, Limit]:
    """How long inputs may be, by the bounds that the program was exported with: one axis of an input for each.

    raises: UnsupportedModel for a bound that no input can carry
    """
    bounds = bounds_of(program)
    places: dict[str, list[tuple[str, int]]] = {symbol: [] for symbol in bounds}
    for name, value in _values(program, plan).items():
        for axis, size in enumerate(value.shape):
            if str(size) in places:
                places[str(size)].append((name, axis))
    limits: dict[str, Limit] = {}
    for symbol in sorted(bounds, key=lambda symbol: len(places[symbol])):  # those first that have least choice
        left = [(name, axis) for name, axis in places[symbol] if name not in limits]
        if not left:
            raise UnsupportedModel(
                f"{path.name} holds for a size of at most {bounds[symbol]} ({symbol}), and no input is left to carry that bound: one each",
                where=str(path),
                next="export it without that bound: torch.export.Dim(name) without max, or torch.export.Dim.AUTO",
            )
        name, axis = left[0]
        limits[name] = Limit(axis, bounds[symbol], None, f"{free[name][axis]} of {path.name} was exported with that bound")
    return limits


def _named_sizes(
    program: Any, plan: CallPlan, specs: Sequence[TensorSpec], dynamic: DynamicSizes | None
) -> tuple[Captured, dict[str, dict[int, str]]]:
    """The program with the user's names for its free sizes, and those sizes. raises: UsageError for a name of a size that is fixed"""
    wanted: dict[str, dict[int, str]] = {
        spec.name: {axis: d for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in specs
    }
    for name, axes in (dynamic or {}).items():
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes)
        wanted.setdefault(name, {}).update({axis: label for axis, label in pairs if label is not None})
    values = _values(program, plan)
    captured = Captured(program)
    for name, named in wanted.items():
        for axis, label in named.items():
            value = values.get(name)
            if value is None or not -value.dim() <= axis < value.dim() or isinstance(value.shape[axis], int):
                raise UsageError(
                    f"axis {axis} of {name} is no free size of the program",
                    where="dynamic",
                    next="export the program with that size free",
                )
            captured.symbols.setdefault(str(value.shape[axis].node.expr), label)
    free: dict[str, dict[int, str]] = {}
    for name, value in values.items():
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                symbol = str(size.node.expr)
                free.setdefault(name, {})[axis] = captured.symbols.setdefault(
                    symbol, f"{name}_{axis}" if symbol.isidentifier() else symbol
                )
    return captured, free
