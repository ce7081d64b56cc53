"""From what the user names to what a conversion starts from: a checkpoint, or a model that comes as a graph.

a folder, a .gguf file              Checkpoint    built by the file of its architecture
an .onnx file                       GraphSource
a torch module, `package.module:factory` with its weights file, a .pt2, TorchScript   GraphSource, through an exporter
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from porting.cuts import cut_of
from porting.errors import InputError, UsageError, nearest
from porting.types import Checkpoint, GraphSource, TensorSpec, is_checkpoint, is_graph

ONNX_SUFFIXES = (".onnx",)
_SPEC = re.compile(r"\s*([^:\s]+)\s*:\s*([a-z0-9_]+)\s*\[(.*)\]\s*")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def open_source(
    source: Any = None,
    *,
    model: str | None = None,
    weights_file: str | Path | None = None,
    entry: str | None = None,
    strict: bool = True,
    allow_pickle: bool = False,
    inputs: Sequence[str | Path] = (),
    input_specs: Sequence[TensorSpec] = (),
    example_inputs: Any = None,
    dynamic: Mapping[str, Any] | None = None,
    state: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    fix: Mapping[str, Any] | None = None,
) -> Checkpoint | GraphSource:
    """Open what is to be converted. Nothing is converted or exported yet.

    source:         a path (folder, .gguf, .onnx, .pt2, TorchScript), a torch module, or what this function gave before
    model:          `package.module:factory` in place of `source`: called without arguments, it gives a torch module
    weights_file:   what `model` is loaded with: a state_dict, or a training checkpoint that holds one
    entry:          which mapping of a training checkpoint is meant, where several fit ("ema")
    strict:         whether every name in `weights_file` has to fit
    allow_pickle:   run the code that is in a .pt2, a TorchScript file or a pickle
    inputs:         .npz files, one example each, arrays by input name
    input_specs:    names, dtypes and shapes of a torch model's inputs; named dimensions are free
    example_inputs: of a torch module: a tuple of tensors, or a mapping by name; a list of those for several
    dynamic:        input name -> {axis: name} of the dimensions that are free
    state:          input name -> output name of what the model carries from run to run
    outputs:        of an .onnx file: values of the graph (or nodes with one output) that become its only outputs, in this order
    fix:            of an .onnx file: input name -> the number that it always is
    raises:         UsageError for options that do not belong to this kind of source, InputError, CheckpointError, UnsupportedModel
    """
    if (source is None) == (model is None):
        raise UsageError("name one model: SOURCE, or --model package.module:factory", where="source")
    if dynamic is not None and not isinstance(dynamic, Mapping):
        raise UsageError(
            f"free dimensions come as a mapping, got a {type(dynamic).__name__}",
            where="dynamic",
            next='dynamic={"x": {0: "batch"}}',
        )
    if entry is not None and weights_file is None:
        raise UsageError(f"an entry of what? {entry!r}", where="--entry", next="it goes with --model and --weights FILE")
    if model is None and weights_file is not None:
        raise UsageError(
            f"a weights file belongs to --model: {weights_file}",
            where="--weights",
            next="--model package.module:factory --weights FILE; without --model, --weights takes 'link', 'copy'",
        )
    if outputs or fix:
        return _open_cut(source, outputs, fix, state, example_inputs=example_inputs, dynamic=dynamic, input_specs=input_specs)
    if model is not None:
        from porting.converters.torch_module import open_factory

        return open_factory(
            model,
            None if weights_file is None else Path(weights_file),
            _examples(example_inputs, inputs),
            tuple(input_specs),
            dynamic,
            strict=strict,
            allow_pickle=allow_pickle,
            state=state,
            entry=entry,
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module):
        from porting.converters.torch_module import open_module

        return open_module(source, _examples(example_inputs, inputs), dynamic, state=state, input_specs=tuple(input_specs))
    if isinstance(source, (str, Path)):
        return _open_path(source, allow_pickle, inputs, tuple(input_specs), example_inputs, dynamic, state)
    if is_graph(source) or is_checkpoint(source):
        return source
    raise UsageError(
        f"a {type(source).__name__} is no model", where="source", next="give a path or a torch module; a factory by --model"
    )


def _open_path(
    source: str | Path,
    allow_pickle: bool,
    inputs: Sequence[str | Path],
    input_specs: tuple[TensorSpec, ...],
    example_inputs: Any,
    dynamic: Mapping[str, Any] | None,
    state: Mapping[str, str] | None,
) -> Checkpoint | GraphSource:
    from porting.converters.checkpoints.open import open_checkpoint

    path = Path(source)
    if _is_onnx(source):
        return _open_cut(source, (), None, state, example_inputs=example_inputs, dynamic=dynamic, input_specs=input_specs)
    if str(source) and begins_like_torch(path):
        from porting.converters.torch_files import open_torch_file, torch_file_kind

        if torch_file_kind(path) not in (None, "state_dict"):  # weights alone: open_checkpoint says what else is needed
            return open_torch_file(
                path,
                _examples(example_inputs, inputs),
                input_specs,
                dynamic,
                allow_pickle=allow_pickle,
                state=state,
            )
    checkpoint = open_checkpoint(source)
    _require_unused(
        "a checkpoint folder or GGUF file has its inputs and state from its architecture",
        example_inputs=example_inputs,
        input_specs=input_specs,
        dynamic=dynamic,
        state=state,
    )
    return checkpoint


def _open_cut(
    source: Any, outputs: Sequence[str], fix: Mapping[str, Any] | None, state: Mapping[str, str] | None, **torch_only: Any
) -> GraphSource:
    """An .onnx file, or the part of it that is asked for. raises: UsageError for another source, and what OnnxFile raises"""
    cut = cut_of(outputs, fix)
    if not _is_onnx(source):
        raise UsageError(
            "only an .onnx file is cut, by its path",
            where="outputs" if cut.outputs else "fix",
            next="of a torch model: return what is wanted, and set constants, in the module's own code",
        )
    from porting.converters.checkpoints.onnx_file import OnnxFile

    _require_unused("an .onnx file has its own inputs, with their names and shapes", **torch_only)
    return OnnxFile(source, state=state, outputs=cut.outputs, fix=cut.fixed)


def _is_onnx(source: Any) -> bool:
    """Whether a path names an .onnx file, which need not be there."""
    return (
        isinstance(source, (str, Path))
        and bool(str(source))
        and Path(source).suffix.lower() in ONNX_SUFFIXES
        and not Path(source).is_dir()
    )


def begins_like_torch(path: Path) -> bool:
    """Whether a file begins as a zip archive or a pickle does: what torch.save, torch.jit.save and torch.export.save write."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
        return start == b"PK" or start[:1] == b"\x80"
    except (OSError, ValueError):  # no such file, a folder, no path at all: open_checkpoint says what it is
        return False


