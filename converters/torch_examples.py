"""Examples of a torch module's inputs: bound to its arguments, compared, and which sizes of them are free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from porting.errors import InputError, UsageError, nearest
from porting.types import TensorSpec

from .torch_calls import CallPlan, array_from_tensor, is_number, parameters_of, plan_call
from .torch_capture import Dynamic
from .torch_checks import run_eager
from .torch_probe import resized, sizes_of

if TYPE_CHECKING:
    import inspect

    import torch

GIVE = (
    'give --inputs x.npz with an array for each argument of forward, or --input "x: float32[batch, 3, 224, 224]"; '
    "in Python example_inputs=(tensor, ...)"
)
GROWN = 8  # tries to find sizes that differ from each other and from 1


def bound_examples(
    function: Any,
    examples: Sequence[Any],
    specs: Sequence[TensorSpec],
    what: str,
    parameters: Sequence[inspect.Parameter] | None = None,
) -> tuple[CallPlan, list[dict[str, torch.Tensor]]]:
    """How the module is called, and every example's tensors by flat name. Without examples, inputs are generated from the specs.

    raises: UsageError when there is neither; InputError when examples call the module in different ways or do not fit the specs
    """
    arguments = parameters_of(function.forward) if parameters is None else list(parameters)
    if not examples:
        if not specs:
            raise UsageError(
                f"nothing says what {what} takes: a torch module has to be run once to be exported", where="inputs", next=GIVE
            )
        _require_tensors(arguments, specs, what)
        examples = _generated(function, arguments, specs, what)
    plans = [plan_call(arguments, example, what) for example in examples]
    plan, first = plans[0]
    for i, (other, tensors) in enumerate(plans[1:], start=2):
        _require_same_call(plan, first, other, tensors, i)
    for i, (_, tensors) in enumerate(plans, start=1):
        _require_specs(tensors, specs, i)
    return plan, [tensors for _, tensors in plans]


def _require_tensors(arguments: Sequence[inspect.Parameter], specs: Sequence[TensorSpec], what: str) -> None:
    """raises: UsageError for arguments that are Python numbers: specs cannot say their value"""
    numbers = [p.name for p in arguments if is_number(p) and (p.default is p.empty or p.name in {s.name for s in specs})]
    if numbers:
        raise UsageError(
            f"{', '.join(numbers)} of {what}.forward: a Python number, which becomes a constant of the port, and no input of it",
            where="inputs",
            next=f"give its value in an example: --inputs x.npz with {numbers[0]} beside the arrays; in Python "
            f'example_inputs={{..., "{numbers[0]}": 2}}',
        )


def _generated(function: Any, arguments: Sequence[inspect.Parameter], specs: Sequence[TensorSpec], what: str) -> list[Any]:
    from porting.feeds import find_cases

    def run(feeds: Mapping[str, Any]) -> Any:
        plan, tensors = plan_call(arguments, feeds, what)
        return {name: array_from_tensor(tensor) for name, tensor in run_eager(function, plan, tensors, what).items()}

    return list(find_cases(specs, run, wanted=1).feeds.values())


def _require_same_call(plan: CallPlan, first: Mapping[str, Any], other: CallPlan, tensors: Mapping[str, Any], i: int) -> None:
    where = f"example {i}"
    if other.names != plan.names or other.args != plan.args or other.kwargs != plan.kwargs:
        raise InputError(
            f"it gives {', '.join(other.names)} with {dict(other.constants)}; example 1 gives {', '.join(plan.names)} with "
            f"{dict(plan.constants)}",
            where=where,
            next="give every example the same arguments; a number that differs has to be a tensor",
        )
    for name, tensor in tensors.items():
        if tensor.dtype != first[name].dtype or tensor.dim() != first[name].dim():
            raise InputError(
                f"{name} is {tensor.dtype}{list(tensor.shape)}, in example 1 {first[name].dtype}{list(first[name].shape)}",
                where=where,
                next="give every example the same dtypes and numbers of dimensions",
            )


def _require_specs(tensors: Mapping[str, torch.Tensor], specs: Sequence[TensorSpec], i: int) -> None:
    for spec in specs:
        if spec.name not in tensors:
            raise UsageError(f"there is no input {spec.name!r}", where="--input", next=nearest(spec.name, list(tensors)))
        tensor = tensors[spec.name]
        fits = tensor.dim() == len(spec.shape) and str(tensor.dtype).removeprefix("torch.") == spec.dtype
        fits = fits and all(not isinstance(d, int) or d == n for d, n in zip(spec.shape, tensor.shape, strict=True))
        if not fits:
            raise InputError(
                f"{spec.name} is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}, declared as {spec}",
                where=f"example {i}",
                next="let --input and the example agree",
            )


def free_sizes(
    examples: Sequence[Mapping[str, torch.Tensor]],
    specs: Sequence[TensorSpec],
    dynamic: Mapping[str, Mapping[int, str] | Sequence[str | None]] | None,
) -> Dynamic:
    """Input name -> {axis: name}: what the user named, what the specs name, and what differs between the examples.

    Sizes that differ in the same way get one name. raises: UsageError, InputError
    """
    found: dict[str, dict[int, str]] = {name: {} for name in examples[0]}
    for spec in specs:
        found[spec.name].update({axis: d for axis, d in enumerate(spec.shape) if isinstance(d, str)})
    for name, axes in (dynamic or {}).items():
        if name not in found:
            raise UsageError(f"there is no input {name!r}", where="dynamic", next=nearest(name, list(found)))
        rank = examples[0][name].dim()
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes)
        for axis, label in pairs:
            if label is None:
                continue
            if not isinstance(label, str) or not label.isidentifier():
                raise UsageError(f"{label!r} is no name of a size", where=f"dynamic[{name!r}]", next="a name such as batch")
            if not -rank <= axis < rank:
                raise UsageError(
                    f"{name} has no axis {axis}: it has {rank}", where=f"dynamic[{name!r}]", next=f"0 to {rank - 1}"
                )
            found[name][axis % rank] = label
    named: dict[tuple[int, ...], str] = {}
    for name, axes in found.items():
        for axis, label in axes.items():
            named.setdefault(tuple(example[name].shape[axis] for example in examples), label)
    for name, first in examples[0].items():
        for axis in range(first.dim()):
            sizes = tuple(example[name].shape[axis] for example in examples)
            if axis not in found[name] and len(set(sizes)) > 1:
                found[name][axis] = named.setdefault(sizes, f"{name}_{axis}")
    _require_one_size_each(examples, found)
    return {name: dict(sorted(axes.items())) for name, axes in found.items() if axes}


def _require_one_size_each(examples: Sequence[Mapping[str, torch.Tensor]], dynamic: Dynamic) -> None:
    for i, example in enumerate(examples, start=1):
        sizes: dict[str, tuple[int, str]] = {}
        for name, axes in dynamic.items():
            for axis, label in axes.items():
                size, where = example[name].shape[axis], f"axis {axis} of {name}"
                if sizes.setdefault(label, (size, where))[0] != size:
                    raise InputError(
                        f"{label!r} is {sizes[label][0]} as {sizes[label][1]} and {size} as {where}",
                        where=f"example {i}",
                        next="give sizes that differ names of their own",
                    )


def example_to_export(
    function: Any, plan: CallPlan, examples: Sequence[dict[str, torch.Tensor]], dynamic: Dynamic, what: str
) -> dict[str, torch.Tensor]:
    """The example that an exporter sees. Free sizes of it are not 1 and differ from each other where the module takes that.

    torch.export takes 1 for a size that broadcasts, and two equal sizes for one where code compares them; both would hold for the example only.
    """
    best = max(examples, key=lambda e: min((s for s in sizes_of(e, dynamic).values()), default=0))
    base = sizes_of(best, dynamic)
    for step in range(GROWN):
        sizes: dict[str, int] = {}
        for name, size in base.items():
            wanted = max(size, 2) if step % 2 == 0 else 2 * size
            while wanted in sizes.values():
                wanted += 1 if step % 4 < 2 else size
            sizes[name] = wanted + step // 4
        if sizes == base:
            return best
        other = resized(best, dynamic, sizes)
        try:
            run_eager(function, plan, other, what)
        except InputError:
            continue  # the module does not take them
        return other
    return best


def specs_of(tensors: Mapping[str, torch.Tensor], dynamic: Dynamic) -> tuple[TensorSpec, ...]:
    """What the inputs are, free sizes by name."""
    return tuple(
        TensorSpec(
            name,
            array_from_tensor(tensor).dtype.name,
            tuple(dynamic.get(name, {}).get(axis, int(size)) for axis, size in enumerate(tensor.shape)),
        )
        for name, tensor in tensors.items()
    )
