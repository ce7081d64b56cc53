"""A torch module as a source of a port: a module in memory, or a factory with a weights file.

The module is checked and run in eager mode, exported to an .onnx file in a temporary folder, and kept: it is what the port is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import InputError, UsageError, nearest
from porting.scratch import ScratchFolder
from porting.types import Graph, Limit, TensorSpec

from .torch_calls import CallPlan, array_from_tensor, flat_outputs, tensor_from_array, unique
from .torch_capture import Dynamic
from .torch_checks import (
    require_cpu,
    require_deterministic,
    require_eval,
    run_eager,
)
from .torch_examples import bound_examples, example_to_export, free_sizes
from .torch_export import Exported, export_module
from .torch_factory import module_from_factory, require_torch
from .torch_fastpath import require_same_without_fast_path
from .torch_frames import printing_to_stderr
from .torch_memory import memory_of, require_unchanged
from .torch_weights import Loaded, load_weights

if TYPE_CHECKING:
    import torch

DynamicSizes = Mapping[str, Mapping[int, str] | Sequence["str | None"]]


class TorchOriginal:
    """A torch module in eager mode on the CPU: the untouched model behind a port. Implements porting.types.Original."""

    def __init__(self, function: Any, plan: CallPlan, outputs: Mapping[str, str], what: str) -> None:
        import torch

        self._function, self._plan, self._outputs, self._what = function, plan, outputs, what
        self.description = f"torch {torch.__version__}, {what} in eager mode on the CPU"

    def run(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The outputs by their names in the graph, for inputs by name.

        raises: InputError when a name is missing or unknown, or the module does not take the arrays
        """
        for name in feeds:
            if name not in self._plan.names:
                raise InputError(
                    f"there is no input {name!r}", where="the original", next=nearest(name, list(self._plan.names))
                )
        missing = [name for name in self._plan.names if name not in feeds]
        if missing:
            raise InputError(f"no array for {', '.join(missing)}", where="the original", next="give every input")
        tensors = {name: tensor_from_array(feeds[name], name) for name in self._plan.names}
        result = run_eager(self._function, self._plan, tensors, self._what)
        if list(result) != list(self._outputs):
            raise InputError(
                f"{self._what} returns {', '.join(result)} for these inputs, and {', '.join(self._outputs)} for the example",
                where="the original",
                next="what a module returns may not depend on its inputs",
            )
        return {self._outputs[name]: array_from_tensor(tensor) for name, tensor in result.items()}

    @property
    def module(self) -> Any:
        """What is called. A backend may move it to its device."""
        return self._function

    def outputs(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As `run`, of tensors that lie where the module does. raises: what the module raises"""
        import torch

        with torch.inference_mode(), printing_to_stderr():
            result = dict(flat_outputs(self._plan.call(self._function, dict(tensors)), self._what))
        return {self._outputs[name]: tensor for name, tensor in result.items() if name in self._outputs}

    def close(self) -> None:
        """Nothing is held."""


class TorchSource:
    """A torch program and the .onnx file that was made of it. Implements porting.types.GraphSource.

    made by `open_module`, `open_factory` and `torch_files.open_torch_file`
    """

    cut = None  # what a torch program gives, its own code says

    def __init__(
        self,
        function: Any,
        plan: CallPlan,
        examples: Sequence[Mapping[str, torch.Tensor]],
        outputs: Mapping[str, str],
        exported: Exported,
        folder: ScratchFolder,
        *,
        name: str,
        path: Path,
        format: str,
        files: Sequence[Path],
        facts: Mapping[str, Any],
        accounting: Mapping[str, Any],
        state: Mapping[str, str] | None,
        limits: Mapping[str, Limit] | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        from .checkpoints.onnx_file import OnnxFile

        self.path, self.format, self.name, self.facts = path, format, name, facts
        self._function, self._plan, self._outputs = function, plan, outputs
        self._files, self._accounting, self._folder, self._on_close = tuple(files), accounting, folder, on_close
        self._examples = [{n: array_from_tensor(t) for n, t in example.items()} for example in examples]
        self._limits = dict(limits or {})
        self._file = OnnxFile(exported.path, examples=self._examples, state=dict(state or {}))

    @property
    def files(self) -> Sequence[Path]:
        """The weights file and the source of the factory, or the file itself."""
        return self._files

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Flat inputs, free sizes by name."""
        return self._file.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Flat outputs."""
        return self._file.outputs

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]:
        """The user's examples, or the generated one, by flat input name."""
        return self._examples

    @property
    def onnx_path(self) -> Path:
        """The exporter's file; gone after close()."""
        return self._file.onnx_path

    def graph(self) -> Graph:
        """What the exporter made, with the sizes up to which it holds."""
        return replace(self._file.graph(), limits=self._limits)

    def accounting(self) -> Mapping[str, Any]:
        """{"used", "dropped", "parameters"}: of the weights file where there is one, else of the module's state dict."""
        return self._accounting

    def original(self) -> TorchOriginal:
        """The module itself."""
        return TorchOriginal(self._function, self._plan, self._outputs, self.name)

    def close(self) -> None:
        """Remove the exported file, and leave the user's module as it came. Safe to call twice."""
        self._on_close()
        self._file.close()
        self._folder.cleanup()


def open_module(
    module: torch.nn.Module,
    examples: Sequence[Any],
    dynamic: DynamicSizes | None = None,
    *,
    state: Mapping[str, str] | None = None,
    name: str = "",
    input_specs: Sequence[TensorSpec] = (),
) -> TorchSource:
    """Export a module that is in memory. It is in eval mode until the source is closed, then as it came.

    examples:    one call each: a tuple of positional arguments, or a mapping by argument name
    dynamic:     {"x": {0: "batch"}} or {"x": ["batch", None]}; what differs between examples is free without being named
    state:       input name -> output name of what a session carries from run to run
    input_specs: names, dtypes and shapes, in place of examples or beside them
    raises:      UsageError (no inputs, unknown names), InputError (the module does not take the example, trains, draws random numbers,
                 remembers), UnsupportedModel (what cannot be exported, with the line), DeviceUnavailable (torch is missing)
    """
    require_torch()
    what = name or getattr(module, "original_name", "") or type(module).__name__  # a ScriptModule has its class's name there
    return source_from_module(module, examples, input_specs, dynamic, state, what, Path(what), "torch", [])


def open_factory(
    spec: str,
    weights: Path | None,
    examples: Sequence[Any],
    input_specs: Sequence[TensorSpec] = (),
    dynamic: DynamicSizes | None = None,
    *,
    strict: bool = True,
    allow_pickle: bool = False,
    state: Mapping[str, str] | None = None,
    entry: str | None = None,
) -> TorchSource:
    """Export what a factory returns, loaded with a weights file.

    spec:         "package.module:factory"; the current folder is importable, as with `python -m`
    weights:      a state dict or training checkpoint; None leaves the module as the factory gives it
    strict:       whether every name has to fit
    allow_pickle: run the code in a weights file that is more than tensors
    entry:        which mapping in the weights file is meant, where several fit
    raises:       as `open_module`, and CheckpointError for weights that do not fit
    """
    require_torch()
    module, _, files = module_from_factory(spec)
    what = type(module).__name__
    loaded = None
    if weights is not None:
        require_cpu(module, what)
        loaded = load_weights(module, Path(weights), what, strict=strict, allow_pickle=allow_pickle, entry=entry)
        files = [Path(weights), *files]
    return source_from_module(module, examples, input_specs, dynamic, state, what, Path(spec), "torch", files, loaded)


def source_from_module(
    module: torch.nn.Module,
    examples: Sequence[Any],
    specs: Sequence[TensorSpec],
    dynamic: DynamicSizes | None,
    state: Mapping[str, str] | None,
    what: str,
    path: Path,
    format: str,
    files: Sequence[Path],
    loaded: Loaded | None = None,
) -> TorchSource:
    """Check, run and export a module (or ScriptModule)."""
    require_cpu(module, what)
    require_eval(module, what)
    restore = _set_eval(module)
    folder = ScratchFolder()
    try:
        remembered = memory_of(module)
        plan, bound = bound_examples(module, examples, specs, what)
        outputs = graph_outputs(module, plan, bound, what)
        require_unchanged(remembered, module, what)
        require_deterministic(module, plan, bound[0], what)
        require_same_without_fast_path(module, plan, bound, what)
        free = free_sizes(bound, specs, dynamic)
        require_state(state, plan.names, list(outputs.values()))
        seen = example_to_export(module, plan, bound, free, what)
        exported = export_module(module, plan, seen, list(outputs.values()), free, Path(folder.name), what)
        return TorchSource(
            module,
            plan,
            bound,
            outputs,
            exported,
            folder,
            name=what,
            path=path,
            format=format,
            files=files,
            facts=facts_of(exported, plan, free, loaded),
            accounting=accounting_of(module, exported, loaded),
            state=state,
            on_close=restore,
        )
    except BaseException:
        restore()
        folder.cleanup()
        raise


def _set_eval(module: torch.nn.Module) -> Callable[[], None]:
    """Put every layer in eval mode; call the result to put it back. `require_eval` has seen that it changes no result."""
    moded = [m for m in module.modules() if hasattr(m, "training")]  # a frozen TorchScript module has no mode any more
    trained = [m for m in moded if m.training]
    for one in moded:
        one.training = False

    def restore() -> None:
        while trained:
            trained.pop().training = True

    return restore


def graph_outputs(function: Any, plan: CallPlan, examples: Sequence[Mapping[str, Any]], what: str) -> dict[str, str]:
    """Name of each output of the module -> its name in the graph, where no input may have the same one. Runs every example."""
    results = [run_eager(function, plan, tensors, what) for tensors in examples]
    if any(list(result) != list(results[0]) for result in results):
        shown = "; ".join(", ".join(result) for result in results)
        raise InputError(
            f"{what} returns different outputs for the examples: {shown}",
            where="outputs",
            next="what a module returns may not depend on its inputs",
        )
    taken = list(plan.names)
    names = {}
    for name in results[0]:
        names[name] = unique(name if name not in taken else f"{name}_out", taken)
        taken.append(names[name])
    return names


def require_state(state: Mapping[str, str] | None, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """raises: UsageError for a name of state that is no input or output"""
    for given, output in (state or {}).items():
        if given not in inputs:
            raise UsageError(f"there is no input {given!r}", where="--state", next=nearest(given, list(inputs)))
        if output not in outputs:
            raise UsageError(f"there is no output {output!r}", where="--state", next=nearest(output, list(outputs)))


def facts_of(exported: Exported, plan: CallPlan, free: Dynamic, loaded: Loaded | None) -> dict[str, Any]:
    """For port.json: how the graph was made."""
    import torch

    facts: dict[str, Any] = {"exporter": exported.exporter, "torch": torch.__version__, "opset": exported.opset}
    more = {
        "first_exporter_failed": exported.failed,
        "free_sizes": {name: {str(axis): label for axis, label in axes.items()} for name, axes in free.items()},
        "sizes_tried": exported.tried or [],
        "constants": dict(plan.constants),
        "weights": loaded.facts if loaded else {},
    }
    return facts | {key: value for key, value in more.items() if value}


def accounting_of(module: torch.nn.Module, exported: Exported, loaded: Loaded | None) -> dict[str, Any]:
    """Which tensors the graph uses, which were dropped and why, and how many parameters the module has."""
    memory = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    read = {memory[name] for name in memory.keys() - set(exported.unused)}
    unused = {name for name in exported.unused if memory.get(name) not in read}  # of tied names the program has one
    prefix = loaded.facts.get("prefix", "") if loaded else ""
    names = loaded.used if loaded else list(module.state_dict())
    reason = "the forward pass does not use it"
    used = [n for n in names if n.removeprefix(prefix) not in unused]
    dropped = [{"name": n, "reason": reason} for n in names if n.removeprefix(prefix) in unused]
    return {
        "used": sorted(used),
        "dropped": [*(loaded.dropped if loaded else []), *dropped],
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }
