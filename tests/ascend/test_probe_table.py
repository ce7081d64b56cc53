"""The graphs that a probe compiles: one that each rule speaks of, a control beside it, and what ONNX says of both."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from porting.ascend import facts_file
from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_rules import numbers_say
from porting.ascend.probe_table import NOT_PROBED, pair_of, unlisted
from porting.ascend.probe_traps import TRAPS
from porting.ascend.rules import Rule, rules
from porting.ascend.soc import find_soc

PROBED = [rule for rule in rules() if not isinstance(pair_of(rule), str)]
# ONNX's own checker refuses what these are about
NO_ONNX = {
    "input-unranked", "missing-layer-normalization", "missing-training", "opset-without-entry", "no-parser", "fp8", "fp8-constant",
    "fp8-unknown", "unmapped-dtype", "int4-old", "int4", "bf16-prototype", "cast-undefined", "resize-few-inputs", "average-pool-dilations",
    "random-normal-dtype",
}  # fmt: skip


def test_every_rule_is_probed_or_says_why_not() -> None:
    assert not unlisted()
    assert set(NOT_PROBED) <= {rule.id for rule in rules()} and all(NOT_PROBED.values())
    assert len(PROBED) > 0.95 * len(rules())


@pytest.mark.parametrize("rule", PROBED, ids=lambda rule: rule.id)
def test_graphs_and_controls_are_onnx(rule: Rule) -> None:
    """That a rule speaks of the one and not of the other is held by test_rules.py."""
    hit, control = pair_of(rule)
    if rule.id not in NO_ONNX:
        onnx.checker.check_model(hit.model, full_check=True)
    onnx.checker.check_model(control.model, full_check=True)


@pytest.mark.parametrize("rule", PROBED, ids=lambda rule: rule.id)
def test_what_should_come_out_is_known(rule: Rule) -> None:
    """Of the control always; of the graph where it may be taken."""
    hit, control = pair_of(rule)
    assert numbers_say(control, control.computed())[0] == "none"
    if rule.effect != "refuses" and not hit.random and rule.id not in ("complex",):
        assert numbers_say(hit, hit.computed())[0] == "none"


def test_other_numbers_are_told_from_roundings() -> None:
    graph = ProbeGraph("(float[2,3] x) => (y) { y = Neg(x) }")
    (right,) = graph.computed()
    assert numbers_say(graph, [right.astype(np.float16).astype(np.float32)])[0] == "none"
    assert numbers_say(graph, [-right])[0] == "wrong"
    assert numbers_say(graph, [right * 1.03])[0] == "", "neither"
    assert numbers_say(graph, [right.reshape(3, 2)]) == ("wrong", "shapes [(3, 2)], and ONNX says [(2, 3)]")
    assert numbers_say(graph, [])[0] == "wrong"
    assert numbers_say(graph, [np.where(right > 0, np.nan, right)])[0] == "wrong"


def test_numbers_are_the_same_in_every_run() -> None:
    first, second = (ProbeGraph("(float[2,3] x, int64[4] i, bool[2] b) => (y) { y = Neg(x) }").fed() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["i"].dtype == np.int64 and set(first["i"]) <= {0, 1} and first["b"].dtype == bool


def test_traps_are_told_apart() -> None:
    assert tuple(trap.id for trap in TRAPS) == facts_file.TRAPS and len(set(facts_file.TRAPS)) == len(TRAPS)
    by_id = {trap.id: trap for trap in TRAPS}
    overflow = by_id["overflow-fp16"]
    assert overflow.read([np.array([np.inf, -np.inf, 2])]) == "infinity" == overflow.expected(find_soc("Ascend910B3"))
    assert overflow.read([np.array([65504, -65504, 2])]) == "largest number" == overflow.expected(find_soc("Ascend310P3"))
    assert overflow.read([np.array([1.0, 2, 3])]) == "otherwise"
    assert by_id["hf32-conv"].expected(find_soc("Ascend310P3")) is None
    width = by_id["sum-matmul-fp16"].read
    assert [width([np.array(sums)]) for sums in ([1, 1], [2, 1.0625], [2, 1], [1.5, 1])] == [
        "fp16, term by term",
        "float32 or wider",
        "fp16 between blocks",
        "narrower than float32",
    ]


def test_sums_that_tell_the_accumulator() -> None:
    """By numpy's own fp16: added one by one it loses every step."""
    graph = next(trap.graph for trap in TRAPS if trap.id == "sum-matmul-fp16")
    x = graph.fed()["x"].astype(np.float16)
    total = np.zeros(2, np.float16)
    for column in x.T:
        total = (total + column).astype(np.float16)
    assert total.tolist() == [1, 1]
    assert x.astype(np.float64).sum(1).tolist() == [1 + 4095 * 2.0**-12, 1 + 255 * 2.0**-12]
