"""Route `cann` of the Ascend backend: Huawei's onnxruntime-cann wheel, with its silent ways to a wrong result closed. Never run on hardware.

Everything below was measured with onnxruntime-cann 1.24.4 over a simulated CANN, where not said otherwise:

    what the provider does                                              what is done about it
    reuses an .om of the current folder under a key without the graph   a folder of its own per graph, see cann_provider_cache.py
    ... even with dump_om_model=0                                       (that option stops the writing only)
    gives GE the options of the first session that compiles             one session in a process, which is a worker's
    leaves precision_mode to CANN, which makes fp16 of fp32             `precision` has no default
    takes any word as precision_mode                                    only those of porting/ascend/precision.py are passed
    enable_cann_subgraph=1 leaves to the CPU what it does not know      0, and every node is looked up in the placement
    without its libraries onnxruntime goes on with the CPU              the session's providers are compared, Python's fallback is off
    keeps weights outside the file as relative paths                    weights are put into the graph, which ends at 2 GiB
    names the shape of a scalar input without a colon                   scalars go in as one number, see cann_provider_graph.py
    compiles every shape anew, and keeps all                            shapes are those of the gears, or fixed
    If, Loop, Scan: compiled without their branches, and not loaded     refused, where sizes do not settle the branch
    other domains, operators and opsets that CANN's parser lacks        refused before the run (the parser's table: documented)

Options after the device's name (`ascend:0,route=cann,precision=fp32`):

    precision=fp32|fp16|bf16|mixed_fp16   what CANN computes in; no default
    memory_limit=BYTES                    of device memory that onnxruntime's arena may take. CANN's weights and workspace are outside of it
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from porting.backends.ascend.cann_provider_cache import CompiledModels
from porting.backends.ascend.cann_provider_graph import Prepared, prepared, refused_nodes
from porting.backends.ascend.cann_provider_session import CannSession, explaining
from porting.backends.ascend.cann_provider_setup import (
    EXTRA,
    PROVIDER,
    SOURCE,
    device_index,
    installation,
    soc_name,
    toolkit_identity,
)
from porting.backends.onnxruntime import base_options, import_runtime, open_ort, placement_of
from porting.devices import Device, count_option, require_known_options
from porting.errors import DeviceUnavailable, RuntimeFailed, UsageError, nearest
from porting.types import Availability, BackendSession, Program, Unsupported
from porting.worker import WorkerSession, in_worker

ROUTE = "cann"
NO_PROVIDER = "create CANN ExecutionProvider fail"  # of onnxruntime; why not, it prints to stderr
OPTIONS = ("route", "precision", "memory_limit")
PRECISIONS = {"fp32": ("fp32", False), "fp16": ("fp16", False), "bf16": ("bf16", False), "mixed_fp16": ("fp16", True)}

# what this process has told GE, which listens once: None before the first session
_told: Mapping[str, str] | None = None
_open = False


def probe() -> Availability:
    """Whether the wheel and the toolkit are there. Never raises; loads no library of the vendor's."""
    return installation()


def unsupported(program: Program) -> list[Unsupported]:
    """Nodes that the provider or CANN's parser cannot take. With enable_cann_subgraph=0 the provider itself looks at none of them."""
    return refused_nodes(program)


def prepare(program: Program, options: Mapping[str, str]) -> BackendSession:
    """A session of the provider, in a worker process: at once in the one that this is, else in a new one.

    options: see the top of this file, and "index"
    raises:  UsageError, InputError (a graph that cannot be handed over), DeviceUnavailable, RuntimeFailed, OutOfResources
    """
    require_known_options("ascend", options, OPTIONS)
    _precision(options)
    available = probe()
    if not available.usable:
        raise DeviceUnavailable(available.reason, where="ascend, route=cann", next=available.next)
    index = int(options.get("index", "0"))
    if not in_worker():
        rest = {key: value for key, value in options.items() if key != "index"}
        return WorkerSession(Device("ascend", index, {**rest, "route": ROUTE}), program)
    return prepare_here(program, options)


