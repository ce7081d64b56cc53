"""Whether a torch module can be a graph at all: in eval mode, on the CPU, deterministic, without state of its own.

Every check runs the module as it is, in eager mode; no exporter is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from porting.errors import InputError

from .torch_calls import CallPlan, flat_outputs
from .torch_frames import printing_to_stderr, short, where_now, where_raised

if TYPE_CHECKING:
    import torch

SHOWN = 8  # layers named before "and N more"
CARRY = "take what is remembered as an input and return it as an output; a session carries it (--state INPUT=OUTPUT)"


def require_cpu(module: torch.nn.Module, what: str) -> None:
    """raises: InputError for parameters or buffers that have no values (meta) or lie on another device"""
    elsewhere: dict[str, list[str]] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            elsewhere.setdefault(tensor.device.type, []).append(name)
    for device, names in elsewhere.items():
        if device == "meta":
            raise InputError(
                f"{what} has {len(names)} tensors on the meta device, which have no values: {some(names)}",
                where="the module",
                next="build it on the CPU, and load its weights",
            )
        raise InputError(
            f"{what} has {len(names)} tensors on {device}: {some(names)}", where="the module", next="call .cpu() on the module"
        )


def require_eval(module: torch.nn.Module, what: str) -> None:
    """raises: InputError when a layer is in training mode that computes something else there, naming those layers"""
    # a frozen TorchScript module has no mode any more
    trained = [
        f"{name or what} ({getattr(m, 'original_name', type(m).__name__)})"
        for name, m in module.named_modules()
        if getattr(m, "training", False) and _differs(m)
    ]
    if trained:
        raise InputError(
            f"{what} is in training mode, where {len(trained)} of its layers compute something else: {some(trained)}",
            where="the module",
            next="call .eval() on the module, or have the factory return module.eval()",
        )


def _differs(module: Any) -> bool:
    """Whether a layer computes something else in training mode."""
    from torch import nn

    scripted = getattr(module, "original_name", "")  # of a ScriptModule: the class that it was made from
    if scripted.startswith(("Dropout", "AlphaDropout", "FeatureAlphaDropout", "BatchNorm", "SyncBatchNorm", "RReLU")):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return bool(module.track_running_stats)  # without, both modes use the statistics of the batch
    if isinstance(module, nn.RReLU):
        return module.lower != module.upper
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    return False


def run_eager(function: Any, plan: CallPlan, tensors: Mapping[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """The flat outputs of a module for flat inputs, which it gets as copies.

    raises: InputError with the module's own message and the line of its code
    """
    import torch

    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        with torch.inference_mode(), printing_to_stderr():
            result = plan.call(function, copies)
    except Exception as error:
        shapes = ", ".join(f"{n}: {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for n, t in tensors.items())
        double = [n for n, t in tensors.items() if t.dtype == torch.float64]
        hint = f"{', '.join(double)} is float64, numpy's default: give float32 if that is what the model takes"
        raise InputError(
            f"{what} does not take these inputs ({shapes}): {short(error)}",
            where=where_raised(error, "forward"),
            next=hint if double else "give inputs of the shapes and dtypes that its forward takes",
        ) from error
    return dict(flat_outputs(result, what))


def require_deterministic(module: torch.nn.Module, plan: CallPlan, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Run twice: both must give the same bits. raises: InputError naming the random operations with their lines"""
    first = run_eager(module, plan, tensors, what)
    second = run_eager(module, plan, tensors, what)
    different = [n for n in first if n not in second or not same_bits(first[n], second[n])]
    if not different and first.keys() == second.keys():
        return
    drawn = _drawn(module, plan, tensors, what)
    if drawn:
        raise InputError(
            f"{what} gives other outputs on the same inputs, since it draws random numbers: {some(sorted(drawn))}",
            where=next(iter(drawn.values())) or "forward",
            next="take the random tensor as an input, or turn dropout off: functional.dropout needs training=self.training",
        )
    raise InputError(
        f"{what} gives other outputs ({some(different)}) when it runs again on the same inputs, and draws no random numbers of torch's: "
        "it remembers something between calls, or takes random numbers from elsewhere",
        where="forward",
        next=CARRY,
    )


def _drawn(module: Any, plan: CallPlan, tensors: Mapping[str, torch.Tensor], what: str) -> dict[str, str]:
    """Random operations that one run uses -> line of user code. Watched, a run may take other kernels and give other bits."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    drawn: dict[str, str] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if torch.Tag.nondeterministic_seeded in func.tags and not _idle(func, args, kwargs or {}):
                drawn.setdefault(str(func), where_now())
            return func(*args, **(kwargs or {}))

    with Watch():
        run_eager(module, plan, tensors, what)
    return drawn


def _idle(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a random operator draws nothing with these arguments: dropout outside training, or of probability 0."""
    given = {a.name: a.default_value for a in operator._schema.arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in operator._schema.arguments), args, strict=False))
    given |= kwargs
    off = [given[name] is False for name in ("train", "training") if name in given]
    zero = [given[name] == 0 for name in ("p", "dropout", "dropout_p") if isinstance(given.get(name), (int, float))]
    return any(off) or (bool(zero) and all(zero))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, NaN included."""
    import torch

    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def some(names: list[str]) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