@contextmanager
def opened(source: Any = None, **options: Any) -> Iterator[Checkpoint | GraphSource]:
    """`open_source`, closed at the end unless the caller had opened it."""
    found = open_source(source, **options)
    try:
        yield found
    finally:
        if found is not source and is_graph(found):
            found.close()


def _require_unused(why: str, **given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} cannot be given here: {why}", where=name)


def _examples(example_inputs: Any, inputs: Sequence[str | Path]) -> list[Any]:
    """Examples as a list: those given, and one for each .npz."""
    from porting.npz import read_npz

    given = [] if example_inputs is None else list(example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    return [*given, *(read_npz(path) for path in inputs)]


def parse_input(text: str) -> TensorSpec:
    """`"image: float32[batch, 3, 224, 224]"` as a spec: the form in which specs are printed.

    raises: UsageError
    """
    from porting.dtypes import dtype_of

    match = _SPEC.fullmatch(text)
    if match is None:
        raise UsageError(f"not an input: {text!r}", where="--input", next='write it as "name: float32[batch, 3, 224, 224]"')
    name, dtype, inside = match.groups()
    try:
        dtype_of(dtype)
    except TypeError as error:
        raise UsageError(f"no dtype {dtype!r}", where=f"--input {text}", next=nearest(dtype, _DTYPES)) from error
    shape: list[int | str | None] = []
    for part in [p.strip() for p in inside.split(",")] if inside.strip() else []:
        if part.isascii() and part.isdecimal() and int(part) > 0:
            shape.append(int(part))
        elif _SYMBOL.fullmatch(part):
            shape.append(part)
        else:
            raise UsageError(
                f"not a dimension: {part!r}", where=f"--input {text}", next="a number from 1 up, or a name for a free one"
            )
    return TensorSpec(name, dtype, tuple(shape))


_DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def parse_state(pairs: Sequence[str]) -> dict[str, str]:
    """`["h=hn", "c=cn"]` -> {"h": "hn", "c": "cn"}. raises: UsageError"""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, output = pair.partition("=")
        if not (name and equals and output) or name in found:
            raise UsageError(
                f"not a pair of state, or one twice: {pair!r}", where="--state", next="write --state INPUT=OUTPUT, once each"
            )
        found[name] = output
    return found


def require_checkpoint(source: Checkpoint | GraphSource, what: str) -> Checkpoint:
    """raises: InputError when the source is a graph"""
    if is_graph(source):
        raise InputError(f"{what} takes a checkpoint with an architecture, and this is a graph", where=source.path.name)
    return source
