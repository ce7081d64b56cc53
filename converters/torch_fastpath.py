"""torch's fast path of attention: in inference other kernels run than in the code of torch.nn.MultiheadAttention, and no graph has them.

Apart from rounding they give the same, with one exception: torch.nn.TransformerEncoder, given a padding mask that pads at the end only, packs
the rest into nested tensors, and gives zeros at the padded positions instead of what its layers compute there.
source: torch 2.13.0, torch/nn/modules/transformer.py, TransformerEncoder.forward
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from porting.errors import InputError

from .torch_calls import CallPlan
from .torch_checks import run_eager
from .torch_frames import where_now

if TYPE_CHECKING:
    import torch

NESTED = "_nested_tensor_from_mask"  # what makes them
SAME = "positions that are not padded get the same"
OFF = f"build torch.nn.TransformerEncoder with enable_nested_tensor=False ({SAME}), or set what is padded to zero in forward"


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention by the code of its module."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def require_same_without_fast_path(
    module: torch.nn.Module, plan: CallPlan, examples: Sequence[Mapping[str, torch.Tensor]], what: str
) -> None:
    """Run the examples with and without the fast path, where the module has attention.

    raises: InputError when an output is another; when padding would decide, and no example has any
    """
    import torch

    if not any(isinstance(part, torch.nn.MultiheadAttention) for part in module.modules()):
        return
    packed: list[tuple[bool, str]] = []
    for tensors in examples:
        with _packing(packed):
            fast = run_eager(module, plan, tensors, what)
        with without_fast_path():
            plain = run_eager(module, plan, tensors, what)
        different = [name for name in fast if name in plain and not _alike(fast[name], plain[name])]
        if different and packed:
            raise InputError(
                f"{what} gives zeros in {', '.join(different)} at positions that the padding mask leaves out, by the nested tensors that "
                "torch.nn.TransformerEncoder makes in inference; a graph gives what its layers compute there",
                where=packed[0][1] or "forward",
                next=OFF,
            )
        if different:
            raise InputError(
                f"{what} gives other values in {', '.join(different)} with the fast path of torch's attention, which no graph has",
                where="forward",
                next="give inputs for which both agree, or call torch.backends.mha.set_fastpath_enabled(False) before",
            )
    if packed and not any(padded for padded, _ in packed):
        raise InputError(
            f"{what} takes a padding mask, and no example has anything padded: torch.nn.TransformerEncoder gives zeros there in inference",
            where=packed[0][1] or "forward",
            next=f"give an example with padding at the end; or {OFF}",
        )


@contextmanager
def _packing(packed: list[tuple[bool, str]]) -> Iterator[None]:
    """Notes every time that nested tensors are made by a mask: (whether it leaves anything out, line of user code)."""
    import torch

    original = getattr(torch, NESTED)

    def noting(tensor: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        packed.append((not bool(mask.all()), where_now()))
        return original(tensor, mask, *args, **kwargs)

    setattr(torch, NESTED, noting)
    try:
        yield
    finally:
        setattr(torch, NESTED, original)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding: far fewer digits than the dtype has, far more than a value that is another one."""
    import torch

    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    limit = torch.finfo(a.dtype).eps ** 0.5 * b.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if b.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=limit, equal_nan=True)
