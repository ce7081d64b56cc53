"""A weights file into a torch module: which of the mappings in it is the module's, and whether every name, shape and value fits.

The file may be a plain state dict or a training checkpoint that holds one somewhere inside, as .safetensors or as torch saves it. The
mapping is found by what fits the module, never by what it is called; what lies beside it is left out and listed.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import CheckpointError, PortingError, UsageError
from porting.types import StoredTensor

from .torch_frames import short, where_raised
from .torch_storage import read_object, tensor_of

if TYPE_CHECKING:
    import torch

PREFIXES = ("module.", "_orig_mod.")  # DataParallel and DistributedDataParallel; torch.compile
NEAREST = 10
SHOWN = 20
BESIDE = (  # words that a name begins with or has after _ . or -
    (r"optim|adam|sgd", "state of the optimiser, for training only"),
    (r"sched|lr|warmup", "state of the learning-rate schedule, for training only"),
    (r"scaler|amp|grad", "state of the gradient scaling, for training only"),
    (r"epoch|step|steps|iter|iteration|global_step", "how far training went"),
    (r"args?|config|cfg|params?|opts?|settings?|hparams|hyper", "settings, no weights"),
    (r"loss|best|acc|metrics?|score|fitness", "a result of training"),
    (r"rng|seed|random", "state of the random numbers, for training only"),
)


@dataclass
class Loaded:
    """What was taken from a weights file.

    used:    names in the file
    dropped: what was left out, each with a reason
    facts:   for port.json: the entry, the prefix taken off, casts, with strict=False what was missing
    """

    used: list[str]
    dropped: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Candidate:
    """A mapping of names to tensors in the file.

    path:   the keys that lead to it
    prefix: what was taken off all of its names
    """

    path: tuple[str, ...]
    tensors: dict[str, Any]
    prefix: str = ""

    @property
    def shown(self) -> str:
        return ".".join(self.path) or "the file itself"


def load_weights(
    module: torch.nn.Module, path: Path, what: str, *, strict: bool = True, allow_pickle: bool = False, entry: str | None = None
) -> Loaded:
    """Load a module with a weights file, in place.

    what:         the module's name, for errors
    strict:       whether names may be missing or left over; shapes have to fit either way
    allow_pickle: run the code of a pickle that holds more than tensors
    entry:        dotted path of the mapping that is meant, where several fit ("ema")
    raises:       CheckpointError with the nearest names when it is another model's, for values that do not fit the module's dtype, for NaN;
                  UsageError when several mappings fit
    """
    wanted = dict(module.state_dict(keep_vars=True))
    content = read_object(path, allow_pickle)
    chosen = _choose(list(_candidates(content, ())), wanted, path, what, entry)
    _require_shapes(chosen, wanted, path, what)
    casts: dict[str, int] = {}
    tensors = {name: _fitting(name, chosen, wanted.get(name), casts, path) for name in chosen.tensors}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = module.load_state_dict(tensors, strict=False)
    except Exception as error:  # a module may have its own way to load
        raise CheckpointError(
            f"{what} cannot be loaded with {path.name}: {short(error)}", where=where_raised(error, str(path))
        ) from error
    _require_equal_where_tied(module, tensors, path, what)
    missing = _without_tied(list(result.missing_keys), wanted, set(tensors) - set(result.unexpected_keys))
    unexpected = list(result.unexpected_keys)
    if (missing or unexpected) and (strict or len(unexpected) == len(tensors)):
        raise _misfit(missing, unexpected, wanted, chosen, path, what)
    loaded = Loaded([chosen.prefix + name for name in tensors if name not in unexpected])
    loaded.dropped = [{"name": chosen.prefix + n, "reason": "the module has no such name (strict=False)"} for n in unexpected]
    loaded.dropped += _beside(content, chosen.path)
    facts = {"file": path.name, "entry": ".".join(chosen.path), "prefix": chosen.prefix, "cast": casts, "missing": missing}
    loaded.facts = {key: value for key, value in facts.items() if value}
    return loaded


def _require_equal_where_tied(module: torch.nn.Module, tensors: Mapping[str, Any], path: Path, what: str) -> None:
    """raises: CheckpointError where the module has one tensor under several names, and the file several tensors"""
    import torch

    shared: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in tensors and isinstance(tensor, torch.Tensor) and tensor.numel():
            shared.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    for first, *others in shared.values():
        for name in others:
            if not torch.equal(tensors[first], tensors[name]):
                raise CheckpointError(
                    f"{what} has one tensor for {first} and {name}, and {path.name} two that differ: one of them would be lost",
                    where=str(path),
                    next="take the weights of this very module, or untie the two in its code",
                )


# --- finding the mapping ----------------------------------------------------------------------------------------------


def _candidates(value: Any, path: tuple[str, ...]) -> Iterator[_Candidate]:
    """Every mapping of names to tensors, outermost first; of dicts of such mappings also the whole under dotted names."""
    if not isinstance(value, Mapping):
        return
    own = {key: item for key, item in value.items() if isinstance(key, str) and is_tensor(item)}
    if own:
        yield _Candidate(path, own)
    parts = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Mapping)}
    inside = {key: {n: t for n, t in item.items() if isinstance(n, str) and is_tensor(t)} for key, item in parts.items()}
    if parts and not own and all(inside.values()):
        yield _Candidate(path, {f"{key}.{name}": tensor for key, item in inside.items() for name, tensor in item.items()})
    for key, item in parts.items():
        yield from _candidates(item, (*path, key))


def is_tensor(value: Any) -> bool:
    """Whether a value of a file is a tensor: described, or torch's own."""
    return isinstance(value, StoredTensor) or (type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "dtype"))


