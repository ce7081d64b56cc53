"""porting probe on the simulated NPU: it reports what the simulator models, and only that; what breaks is told, and ends nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from porting.ascend import probe_place, probe_rules
from porting.ascend.facts_file import Fact, Facts, file_of
from porting.ascend.facts_reading import read_facts
from porting.ascend.probe import probe, summary
from porting.ascend.probe_place import Bench, Seen, place_of
from porting.ascend.probe_rules import RuleTest, fact_of
from porting.ascend.probe_traps import TRAPS
from porting.ascend.rules import rules
from porting.ascend.soc import find_soc
from porting.backends.ascend import probing
from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine
from porting.backends.cann_simulator.misread import MISREAD, OF_GRAPHS, UNDEFINED
from porting.backends.onnx_program import program_from_onnx
from porting.commands import probe as probe_command
from porting.devices import parse_device
from porting.errors import DeviceUnavailable, InputError, RuntimeFailed, UsageError
from porting.session import open_session

A2, SATURATING = "ascend-sim,soc=Ascend910B3", "ascend-sim,soc=Ascend310P3,cann=9.1.0"
BY_ID = {rule.id: rule for rule in rules()}
# arithmetic that the simulator has, though the rules leave it open
SHOWN = {"fp16-constant", "fp16-constant-negative", "infinite-constant"}
KERNELS = {
    "sum-matmul-fp16",
    "sum-conv-fp16",
    "sum-reduce-fp16",
    "overflow-fp32",
    "max-of-nan",
    "subnormals-fp16",
    "cast-to-int",
    "mod-of-integers",
}
SOME = ("saturation", "mod-fmod", "pad-wrap", "no-parser", "pool-window", "dtype-gather", "overflow-fp16", "sum-matmul-fp16")


@pytest.fixture(scope="module")
def seen() -> dict[str, Facts]:
    return {device: probe(device) for device in (A2, SATURATING)}


@pytest.fixture(params=[A2, SATURATING])
def facts(request: pytest.FixtureRequest, seen: dict[str, Facts]) -> Facts:
    return seen[request.param]


def names(facts: Facts, verdict: str, kind: str = "rule") -> set[str]:
    return {fact.id for fact in facts.results if fact.verdict == verdict and fact.kind == kind}


# --- what the simulator models, and only that ---------------------------------------------------------------------------


def test_every_rule_and_trap_is_there_once(facts: Facts) -> None:
    assert [fact.id for fact in facts.results] == [*(rule.id for rule in rules()), *(trap.id for trap in TRAPS)]
    assert facts.complete and facts.level == "simulated" and not facts.stopped
    assert facts.soc in ("Ascend910B3", "Ascend310P3") and facts.cann in ("9.2.0", "9.1.0")
    assert all(fact.why for fact in facts.results if fact.verdict in ("undecided", "not probed"))


def test_what_the_simulator_models_is_confirmed(facts: Facts) -> None:
    """What it refuses, misreads and places; of a graph that several rules refuse, and of a chip without the control, nothing is said."""
    modelled = {id for id, rule in BY_ID.items() if rule.effect in ("refuses", "ai_cpu")} | SHOWN
    modelled |= {id for id, rule in BY_ID.items() if rule.effect == "wrong" and id in {*MISREAD, *OF_GRAPHS} - set(UNDEFINED)}
    mixed = {f.id for f in facts.results if f.why.startswith(("another rule says so", "the control beside it fails too"))}
    assert len(mixed) <= 3, mixed
    asked = modelled - names(facts, "not probed") - mixed
    assert names(facts, "confirmed") == asked and len(asked) > 100


def test_what_it_does_not_model_is_never_confirmed(facts: Facts) -> None:
    left = [fact for fact in facts.results if fact.verdict == "undecided"]
    assert {fact.id for fact in left if fact.kind == "trap"} == KERNELS
    open_rules = {id for id, rule in BY_ID.items() if rule.effect == "unknown"} - SHOWN
    assert names(facts, "undecided") >= open_rules - names(facts, "not probed")
    assert all(
        fact.why.startswith("not modelled by the simulator; measured: ") for fact in left if fact.id in open_rules | KERNELS
    )
    assert not names(facts, "refuted") and not names(facts, "refuted", "trap")


def test_codes_and_numbers_are_told(seen: dict[str, Facts]) -> None:
    half, single = seen[SATURATING], seen[A2]
    assert half.by_trap["overflow-fp16"].numbers == (65504.0, -65504.0, 2.0)
    assert single.by_trap["overflow-fp16"].numbers == (float("inf"), float("-inf"), 2.0)
    assert (single.by_rule["no-parser"].code, single.by_rule["no-parser"].code_seen) == ("E13010", "E13010")
    assert single.by_rule["external-key"].code_seen == "E19999", "the rule has no code; this one was seen"
    assert single.by_rule["integer-division"].numbers[:2] == (4.0, -4.0)
    assert half.by_rule["fp32-cube"].code_seen == "EZ3003"
    assert single.by_trap["om-of-another-soc"].code_seen == "507008"
    assert single.by_rule["fp32-cube"].why == "it is said of 310, 310P, 910A, and Ascend910B3 is of A2"
    assert single.by_rule["several-imports"].why == "it is said of CANN up to 9.1.0, and this is 9.2.0"
    assert half.by_trap["hf32-conv"].verdict == "not probed" and "fp16 only" in half.by_trap["hf32-conv"].why


def test_nodes_on_the_ai_cpu_are_seen_in_a_simulated_model_only(seen: dict[str, Facts]) -> None:
    fact = seen[A2].by_rule["pool-window"]
    assert (fact.verdict, fact.seen, fact.text) == ("confirmed", "ai_cpu", "1 nodes on the AI CPU")
    assert place_of(parse_device("ascend:0")).ai_cpu(Path("any.om")) is None


# --- what is seen, held against a rule ----------------------------------------------------------------------------------

CHIP = find_soc("Ascend910B3")
REFUSED, RAN = Seen("refused", "E11010", "because", codes=("E11010",)), Seen("ran")


def decided(rule: str, hit: Seen, control: Seen | None = None, *, unmodelled: str = "", right: bool = True) -> Fact:
    """control: None: it runs and is right"""
    test = probe_rules.test_of(BY_ID[rule], CHIP, "9.2.0")
    assert isinstance(test, RuleTest)
    good = control or replace(RAN, outputs=tuple(test.pair[1].computed()))
    if hit is RAN:
        hit = replace(RAN, outputs=tuple(array if right else array + 100 for array in test.pair[0].computed()))
    return fact_of(test, hit, good, CHIP, "9.2.0", unmodelled)


def test_a_refusal_counts_where_the_control_is_taken() -> None:
    fact = decided("transpose-perm", REFUSED)
    assert (fact.verdict, fact.seen, fact.code, fact.code_seen) == ("confirmed", "refuses", "E11010", "E11010")
    fact = decided("transpose-perm", REFUSED, control=REFUSED)
    assert (fact.verdict, fact.seen) == ("undecided", "") and fact.why.startswith("the control beside it fails too")
    fact = decided("transpose-perm", REFUSED, control=Seen("ran", outputs=(np.zeros((3, 2), np.float32),)))
    assert fact.verdict == "undecided" and "the control beside it comes out wrong too" in fact.why
    other = decided("transpose-perm", Seen("refused", "E19999", codes=("E19999",)))
    assert (other.verdict, other.code, other.code_seen) == ("confirmed", "E11010", "E19999"), (
        "another code, and refused all the same"
    )


def test_what_is_taken_and_right_refutes_a_rule() -> None:
    assert [
        (f.verdict, f.seen) for f in (decided("transpose-perm", RAN), decided("mod-fmod", RAN), decided("top-k-order", RAN))
    ] == [("refuted", "none")] * 3
    assert decided("transpose-perm", RAN, control=REFUSED).verdict == "refuted", "then the control does not matter"


def test_what_comes_out_wrong_is_worse_than_a_refusal() -> None:
    assert [
        (f.verdict, f.seen) for f in (decided(r, RAN, right=False) for r in ("transpose-perm", "mod-fmod", "slice-rank"))
    ] == [
        ("refuted", "wrong"),
        ("confirmed", "wrong"),
        ("confirmed", "wrong"),
    ]
    assert (decided("mod-fmod", REFUSED).verdict, decided("mod-fmod", REFUSED).seen) == ("refuted", "refuses")
    assert decided("top-k-order", REFUSED).verdict == "confirmed"


def test_an_input_that_is_taken_in_another_shape_is_wrong() -> None:
    fact = decided("dropout-training", Seen("ran", misfit="the compiled model takes x: float32[], and the graph [8, 8]"))
    assert (fact.verdict, fact.seen) == ("confirmed", "wrong") and "takes x: float32[]" in fact.text
    assert "takes b" in probe(A2, only=("input-unranked",)).by_rule["input-unranked"].text


def test_two_rules_of_one_graph_are_told_apart_by_their_codes() -> None:
    assert decided("missing-strings", Seen("refused", "E13010", codes=("E13010",))).verdict == "confirmed"
    fact = decided("missing-strings", Seen("refused", "E19999", codes=("E19999",)))
    assert fact.verdict == "undecided" and fact.why == "another rule says so of this graph: strings"


@pytest.mark.parametrize("stage", ["hung", "died", "lost"])
def test_what_nobody_answered_decides_nothing(stage: str) -> None:
    fact = decided("transpose-perm", Seen(stage, text="no word"))
    assert (fact.verdict, fact.seen) == ("undecided", "") and "no word" in fact.why


def test_what_is_not_modelled_is_measured_only() -> None:
    fact = decided("slice-rank", REFUSED, unmodelled="not modelled")
    assert (fact.verdict, fact.seen, fact.why) == ("undecided", "", "not modelled; measured: refuses")


def test_placement_that_nobody_tells_decides_nothing() -> None:
    (fact,) = (decided("pool-window", RAN),)
    assert (fact.verdict, fact.why) == ("undecided", "it runs; where, AscendCL does not say")
    assert decided("pool-window", REFUSED).seen == "refuses"


# --- a simulator that is broken on purpose ------------------------------------------------------------------------------


def changed(facts: Facts, path: Path, **results: tuple[str, str]) -> str:
    """Facts with other verdicts: id -> (verdict, seen). The device that follows them."""
    made = [
        replace(fact, verdict=results[key][0], seen=results[key][1], why="")
        if (key := fact.id.replace("-", "_")) in results
        else fact
        for fact in facts.results
    ]
    path.write_bytes(file_of(replace(facts, results=tuple(made), checked=Facts.checked)))
    return f"ascend-sim,facts={path}"


def test_a_simulator_without_saturation_is_refuted(seen: dict[str, Facts], tmp_path: Path) -> None:
    device = changed(
        seen[SATURATING],
        tmp_path / "f.json",
        overflow_fp16=("refuted", "infinity"),
        saturation=("refuted", "none"),
        pad_wrap=("refuted", "none"),
        mod_fmod=("refuted", "none"),
    )
    found = probe(
        device, only=("overflow-fp16", "nan-fp16", "saturation", "pad-wrap", "mod-fmod", "no-parser", "weights-not-clipped")
    )
    assert found.soc == "Ascend310P3" and found.cann == "9.1.0", "the machine is that of the facts"
    assert names(found, "refuted") == {"saturation", "pad-wrap", "mod-fmod"} and names(found, "confirmed") == {"no-parser"}
    assert names(found, "refuted", "trap") == {"overflow-fp16", "nan-fp16", "weights-not-clipped"}
    assert found.by_rule["pad-wrap"].seen == "none" and found.by_trap["overflow-fp16"].seen == "infinity"


def test_a_simulator_that_follows_worse_facts(seen: dict[str, Facts], tmp_path: Path) -> None:
    """A rule that left something open refuses now; what comes out wrong in a way that nobody says is refused too."""
    device = changed(seen[A2], tmp_path / "f.json", top_k_order=("confirmed", "refuses"), slice_rank=("confirmed", "wrong"))
    found = probe(device, only=("top-k-order", "slice-rank", "conv-group"))
    assert (found.by_rule["top-k-order"].verdict, found.by_rule["top-k-order"].seen) == ("confirmed", "refuses")
    assert (
        found.by_rule["slice-rank"].seen == "refuses" and "refuses what it cannot compute" in found.by_rule["slice-rank"].text
    )
    assert found.by_rule["conv-group"].verdict == "undecided"


def test_a_session_on_the_simulator_follows_facts(seen: dict[str, Facts], tmp_path: Path) -> None:
    """The compiled model that was kept for a machine without facts is not taken for one with them."""
    device = changed(
        seen[SATURATING], tmp_path / "f.json", overflow_fp16=("refuted", "infinity"), saturation=("refuted", "none")
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y, bool[2] z) { y = Add(x, x) z = IsNaN(x) }'
    )
    program = program_from_onnx(model.SerializeToString())
    x = np.array([60000, np.nan], np.float32)
    for place, largest, found in (("ascend-sim,soc=Ascend310P3,cann=9.1.0", 65504, False), (device, np.inf, True)):
        with open_session(program, f"{place},precision=fp16") as session:
            outputs = session.run({"x": x})
        assert outputs["y"][0] == largest and outputs["z"][1] == found


def test_its_own_facts_change_nothing(seen: dict[str, Facts], tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(file_of(seen[SATURATING]))
    asked = (*SOME, "fp16-constant", "om-of-another-soc")
    again = probe(f"ascend-sim,facts={path}", only=asked)
    assert [f for f in seen[SATURATING].results if f.id in asked] == list(again.results)


def test_facts_of_another_machine_are_refused(seen: dict[str, Facts], tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(file_of(seen[SATURATING]))
    for options, text in (("soc=Ascend910B3", "facts of an Ascend310P3"), ("cann=8.0.0", "facts of CANN 9.1.0")):
        with pytest.raises(UsageError, match=text):
            probe(f"ascend-sim,facts={path},{options}")
    path.write_text("{}")
    with pytest.raises(InputError, match="unknown schema"):
        probe(f"ascend-sim,facts={path}")


# --- what breaks on the way ---------------------------------------------------------------------------------------------


def test_a_device_that_is_lost_again_and_again_ends_it_with_what_was_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("porting.ascend.probe.MOST_LOSSES", 2)
    output = tmp_path / "f.json"
    arguments = ["--device", f"{A2},faults=device-lost@4", "-o", str(output), "--quiet"]
    done = CliRunner().invoke(probe_command.command, arguments, standalone_mode=False)
    assert done.return_value == 3 and "INCOMPLETE" in done.output
    found = read_facts(output)
    assert (
        not found.complete and "processes hung, ended or lost the device" in found.stopped and "were not asked" in found.stopped
    )
    assert names(found, "confirmed") and "INCOMPLETE" in found.named()
    assert any(fact.why.startswith("the device was lost") or "the device was lost" in fact.why for fact in found.results)


def test_a_graph_that_hangs_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is stopped while it compiles one of them."""
    asked = Bench.ask
    hung: list[str] = []

    def stopping(self: Bench, seconds: float, name: str, *arguments: object) -> tuple[str, object]:
        if name == "run" and not hung and self._child is not None and len(asked_for) == 2:
            hung.append(name)
            os.kill(self._child.pid, 19)  # SIGSTOP
            seconds = 0.2
        asked_for.append(name) if name == "run" else None
        return asked(self, seconds, name, *arguments)

    asked_for: list[str] = []
    monkeypatch.setattr(Bench, "ask", stopping)
    monkeypatch.setattr(probe_place, "GRACE_S", 0.1)
    found = probe(A2, only=("mod-fmod", "gemm-alpha", "selu"))
    assert hung and found.complete
    undecided = [fact for fact in found.results if fact.verdict == "undecided"]
    assert len(undecided) == 1 and "no answer to run in 0.2 s" in undecided[0].why
    assert len(names(found, "confirmed")) == 2


