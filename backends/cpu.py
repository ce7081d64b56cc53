"""The CPU backend: onnxruntime's CPU provider and nothing else.

Options after the device's name (`cpu,threads=4,spinning=1`):

    threads=N             threads of one operator; default: the physical cores that this process may use
    spinning=0|1          whether idle threads burn cycles waiting; 0 for a program with a cache, 1 for any other, see `_keeps_cache`
    optimization=all|basic|off   onnxruntime's own graph optimisations; all
    prepack=1|0           1 rearranges weights once, for speed; 0 leaves them in the file, for memory and start-up
"""

from __future__ import annotations

from collections.abc import Mapping

from porting.backends.onnxruntime import (
    OrtSession,
    availability,
    base_options,
    import_runtime,
    open_ort,
    placement_of,
    require_version,
)
from porting.backends.onnxruntime_kernels import missing_kernels
from porting.devices import choice_option, count_option, require_index, require_known_options
from porting.errors import DeviceUnavailable
from porting.host import available_cores
from porting.types import Availability, Program, Unsupported

PROVIDER = "CPUExecutionProvider"
# Programs with a cache only. Work is cut into this many pieces per remaining thread, smaller towards the end, instead of one equal piece
# each: with a neighbour on one of two cores a decode step of SmolLM2 took 21 ms instead of 36; small convolutions lose a tenth by it.
# Source: onnxruntime, onnxruntime_session_options_config_keys.h
DYNAMIC_BLOCK_BASE = "4"
# onnxruntime 1.31's SkipLayerNormalization on the CPU is up to 7 times slower than the Add and LayerNormalization that it is fused from: 230 us
# against 33 for 128 rows of 384. The canonical form, whose shapes are known, is fused more often than the file that it came from.
SLOW_FUSIONS = "SkipLayerNormFusion"
# onnxruntime makes one operator of a MatMul and the DequantizeLinear of its int4 or int8 weight (MatMulNBits). Its own choice of accuracy, 4, also
# rounds the activations to 8 bits, which the graph does not say: results are off by 5e-3 of their size. 1 computes in fp32, as the graph does.
# 2048 x 2048 in int4, 1, 8 and 128 rows, one thread: 0.25, 1.0 and 5.3 ms; with 4 it is 0.11, 0.36 and 4.3, as two operators 3.9, 5.2 and 9.4.
# Nodes that are MatMulNBits in the graph keep their own accuracy_level. Source: onnxruntime, onnxruntime_session_options_config_keys.h
FUSED_ACCURACY = "1"
OPTIONS = ("threads", "spinning", "optimization", "prepack")


class CpuBackend:
    """The processors of this machine."""

    name = "cpu"

    def probe(self) -> Availability:
        """Usable when onnxruntime can be imported."""
        return availability("cpu", PROVIDER)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Nodes without a kernel, see `missing_kernels`."""
        return missing_kernels(import_runtime("cpu"), program, PROVIDER)

    def prepare(self, program: Program, options: Mapping[str, str]) -> OrtSession:
        """raises: UsageError, DeviceUnavailable (onnxruntime missing or too old), InputError, OutOfResources, RuntimeFailed"""
        require_known_options(self.name, options, OPTIONS)
        require_index(self.name, options, 1)
        threads = count_option(self.name, options, "threads", available_cores())
        shared = _keeps_cache(program)
        spinning = choice_option(self.name, {"spinning": "0" if shared else "1", **options}, "spinning", ("0", "1"))
        level = choice_option(self.name, options, "optimization", ("all", "basic", "off"))
        prepack = choice_option(self.name, options, "prepack", ("1", "0"))

        runtime = import_runtime("cpu")
        require_version(runtime, program, "cpu")
        levels = runtime.GraphOptimizationLevel
        settings = base_options(runtime)
        settings.intra_op_num_threads = threads
        settings.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
            "off": levels.ORT_DISABLE_ALL,
        }[level]
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        if shared:
            settings.add_session_config_entry("session.dynamic_block_base", DYNAMIC_BLOCK_BASE)
        settings.add_session_config_entry("optimization.disable_specified_optimizers", SLOW_FUSIONS)
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", FUSED_ACCURACY)
        settings.add_session_config_entry("session.disable_prepacking", "0" if prepack == "1" else "1")
        session = open_ort(runtime, program, settings, [PROVIDER], self.name)
        if session.get_providers() != [PROVIDER]:
            raise DeviceUnavailable(f"asked for {PROVIDER}, got {session.get_providers()}", where="prepare on cpu")
        return OrtSession(runtime, session, program, placement_of(session, "cpu", PROVIDER), "cpu")


def _keeps_cache(program: Program) -> bool:
    """Whether this is a decoder, by its growing state: minutes of steps that each read all weights, on hosts that others use too.

    Its threads sleep when idle. Any other program runs as plain onnxruntime would run it, so that a port is not slower than its file: on a
    quiet machine with 2 threads, models of 0.01 to 10 ms took 1.2 to 2 times as long without spinning. On a machine with more work than
    cores it is the other way around: `spinning=0`.
    """
    return program.state.length is not None
