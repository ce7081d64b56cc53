"""The base of rules for Ascend, and what judges with it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.checking import blocker, finding_content
from porting.ascend.graph_facts import GraphFacts
from porting.ascend.operators import engine_types, is_registered, registered_opsets
from porting.ascend.rule_matching import GRAPH_KEYS, NODE_KEYS, NUMBER_KEYS, VALUE_KEYS
from porting.ascend.rule_predicates import OF_GRAPHS, OF_NODES
from porting.ascend.rules import CONFIDENCES, EFFECTS, Finding, Rule, judge, rules, several
from porting.ascend.soc import FAMILIES, find_soc, known_cann, release_order
from porting.render_findings import finding_rows
from tests.ascend import rule_effects as written
from tests.ascend.rule_cases import D2, One, ints, made_if
from tests.ascend.rule_table import CASES, RELU, Case, Placed

PASSES = Path(__file__).resolve().parents[2] / "converters" / "passes" / "ascend"
BY_ID = {rule.id: rule for rule in rules()}
OF_FIRST_DTYPE = {r.id: r for r in rules() if r.id.startswith("dtype-") and r.id != "dtype-where"}


def judged(case: Case, **options: Any) -> list[Finding]:
    if isinstance(case, GraphFacts):
        return judge(case, find_soc("Ascend910B3"), **options)
    return judge(case.facts(), find_soc(case.soc), case.cann, precision=case.precision, **options)


def ids(case: Case, **options: Any) -> set[str]:
    return {finding.rule.id for finding in judged(case, **options)}


# --- each rule ----------------------------------------------------------------------------------------------------


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(BY_ID)
    kinds = {(r.effect, key) for r in rules() for key in (r.match.get("graph") or r.match)}
    assert len(kinds) > 25, "rules of every effect, matched in every way"


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_where_it_should_and_is_silent_beside_it(name: str) -> None:
    hit, miss = CASES[name]
    assert name in ids(hit)
    assert name not in ids(miss)
    assert name not in ids(hit, without={name})


@pytest.mark.parametrize("name", OF_FIRST_DTYPE)
def test_rules_of_the_first_dtype(name: str) -> None:
    op = BY_ID[name].match["op"]
    assert name in ids(One(op, ["complex64[2,3]"]))
    assert name not in ids(One(op, [D2])), "float32 is on every page"


@pytest.mark.parametrize("name", CASES)
def test_a_finding_names_its_node_and_what_matched(name: str) -> None:
    (finding,) = [f for f in judged(CASES[name][0]) if f.rule.id == name][:1]
    rule = finding.rule
    assert (finding.node == "") == ("graph" in rule.match)
    for bound in filter(None, (rule.since, rule.until)):
        assert f"CANN {bound}" in finding.detail, "without --cann the verdict says of which releases it speaks"
    assert (
        finding.detail
        or set(rule.match) <= {"op", "domain", "sized_by_values"}
        or rule.match == {"graph": {"precision": ["bf16"]}}
    )


@pytest.mark.parametrize(
    ("attributes", "slow"),
    [
        ({"kernel_shape": [256, 1]}, True),
        ({"kernel_shape": [255, 1]}, False),
        ({"kernel_shape": [16, 16]}, False),
        ({"kernel_shape": [257]}, True),
        ({"kernel_shape": [2, 2], "strides": [64, 1]}, True),
        ({"kernel_shape": [2, 2], "strides": [63, 63]}, False),
    ],
)
def test_windows_that_fall_to_the_ai_cpu(attributes: dict[str, Any], slow: bool) -> None:
    assert ("pool-window" in ids(One("MaxPool", ["float32[1,1,512,512]"], attributes))) == slow


@pytest.mark.parametrize(
    ("attributes", "beyond"),
    [
        ({"pads": [0, 256, 0, 0]}, True),
        ({"dilations": [256, 1]}, True),
        ({"kernel_shape": [1, 256]}, True),
        ({"pads": [255] * 4}, False),
    ],
)
def test_convolutions_beyond_their_page(attributes: dict[str, Any], beyond: bool) -> None:
    assert ("conv-limits" in ids(One("Conv", ["float32[1,1,8,8]", "float32[1,1,2,2]"], attributes))) == beyond


def test_a_mask_that_nobody_reads_is_no_trap() -> None:
    read = One("Dropout", outputs=[D2, "bool[2,3]"])
    (node,) = read.facts().nodes
    mask = replace(node.outputs[1], used=False)
    unread = replace(read, change={"nodes": (replace(node, outputs=(node.outputs[0], mask)),)})
    assert "dropout-mask" in ids(read) and "dropout-mask" not in ids(unread)


# --- the base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_a_record_is_well_formed(rule: Rule) -> None:
    assert rule.effect in EFFECTS and rule.confidence in CONFIDENCES
    assert rule.confidence != "probed on hardware", "nothing was"
    assert rule.says and rule.source and rule.families and set(rule.families) <= set(FAMILIES)
    assert rule.why, "why no pass mends it, or what the pass needs that does"
    assert rule.code is None or rule.effect == "refuses"
    assert all(bound in known_cann() for bound in (rule.since, rule.until) if bound)
    assert not (rule.since and rule.until) or release_order(rule.since) <= release_order(rule.until)
    assert "works" not in rule.says.lower()


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule.rewrite], ids=lambda rule: rule.id)
def test_what_a_pass_could_not_mend_says_what_the_pass_needs(rule: Rule) -> None:
    """In the check, in the table and in the findings; and of what it did mend nothing is excused."""
    left = finding_content(Finding(rule, "n", "Op", ""), "blocks")
    (row,) = finding_rows({"findings": [left]})
    assert left["why"] == rule.why and f"{rule.rewrite} cannot here: {rule.why}" in row
    check = blocker([Finding(rule, "n", "Op", "")])
    assert f"rewritten by {rule.rewrite}, which cannot here: {rule.why}" in check.detail
    mended = finding_content(Finding(rule, "n", "Op", ""), "mended")
    (row,) = finding_rows({"findings": [mended]})
    assert not mended["why"] and f"rewritten by {rule.rewrite}" in row


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_a_match_uses_known_words_only(rule: Rule) -> None:
    match = rule.match
    if "graph" in match:
        assert set(match) == {"graph"} and set(match["graph"]) <= GRAPH_KEYS
        assert set(match["graph"].get("when", ())) <= set(OF_GRAPHS)
        values = [match["graph"][k] for k in ("inputs", "outputs") if isinstance(match["graph"].get(k), dict)]
        numbers = [match["graph"]["external_keys"]] if "external_keys" in match["graph"] else []
    else:
        assert set(match) <= NODE_KEYS and match.get("registered", False) is False
        assert set(match.get("when", ())) <= set(OF_NODES)
        values = [*match.get("inputs", {}).values(), *match.get("outputs", {}).values()]
        values += [match["values"]] if "values" in match else []
        numbers = list(match.get("attributes", {}).values())
    assert all(set(v) <= VALUE_KEYS for v in values)
    numbers += [v["numbers"] for v in values if "numbers" in v]
    assert all(set(n) <= NUMBER_KEYS | {"present", "default"} for n in numbers)


def test_every_function_is_used() -> None:
    used = {name for r in rules() for name in (*r.match.get("when", ()), *r.match.get("graph", {}).get("when", ()))}
    assert used == set(OF_NODES) | set(OF_GRAPHS)


def test_every_rewrite_is_a_pass() -> None:
    named = {rule.rewrite for rule in rules() if rule.rewrite}
    assert named - {path.stem for path in PASSES.glob("*.py")} == set()


# --- the parser's table -------------------------------------------------------------------------------------------


def operators() -> list[tuple[str, int, int]]:
    """(operator, first opset, last opset) of ai.onnx, up to the newest this onnx knows."""
    history: dict[str, list[tuple[int, bool]]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append((schema.since_version, schema.deprecated))
    newest = onnx.defs.onnx_opset_version()
    return [
        (op, min(v for v, _ in versions), min((v - 1 for v, gone in versions if gone), default=newest))
        for op, versions in sorted(history.items())
    ]


def test_every_operator_of_onnx_has_an_answer() -> None:
    asked = 0
    for op, first, last in operators():
        if op == "Constant":  # taken whatever the opset
            continue
        for opset in range(max(first, 8), last + 1):
            refusals = [f.rule for f in judged(One(op, opset=opset)) if "registered" in f.rule.match]
            assert len(refusals) == int(not is_registered(op, "", opset)), (op, opset)
            assert all((r.effect, r.code) == ("refuses", "E13010") for r in refusals)
            assert all(r.id != "no-parser" for r in refusals), f"{op} at {opset}: nothing says what to do"
            asked += 1
    assert asked > 2500


def test_the_parser_looks_for_exactly_the_opset() -> None:
    assert is_registered("Add", "", 18) and not is_registered("Add", "", 19) and not is_registered("Add", "", 7)
    assert is_registered("ReduceL2", "", 17) and not is_registered("ReduceL2", "", 18)
    assert registered_opsets("GridSample") == {11, 16, 17, 18}
    assert registered_opsets("NPUIncreFlashAttention") == {*range(11, 17), 19}
    assert registered_opsets("Constant") is None and registered_opsets("Loop") == frozenset()
    assert is_registered("AscendQuant", "", 22) and is_registered("NPURmsNorm", "npu", 1)
    assert not is_registered("FusedMatMul", "com.microsoft", 1)


def test_types_of_the_engine() -> None:
    assert engine_types("Conv") == ("Conv2D", "Conv3D", "Squeeze", "Unsqueeze")
    assert engine_types("NoSuch") == ()


def test_one_rule_says_why_an_entry_is_missing() -> None:
    assert ids(One("RMSNormalization", opset=23)) >= {"missing-rms-normalization"}
    assert not ids(One("RMSNormalization", opset=23)) & {"opset-too-high", "no-parser"}
    left = ids(One("RMSNormalization", opset=23), without={"missing-rms-normalization"})
    assert "no-parser" in left, "what no rule names is refused all the same"


# --- releases, chips, precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [r for r in rules() if r.since or r.until], ids=lambda rule: rule.id)
def test_rules_of_some_releases(rule: Rule) -> None:
    case = CASES[rule.id][0]
    assert isinstance(case, Placed)
    for cann in known_cann():
        within = (not rule.since or release_order(cann) >= release_order(rule.since)) and (
            not rule.until or release_order(cann) <= release_order(rule.until)
        )
        assert (rule.id in ids(replace(case, cann=cann))) == within, cann
    assert rule.id in ids(replace(case, cann=None)), "no release named: every one counts"


@pytest.mark.parametrize(
    ("soc", "blocked"),
    [
        ("Ascend310P3", True),
        ("Ascend910A", True),
        ("Ascend310", True),
        ("Ascend310B4", False),
        ("Ascend910B3", False),
        ("Ascend910_9392", False),
    ],
)
@pytest.mark.parametrize("op", ["MatMul", "Conv", "Gemm", "LSTM"])
def test_a_matrix_unit_of_half_floats_refuses_float32(op: str, soc: str, blocked: bool) -> None:
    case = One(op, [D2, D2], soc=soc)
    assert ("fp32-cube" in ids(case)) == blocked
    assert "fp32-cube" not in ids(replace(case, precision="fp16"))
    assert "fp32-cube" not in ids(replace(case, inputs=["float16[2,3]", "float16[2,3]"]))


def test_what_is_in_a_branch_is_judged_too() -> None:
    nodes = made_if(deeper=True).nodes
    assert nodes[0].inside == (), "outer before inner"
    assert sorted(n.inside for n in nodes) == [(), ("If",), ("If",), ("If", "If"), ("If", "If")]
    assert ids(made_if(deeper=True), precision="fp32") >= {"if-captures-deeper"}


# --- any graph ----------------------------------------------------------------------------------------------------

DTYPES = ("float32", "float16", "bfloat16", "int64", "bool", "string", "complex64", "int4", "float8_e4m3fn", "float64")
FED = st.builds(lambda d, s: f"{d}[{','.join(s)}]", st.sampled_from(DTYPES), st.lists(st.sampled_from("0123n"), max_size=6))
HELD = st.lists(st.integers(-3, 3), max_size=5).map(lambda numbers: ints(*numbers))
BY_TYPE = {
    "INT": st.integers(-3, 300),
    "FLOAT": st.floats(-2, 2),
    "STRING": st.sampled_from(
        ["nearest", "linear", "cubic", "VALID", "SAME_LOWER", "add", "mul", "wrap", "ij->ji", "not_larger"]
    ),
    "INTS": st.lists(st.integers(-3, 300), max_size=5),
    "STRINGS": st.lists(st.sampled_from(["Tanh", "Relu", "sigmoid"]), max_size=4),
}
OPS = sorted({op for r in rules() for op in several(r.match.get("op", ()))} | {"Mine"})


def attributes_of(op: str) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the attributes that some version of an operator has, with values of their types."""
    kinds = {
        name: a.type.name for s in onnx.defs.get_all_schemas_with_history() if s.name == op for name, a in s.attributes.items()
    }
    return st.fixed_dictionaries({}, optional={name: BY_TYPE[kind] for name, kind in kinds.items() if kind in BY_TYPE})


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    op=st.sampled_from(OPS),
    inputs=st.lists(st.one_of(FED, HELD, st.none()), max_size=5),
    outputs=st.lists(FED, min_size=1, max_size=3),
    opset=st.integers(1, 27),
    domain=st.sampled_from(["", "", "com.microsoft", "mine"]),
    soc=st.sampled_from(["Ascend310P3", "Ascend310B4", "Ascend910B3", "Ascend950PR_9599"]),
    cann=st.sampled_from([None, "8.0.RC3", "9.2.0"]),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_no_graph_is_too_odd_to_be_judged(data: st.DataObject, op: str, **fields: Any) -> None:
    found = judged(One(op, attributes=data.draw(attributes_of(op)), **fields))
    assert all(isinstance(f.detail, str) and f.rule in rules() for f in found)


def test_a_large_graph_is_judged_in_a_second() -> None:
    ops = [("MatMul", [D2, D2]), ("Add", [D2, D2]), ("Gather", [D2, "int64[2]"]), ("Relu", [D2]), ("Mine", [D2])]
    nodes = [n for op, inputs in ops for n in One(op, inputs, opset=24).facts().nodes]
    facts = replace(RELU.facts(), nodes=tuple(nodes * 600))
    judge(RELU.facts(), find_soc("Ascend910B3"))  # reads the base
    start = time.perf_counter()
    assert len(judge(facts, find_soc("Ascend910B3"))) > 3000
    assert time.perf_counter() - start < 1


def test_no_rule_changes_unseen() -> None:
    """Effect, releases, code and chips, against a second writing of them."""
    effects = {rule: effect for effect, names in written.EFFECTS.items() for rule in names.split()}
    assert {rule.id: rule.effect for rule in rules()} == effects
    assert {r.id: (r.since, r.until) for r in rules() if r.since or r.until} == written.RELEASES
    assert {r.id: r.code for r in rules() if r.code} == written.CODES
    assert {r.id: " ".join(r.families) for r in rules() if r.families != FAMILIES} == written.FAMILIES