def test_a_graph_that_kills_the_process_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Bench.ask
    runs: list[str] = []

    def killing(self: Bench, seconds: float, name: str, *arguments: object) -> tuple[str, object]:
        runs.extend([name] if name == "run" else [])
        if name == "run" and len(runs) == 2 and self._child is not None:
            self._child.kill()
        return asked(self, seconds, name, *arguments)

    monkeypatch.setattr(Bench, "ask", killing)
    found = probe(A2, only=("mod-fmod", "gemm-alpha"))
    assert [fact.verdict for fact in found.results].count("confirmed") == 1
    assert "was killed by SIGKILL" in next(fact.why for fact in found.results if fact.verdict == "undecided")


def test_without_a_device_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"libascendcl\.so was not found") as caught:
        probe("ascend:0")
    assert caught.value.exit_code == 3
    with pytest.raises(RuntimeFailed, match="the simplest graph does not run"):
        probe(f"{A2},faults=execute-failed@1")
    with pytest.raises(UsageError, match="cpu is no Ascend NPU"):
        probe("cpu")
    with pytest.raises(UsageError, match="no rule and no trap is called 'mod-fmot'"):
        probe(A2, only=("mod-fmot",))
    with pytest.raises(UsageError, match="has no option 'precision'"):
        probe(f"{A2},precision=fp16")