def _choose(candidates: list[_Candidate], wanted: Mapping[str, Any], path: Path, what: str, entry: str | None) -> _Candidate:
    """The one mapping that fits; of none that fits, the one that shares most names, whose misfit is then shown."""
    candidates = [_stripped(candidate, wanted) for candidate in candidates]
    if entry is not None:
        named = [c for c in candidates if ".".join(c.path) == entry]
        if not named:
            known = ", ".join(sorted({c.shown for c in candidates if c.path}))
            raise UsageError(
                f"{path.name} holds no mapping of tensors called {entry!r}", where=str(path), next=f"known: {known}"
            )
        return named[0]
    if not candidates:
        raise CheckpointError(
            f"{path.name} holds no mapping of names to tensors",
            where=str(path),
            next="give the file with the module's state_dict",
        )
    fitting = [c for c in candidates if _fits(c, wanted)]
    if len(fitting) > 1:
        raise UsageError(
            f"{path.name} holds {len(fitting)} mappings that fit {what}: {', '.join(c.shown for c in fitting)}",
            where=str(path),
            next=f"say which is meant: --entry {fitting[-1].shown}, in Python entry={fitting[-1].shown!r}",
        )
    return fitting[0] if fitting else max(candidates, key=lambda c: (len(wanted.keys() & c.tensors.keys()), len(c.tensors)))


def _stripped(candidate: _Candidate, wanted: Mapping[str, Any]) -> _Candidate:
    """Without the prefixes that wrappers put before all names, unless the module has them too."""
    tensors, prefix = candidate.tensors, ""
    while True:
        found = next((p for p in PREFIXES if all(name.startswith(p) and len(name) > len(p) for name in tensors)), None)
        if found is None or any(name.startswith(found) for name in wanted):
            return _Candidate(candidate.path, tensors, prefix)
        tensors = {name[len(found) :]: tensor for name, tensor in tensors.items()}
        prefix += found


def _fits(candidate: _Candidate, wanted: Mapping[str, Any]) -> bool:
    """Whether names and shapes are the module's; tied names may be left out."""
    names = candidate.tensors.keys()
    return (
        names <= wanted.keys()
        and not _without_tied([n for n in wanted if n not in names], wanted, set(names))
        and all(_shape(t) == _shape(wanted[n]) for n, t in candidate.tensors.items())
    )


def _without_tied(missing: list[str], wanted: Mapping[str, Any], loaded: set[str]) -> list[str]:
    """Missing names without those whose memory another name has filled."""
    filled = {id(wanted[name]) for name in loaded if name in wanted}
    return [name for name in missing if id(wanted.get(name)) not in filled]


def _beside(content: Any, path: tuple[str, ...]) -> list[dict[str, str]]:
    """What lies beside the chosen mapping, at every level on the way to it, and what in it is no tensor."""
    dropped, at = [], content
    for depth in range(len(path) + 1):
        inner = path[depth] if depth < len(path) else None
        for key, item in at.items():
            in_chosen = inner is None and (is_tensor(item) or _holds_tensors(item))
            if key != inner and not in_chosen:
                dropped.append({"name": ".".join((*path[:depth], str(key))), "reason": _reason(str(key), item)})
        at = at[inner] if inner is not None else at
    return dropped


