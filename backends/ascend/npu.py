"""Route `npu` of the Ascend backend: the port's upstream torch module itself, on Huawei's torch_npu. Never run on hardware.

A port holds the model as ONNX; this route runs the model that it was made from, to tell a fault of the conversion from one of the device:

    causal-lm, encoder    transformers' own class, every parameter set from the checkpoint as our readers decode it
    graph                 the torch module itself, from the factory that made it; without state

What torch_npu does unasked (measured with torch-npu 2.13.0 over a simulated CANN), and what is done about it:

    convolutions in HF32, 11 bits of a significand, unless told otherwise      conv.allow_hf32 and matmul.allow_hf32 are set to False
    an operator without a kernel runs on the CPU, with a warning               TORCH_NPU_FALLBACK_CPU_DISABLE=1: it is an error
    .double() gives float32, with a warning                                    a module with float64 in it is refused
    float32 is multiplied in fp16 where the matrix unit knows nothing else     precision=fp32 is refused on such a SoC
    .half() narrows buffers too, such as the frequencies of rotary positions   parameters are cast, buffers are not
    errors come with a later call, from a queue                                TASK_QUEUE_ENABLE=0, and every run waits for its own
    `import torch` loads torch_npu, and fails without CANN                     TORCH_DEVICE_BACKEND_AUTOLOAD=0 in the worker

Options after the device's name (`ascend:0,route=npu,precision=fp32,source=PATH`):

    source=PATH                  the checkpoint that the port was made from: its files are hashed and compared with port.json
    model=PACKAGE.MODULE:FACTORY in its place, of a torch module, with weights=FILE where it was made with them; hashed and compared too
    precision=fp32|fp16|bf16     of the parameters and of what is computed; no default
"""

from __future__ import annotations

from collections.abc import Mapping

from porting.backends.ascend.npu_setup import installation, open_device
from porting.backends.ascend.npu_source import GRAPH, LANGUAGE_MODEL, kind_of, source_of
from porting.devices import Device, require_known_options
from porting.errors import DeviceUnavailable, UsageError, nearest
from porting.types import Availability, BackendSession, Program
from porting.worker import WorkerSession, in_worker

ROUTE = "npu"
OPTIONS = ("route", "source", "model", "weights", "precision")
PRECISIONS = ("fp32", "fp16", "bf16")
WHERE = "--device ascend,route=npu"


def probe() -> Availability:
    """Whether torch, torch_npu of its version and a toolkit are there. Never raises; loads nothing of the vendor's."""
    return installation()


def prepare(program: Program, options: Mapping[str, str]) -> BackendSession:
    """The upstream module of a port on an NPU, in a worker process: at once in the one that this is, else in a new one.

    options: see the top of this file, and "index"
    raises:  UsageError, PortError (no port, another source), DeviceUnavailable, RuntimeFailed, OutOfResources, CheckpointError
    """
    require_known_options("ascend", options, OPTIONS)
    precision = _precision(options)
    kind = kind_of(program)
    needed, other = ("model", "source") if kind == GRAPH else ("source", "model")
    if needed not in options or other in options or (kind != GRAPH and "weights" in options):
        value = "PACKAGE.MODULE:FACTORY" if kind == GRAPH else "CHECKPOINT"
        raise UsageError(
            f"route=npu runs the model that the port was made from: a port of kind {kind} needs {needed}=, and no {other}=",
            where=WHERE,
            next=f"{WHERE},precision={precision},{needed}={value}",
        )
    available = probe()
    if not available.usable:
        raise DeviceUnavailable(available.reason, where="ascend, route=npu", next=available.next)
    if not in_worker():
        rest = {key: value for key, value in options.items() if key != "index"}
        return WorkerSession(Device("ascend", int(options.get("index", "0")), {**rest, "route": ROUTE}), program)
    return prepare_here(program, options)


def prepare_here(program: Program, options: Mapping[str, str]) -> BackendSession:
    """As `prepare`, in this process, whose environment becomes the session's. raises: as `prepare`"""
    from porting.backends.ascend.npu_encoder import open_encoder
    from porting.backends.ascend.npu_graph import open_module
    from porting.backends.ascend.npu_language import open_language_model

    if kind_of(program) == GRAPH:
        device = open_device(options, _precision(options))  # first: whatever imports torch
        return open_module(program, options["model"], options.get("weights"), device)
    found = source_of(program, options["source"])
    device = open_device(options, _precision(options))
    if found.kind == LANGUAGE_MODEL:
        return open_language_model(program, found, device)
    return open_encoder(program, found, device)


def _precision(options: Mapping[str, str]) -> str:
    """raises: UsageError"""
    if "precision" not in options:
        raise UsageError(
            "route=npu needs precision=...: the checkpoint does not say what is to be computed in",
            where=WHERE,
            next=f"one of {', '.join(PRECISIONS)}, as in {WHERE},precision=fp32",
        )
    chosen = options["precision"]
    if chosen not in PRECISIONS:
        raise UsageError(f"route=npu has no precision={chosen}", where=WHERE, next=nearest(chosen, PRECISIONS))
    return chosen
