"""Small programs for the Ascend backend on the simulated CANN, and what is left on its devices afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from porting.backends.ascend_sim_models import compiled
from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine
from porting.backends.onnx_program import program_from_onnx
from porting.types import Program, StatePair, StateSpec

SIM = "ascend-sim,precision=origin"
TOTAL = StateSpec((StatePair("h", "hn", None),))


def program(graph: str, **options: Any) -> Program:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    return program_from_onnx(model.SerializeToString(), **options)


def total() -> Program:
    """The negative of the sum of all that was fed."""
    graph = "(float[2,4] x, float[2,4] h) => (float[2,4] y, float[2,4] hn) { hn = Add(x, h) y = Neg(hn) }"
    return program(graph, state=TOTAL)


def difference() -> Program:
    """Two inputs of one shape, which must not change places."""
    return program("(float[N,4] x, float[N,4] y) => (float[N,4] d) { d = Sub(x, y) }")


def cache() -> Program:
    """A static cache of 8 positions: what is fed goes where the length says, and the sum over all positions comes out."""
    graph = (
        "(float[1,1,3] x, int64[1] length, float[1,8,3] past) => (float[1,3] sums, float[1,8,3] next) {"
        " positions = Constant<value=int64[8] {0,1,2,3,4,5,6,7}>() at = Equal(positions, length)"
        " axes = Constant<value=int64[2] {0,2}>() place = Unsqueeze(at, axes) next = Where(place, x, past)"
        " sums = ReduceSum<keepdims=0>(next, one) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    spec = StateSpec((StatePair("past", "next", 1),), length="length", advance=("x", 1))
    return program_from_onnx(model.SerializeToString(), state=spec)


def om_of(made: Program, precision: str = "origin", gears: str | None = None, soc: str = "Ascend910B3") -> Path:
    """The program as the simulated compiler makes a model of it."""
    machine = Machine(soc)
    return compiled(made, None, machine, simulated_environment(machine), precision, gears)


def left_behind(report: Path) -> dict[str, Any]:
    """The simulator's report of a session that is closed: leaks, and bytes that are still taken."""
    found = json.loads(report.read_text())
    return {"leaks": found["leaks"], "bytes": sum(device["live_bytes"] for device in found["devices"])}


NOTHING = {"leaks": [], "bytes": 0}
X = np.arange(8, dtype=np.float32).reshape(2, 4)