def _reason(name: str, item: Any) -> str:
    for pattern, reason in BESIDE:
        if re.search(rf"(?:^|[_.-])(?:{pattern})", name, re.IGNORECASE):
            return reason
    return "holds tensors that are not this module's" if _holds_tensors(item) else "holds no weights"


def _holds_tensors(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(_holds_tensors(v) for v in item.values())
    return any(map(_holds_tensors, item)) if isinstance(item, (list, tuple)) else is_tensor(item)


# --- whether it fits --------------------------------------------------------------------------------------------------


def _shape(tensor: Any) -> list[int]:
    return [int(n) for n in tensor.shape]


def _require_shapes(chosen: _Candidate, wanted: Mapping[str, Any], path: Path, what: str) -> None:
    import torch

    wrong = [
        f"{name}: the module has {_shape(wanted[name])}, the file {_shape(tensor)}"
        for name, tensor in chosen.tensors.items()
        if name in wanted and not torch.nn.parameter.is_lazy(wanted[name]) and _shape(wanted[name]) != _shape(tensor)
    ]
    if wrong:
        raise CheckpointError(
            f"the weights do not fit {what}: {len(wrong)} of another shape. {'; '.join(wrong[:NEAREST])}{_more(wrong, NEAREST)}",
            where=f"{path}, {chosen.shown}",
            next="build the module with the sizes that it was trained with (classes, width, depth)",
        )


def _misfit(
    missing: Sequence[str], unexpected: Sequence[str], wanted: Mapping[str, Any], chosen: _Candidate, path: Path, what: str
) -> PortingError:
    """The error for weights of another model: the nearest names beside each other."""
    pairs = []
    for name in missing[: 5 * NEAREST]:
        close = difflib.get_close_matches(name, unexpected[:2000], n=1, cutoff=0.3)
        likeness = difflib.SequenceMatcher(None, name, close[0]).ratio() if close else 0.0
        other = f"the file has {close[0]} {_shape(chosen.tensors[close[0]])}" if close else "nothing in the file is like it"
        pairs.append((likeness, f"{name} {_shape(wanted[name])}: {other}"))
    lines = [text for _, text in sorted(pairs, key=lambda pair: -pair[0])[:NEAREST]]
    lines += [
        f"the file has {name} {_shape(chosen.tensors[name])}" for name in unexpected[: NEAREST - len(lines)] if not missing
    ]
    return CheckpointError(
        f"the weights do not fit {what}: {len(missing)} names missing, {len(unexpected)} left over. {'; '.join(lines)}",
        where=f"{path}, {chosen.shown}",
        next="give the module that these weights were trained with; strict=False (--no-strict) leaves out what does not fit, and lists it",
    )


def _fitting(name: str, chosen: _Candidate, target: Any, casts: dict[str, int], path: Path) -> torch.Tensor:
    """The values in the module's dtype, unchanged. raises: CheckpointError for NaN, and where the dtype cannot hold them"""
    import torch

    tensor = tensor_of(chosen.tensors[name])
    where = f"{path}, tensor {chosen.prefix + name!r}"
    if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
        raise CheckpointError(
            f"tensor {name!r} holds NaN",
            where=where,
            next="the checkpoint is damaged, or training diverged; take an earlier one",
        )
    if target is None or target.dtype == tensor.dtype:
        return tensor
    cast = tensor.to(target.dtype)
    if tensor.is_floating_point() != target.is_floating_point() or not torch.equal(cast.to(tensor.dtype), tensor):
        raise CheckpointError(
            f"tensor {name!r} is {_dtype(tensor)}, and the module's {_dtype(target)} cannot hold its values as they are",
            where=where,
            next=f"build the module in {_dtype(tensor)}, for example with .to(torch.{_dtype(tensor)})",
        )
    pair = f"{_dtype(tensor)} -> {_dtype(target)}"
    casts[pair] = casts.get(pair, 0) + 1
    return cast


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _more(items: Sequence[str], shown: int) -> str:
    return f"; and {len(items) - shown} more" if len(items) > shown else ""