def prepare_here(program: Program, options: Mapping[str, str]) -> CannSession:
    """As `prepare`, in this process, whose current folder becomes the session's.

    raises: as `prepare`; UsageError for a second session while one is open, or with other options than the first
    """
    index = device_index(options)
    device = f"ascend:{index}"
    graph = prepared(program)
    # no release of onnxruntime is asked for (Program.min_runtime): it hands the graph on, and computes no node of it
    runtime = import_runtime(EXTRA)
    soc = soc_name()
    told = {"precision_mode": _precision_mode(graph, options, soc)}
    _require_first(told)
    provider_options = {
        **told,
        "device_id": str(index),
        "enable_cann_graph": "1",
        "enable_cann_subgraph": "0",
        "dump_graphs": "0",
        "dump_om_model": "1",
        "arena_extend_strategy": "kSameAsRequested",
    }
    if "memory_limit" in options:
        provider_options["npu_mem_limit"] = str(count_option("ascend", options, "memory_limit", 8 << 30))
    with ExitStack() as undo:
        identity = {"soc": soc, "onnxruntime": runtime.__version__, **told, **toolkit_identity()}
        models = undo.enter_context(CompiledModels(graph.model, identity))
        session = _opened(runtime, graph, provider_options, device)
        placement = checked_placement(session, graph, device)
        global _told, _open
        _told, _open = told, True
        undo.pop_all()
    return CannSession(runtime, session, graph, placement, device, index, models, soc, _closed)


def _precision(options: Mapping[str, str]) -> str:
    """raises: UsageError"""
    known = tuple(PRECISIONS)
    if "precision" not in options:
        raise UsageError(
            "route=cann needs precision=...: left alone, CANN makes fp16 of fp32 without a word",
            where="--device ascend,route=cann",
            next=f"one of {', '.join(known)}, as in --device ascend,route=cann,precision=fp32",
        )
    chosen = options["precision"]
    if chosen not in PRECISIONS:
        raise UsageError(
            f"route=cann has no precision={chosen}", where="--device ascend,route=cann", next=nearest(chosen, known)
        )
    return chosen


def _precision_mode(graph: Prepared, options: Mapping[str, str], soc: str) -> str:
    """The provider's word for the precision asked for. raises: RuntimeFailed where the SoC does not compute in it"""
    from porting.ascend.checking import stored_precision
    from porting.ascend.precision import OLDER, mode_for
    from porting.ascend.soc import find_soc

    precision, mixed = PRECISIONS[_precision(options)]
    mode = mode_for(find_soc(soc), precision, mixed, stored_precision(graph.facts))
    if mode.blocker:
        raise RuntimeFailed(
            f"precision={options['precision']} on {soc}: {mode.blocker}", where="ascend, route=cann", next=mode.next
        )
    return OLDER[mode.value]


def _require_first(told: Mapping[str, str]) -> None:
    """raises: UsageError"""
    where = "a second session of route=cann in one process"
    if _told is not None and told != _told:
        raise UsageError(
            f"CANN was told {_shown(_told)} in this process and would not listen to {_shown(told)}",
            where=where,
            next="a process of its own for each precision: --device ascend,route=cann makes one",
        )
    if _open:
        raise UsageError("the session before has the current folder, and would lose it", where=where, next="close it first")


def _shown(told: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in told.items())


def _closed() -> None:
    global _open
    _open = False


def _opened(runtime: Any, graph: Prepared, provider_options: Mapping[str, str], device: str) -> Any:
    """An InferenceSession on the provider. raises: DeviceUnavailable, InputError, OutOfResources, RuntimeFailed"""
    settings = base_options(runtime)
    # what they fuse before the graph is split is com.microsoft's, which CANN does not know; and the node names would be others than the port's
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(PROVIDER, dict(provider_options))]
    try:
        with explaining(device):
            session = open_ort(runtime, replace(graph.program, model=graph.model), settings, providers, device)
    except RuntimeFailed as error:
        if NO_PROVIDER not in error.what:
            raise
        raise DeviceUnavailable(
            f"the provider does not load on {device}: {error.what}", where=error.where, next=SOURCE
        ) from error
    if PROVIDER not in session.get_providers():
        raise DeviceUnavailable(
            f"onnxruntime could not start {PROVIDER} and would have run on {', '.join(session.get_providers())}",
            where=f"prepare on {device}",
            next=SOURCE,
        )
    kept = session.get_provider_options()[PROVIDER]
    differs = {key: kept.get(key) for key, value in provider_options.items() if kept.get(key) != value}
    if differs:
        raise DeviceUnavailable(
            f"the provider did not keep its options: {differs}, asked {dict(provider_options)}", where=f"prepare on {device}"
        )
    return session


def checked_placement(session: Any, graph: Prepared, device: str) -> dict[str, str]:
    """Node -> device, every node of the graph. raises: RuntimeFailed where one is elsewhere, or nowhere"""
    placement = placement_of(session, device, PROVIDER)
    elsewhere = [f"{name!r} on {where}" for name, where in placement.items() if where != device]
    elsewhere += [f"{name!r} nowhere" for name in graph.nodes if name not in placement]
    if elsewhere:
        raise RuntimeFailed(
            f"{len(elsewhere)} nodes would not run on {device}: {elsewhere[0]} first", where=f"prepare on {device}"
        )
    return placement
