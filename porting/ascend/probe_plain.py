"""The control that most rules share."""

from __future__ import annotations

from porting.ascend.probe_graphs import ProbeGraph

Pair = tuple[ProbeGraph, ProbeGraph]  # what a rule speaks of, and what it does not
RELU = ProbeGraph("(float[2,3] x) => (y) { y = Relu(x) }")