def test_an_interrupt_ends_the_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C while build.sh runs: nothing that still waits is begun, and what runs is not left behind."""
    claimed = replace(place_of(parse_device(A2)), in_child=False)
    monkeypatch.setattr("porting.ascend.probe.place_of", lambda device: claimed)
    script = "echo $$ >> @PIDS@\nexec sleep 100\n".replace("@PIDS@", str(tmp_path / "pids"))
    monkeypatch.setattr(probe_place, "build_script", lambda command: script)
    monkeypatch.setattr("porting.ascend.probe._Session.require_usable", lambda self: None)

    def interrupt() -> None:
        while not (tmp_path / "pids").exists():
            threading.Event().wait(0.02)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident or 0
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        probe(A2, only=("mod-fmod", "gemm-alpha", "selu", "pad-wrap"))
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids and len(pids) <= max(1, (os.cpu_count() or 1) // 2)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# --- a real device's way ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_a_real_one(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """`porting probe --device ascend:0` where somebody sourced the simulator's environment: build.sh finds its atc, the child its libascendcl."""
    folder = tmp_path_factory.mktemp("real")
    only = [part for name in SOME for part in ("--only", name)]
    code = "import sys; from porting.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "probe",
        "--device",
        "ascend:0",
        "-o",
        str(folder / "f.json"),
        "--json",
        "--quiet",
        *only,
    ]
    environment = {**os.environ, **simulated_environment(Machine("Ascend310P3", cann="9.1.0"))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_the_way_of_a_real_device(as_a_real_one: subprocess.CompletedProcess[str], seen: dict[str, Facts]) -> None:
    """The compiler is found and run as `porting compile` does; what comes out is the same but for what AscendCL cannot say."""
    assert as_a_real_one.returncode == 0, as_a_real_one.stderr
    found = json.loads(as_a_real_one.stdout)
    got = {result["id"]: result for result in found["results"]}
    expected = seen[SATURATING]
    assert got["pool-window"]["why"] == "it runs; where, AscendCL does not say"
    for name in ("saturation", "mod-fmod", "pad-wrap", "no-parser"):
        fact = expected.by_rule[name]
        assert (got[name]["verdict"], got[name]["seen"], got[name]["code_seen"]) == (fact.verdict, fact.seen, fact.code_seen)
    assert got["overflow-fp16"]["seen"] == "largest number"


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("Version=8.0.0\n", "8.0.0"),
        ("# version: 1.0\nruntime_running_version=[7.6.0.1.220:8.0.RC3]\n", "8.0.RC3"),
        ("Version=7.6.0.1.220\nversion_dir=8.0.RC3\n", "8.0.RC3"),
        ("Version=99.1.0\n", "99.1.0"),
        ("nothing", ""),
    ],
)
def test_the_release_that_a_toolkit_says(text: str, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert probing._toolkit_says() == ""
    (tmp_path / "version.cfg").write_text(text)
    assert probing._toolkit_says() == release


def test_a_simulated_cann_is_told_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the place says: somebody may have sourced the simulator's environment."""
    claimed = replace(place_of(parse_device(A2)), level="hardware", name="ascend:0")
    monkeypatch.setattr("porting.ascend.probe.place_of", lambda device: claimed)
    assert probe("ascend:0", only=("overflow-fp16",)).level == "simulated"


@pytest.mark.slow
def test_a_simulated_cann_is_never_taken_for_hardware(as_a_real_one: subprocess.CompletedProcess[str]) -> None:
    found = json.loads(as_a_real_one.stdout)
    assert (found["device"], found["evidence_level"]) == ("ascend:0", "simulated")


def test_the_text_says_that_it_is_simulated(tmp_path: Path) -> None:
    arguments = ["--device", A2, "--quiet", "--only", "overflow-fp16", "--only", "pad-wrap"]
    done = CliRunner().invoke(probe_command.command, arguments, standalone_mode=False)
    assert done.return_value == 0
    assert done.output.startswith("simulated facts of ") and "nothing of a chip" in done.output
    assert "CONFIRMED overflow-fp16: expected infinity, seen infinity" in done.output and "rules: 1 confirmed" in done.output


def test_a_summary_counts_everything(facts: Facts) -> None:
    assert sum(summary(facts)["rule"].values()) == len(rules())
    assert find_soc(facts.soc).family in ("A2", "310P")
    assert isinstance(facts.results[0], Fact)
