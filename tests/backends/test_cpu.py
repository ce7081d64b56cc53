"""What is particular to onnxruntime: options, versions, kernels, buffers in place, errors in our words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from porting import host
from porting.backends import onnxruntime as shared
from porting.backends.cpu import CpuBackend
from porting.backends.onnx_program import program_from_onnx, read_model
from porting.backends.onnxruntime import pairs_in_place, release, translated
from porting.errors import DeviceUnavailable, InputError, OutOfResources, RuntimeFailed, UsageError
from porting.session import open_session
from porting.types import Program, StatePair
from tests.backends.stateful import CACHES, _attention_program, _sums_program


def model(graph: str, opset: int = 24, domain: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}{domain}]> g {graph}')


def program(graph: str, **kwargs) -> Program:
    return program_from_onnx(model(graph).SerializeToString(), **kwargs)


NEGATE = "(float[N] x) => (float[N] y) { [neg] y = Neg(x) }"


# --- options and versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("threads=0", "not a whole number from 1 up"),
        ("threads=two", "not a whole number from 1 up"),
        ("threads=²", "not a whole number from 1 up"),
        ("spinning=yes", "is none of 0, 1"),
        ("optimization=full", "is none of all, basic, off"),
        ("prepack=2", "is none of 1, 0"),
    ],
)
def test_option_values_are_checked(option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(program(NEGATE), f"cpu,{option}")


def test_options_reach_onnxruntime() -> None:
    session = CpuBackend().prepare(program(NEGATE), {"threads": "3", "optimization": "off", "prepack": "0", "spinning": "1"})
    settings = session._session.get_session_options()
    assert settings.intra_op_num_threads == 3
    assert settings.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert settings.get_session_config_entry("session.disable_prepacking") == "1"
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    defaults = CpuBackend().prepare(program(NEGATE), {})._session.get_session_options()
    assert defaults.intra_op_num_threads == host.available_cores()
    assert defaults.get_session_config_entry("session.disable_prepacking") == "0"
    assert defaults.get_session_config_entry("session.intra_op.allow_spinning") == "1"  # as plain onnxruntime
    with pytest.raises(RuntimeError):
        defaults.get_session_config_entry("session.dynamic_block_base")
    cached = CpuBackend().prepare(_sums_program(), {})._session.get_session_options()
    assert cached.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert cached.get_session_config_entry("session.dynamic_block_base") == "4"


def test_older_runtime_than_the_program_needs_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"needs onnxruntime 99\.1 or later") as caught:
        open_session(program(NEGATE, min_runtime={"onnxruntime": "99.1"}))
    assert '"onnxruntime>=99.1"' in caught.value.next
    open_session(program(NEGATE, min_runtime={"onnxruntime": "1.28", "another": "7"})).close()


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.28"), ("1.27.9", "1.28"), ("1.28.0.dev20260101", "1.28.1"), ("1.28", "1.28.0.1")]
)
def test_versions_compare_as_numbers(older: str, newer: str) -> None:
    assert release(older) < release(newer)


def test_trailing_zeros_of_a_version_do_not_count() -> None:
    assert release("1.28.0") == release("1.28") == release("1.28.0+cpu")


def test_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.importlib.util, "find_spec", lambda name: None)
    found = CpuBackend().probe()
    assert not found.usable
    assert found.next == 'pip install "porting[cpu]"'
    with pytest.raises(DeviceUnavailable, match="onnxruntime is not installed") as caught:
        open_session(program(NEGATE))
    assert caught.value.exit_code == 3


def test_broken_runtime_names_the_packages_that_overwrote_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol: OrtGetApiBase")

    monkeypatch.setattr(shared.importlib, "import_module", broken)
    monkeypatch.setattr(shared, "runtime_owners", lambda: ["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1"])
    found = CpuBackend().probe()
    assert "undefined symbol" in found.reason
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 overwrite each other" in found.reason
    assert found.next.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_quota_and_affinity_bound_the_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(host, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(host, "_GROUP_FOLDER", tmp_path)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert host.available_cores() == 2  # hyper-threads share a core
    (tmp_path / "cpu.max").write_text("max 100000")
    assert host.available_cores() == 2
    (tmp_path / "cpu.max").write_text("150000 100000")
    assert host.available_cores() == 1
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: {2})
    (tmp_path / "cpu.max").write_text("800000 100000")
    assert host.available_cores() == 1


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_nodes_without_a_kernel_are_all_listed_with_dtypes() -> None:
    graph = "(bfloat16[N,4] x, bfloat16[4,4] w) => (bfloat16[N,4] z) { [mm] y = MatMul(x, w) [mm2] v = MatMul(y, w) [r] z = Relu(v) }"
    found = CpuBackend().unsupported(program(graph))
    assert [u.node for u in found] == ["mm", "mm2", "r"]
    assert found[0].reason == "onnxruntime has no kernel for it (opset 24, inputs bfloat16, bfloat16)"
    with pytest.raises(RuntimeFailed, match=r"cannot take 3 nodes: mm \(ai.onnx::MatMul\)"):
        open_session(program(graph))


def test_every_listed_node_is_one_that_onnxruntime_refuses() -> None:
    """No false alarm: whatever is listed, a session without our check is refused as well."""
    graph = "(bfloat16[N,4] x) => (bfloat16[N,4] y) { [r] y = Relu(x) }"
    assert CpuBackend().unsupported(program(graph))
    with pytest.raises(RuntimeFailed, match="Could not find an implementation") as caught:
        CpuBackend().prepare(program(graph), {})
    assert "node 'r'" in caught.value.where


def test_bodies_of_control_flow_are_searched_unless_the_condition_is_constant() -> None:
    branches = (
        "<then_branch = t () => (float[N] p) { p = Neg(x) }, "
        "else_branch = e () => (float[N] q) { b = Cast<to=16>(x) [odd] r = Relu(b) q = Cast<to=1>(r) }>"
    )
    decided = f"(float[N] x) => (float[N] y) {{ c = Constant<value = bool {{1}}>() y = If(c) {branches} }}"
    assert [
        u.node for u in CpuBackend().unsupported(program(f"(float[N] x, bool c) => (float[N] y) {{ y = If(c) {branches} }}"))
    ] == ["odd"]
    assert CpuBackend().unsupported(program(decided)) == []
    open_session(program(decided)).close()  # onnxruntime drops the branch that is never taken


@pytest.mark.parametrize("make", [cache.program for cache in CACHES.values()])
def test_supported_graphs_list_nothing(make) -> None:
    assert CpuBackend().unsupported(make()) == []


def test_operator_of_an_unknown_domain_is_listed() -> None:
    text = model("(float[N] x) => (float[N] y) { [mine] y = my.Thing(x) }", domain=', "my": 1')
    found = CpuBackend().unsupported(program_from_onnx(text.SerializeToString()))
    assert [(u.node, u.domain, u.op_type) for u in found] == [("mine", "my", "Thing")]


# --- state in place ---------------------------------------------------------------------------------------------------


def test_caches_that_are_scattered_into_are_updated_in_place() -> None:
    attention = _attention_program()
    assert pairs_in_place(read_model(attention), attention.state.pairs) == {"keys", "values"}
    with open_session(attention, "cpu") as session:
        state = session.new_state(8)
        before = {name: value.data_ptr() for name, value in state.buffers.items()}
        session.run({n: np.ones((1, 2, 3, 4), np.float32) for n in "qkv"}, state)
        assert {name: value.data_ptr() for name, value in state.buffers.items()} == before
        assert (state.buffers["keys"].numpy()[:, :, :3] == 1).all()
        assert (state.buffers["keys"].numpy()[:, :, 3:] == 0).all()


def test_a_cache_that_another_node_reads_is_never_aliased() -> None:
    """A node that reads the old values may run after the one that writes: in place it would see the new ones."""
    text = (
        "(float[batch,step,3] x, int64[batch] length, float[batch,capacity,3] cache) "
        "=> (float[batch,capacity,3] old, float[batch,capacity,3] next) "
        "{ next = TensorScatter<axis=1>(cache, x, length) old = Neg(cache) }"
    )
    assert pairs_in_place(model(text), (StatePair("cache", "next", 1),)) == frozenset()
    sums = _sums_program()
    assert pairs_in_place(read_model(sums), sums.state.pairs) == frozenset()
    safe = text.replace("old = Neg(cache)", "old = Neg(next)")
    assert pairs_in_place(model(safe), (StatePair("cache", "next", 1),)) == {"cache"}


def test_bfloat16_goes_in_out_and_through_state() -> None:
    import ml_dtypes

    from porting.types import StateSpec

    text = "(bfloat16[batch,2] x, bfloat16[batch,2] h) => (bfloat16[batch,2] y, bfloat16[batch,2] g) { y = Identity(h) g = Identity(x) }"
    state = StateSpec((StatePair("h", "g", None),))
    first = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    with open_session(program(text, state=state)) as session:
        kept = session.new_state()
        assert session.run({"x": first}, kept)["y"].tolist() == [[0.0, 0.0]]
        again = session.run({"x": first * 2}, kept)["y"]
        assert again.dtype == ml_dtypes.bfloat16
        assert again.tolist() == [[1.5, -2.0]]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_failing_node_is_named() -> None:
    graph = "(float[A] x, float[B] y) => (float[C] z) { [sum_of_both] z = Add(x, y) }"
    with open_session(program(graph)) as session, pytest.raises(RuntimeFailed, match="broadcast") as caught:
        session.run({"x": np.ones(3, np.float32), "y": np.ones(4, np.float32)})
    assert caught.value.where == "run on cpu, node 'sum_of_both'"
    assert "/onnxruntime_src" not in caught.value.what


def test_out_of_memory_is_its_own_error() -> None:
    graph = "(int64[2] shape) => (float[A,B] y) { [huge] y = ConstantOfShape(shape) }"
    with open_session(program(graph)) as session, pytest.raises(OutOfResources) as caught:
        session.run({"shape": np.array([1 << 22, 1 << 22])})
    assert caught.value.exit_code == 4


def test_state_larger_than_memory_is_out_of_resources() -> None:
    with open_session(_sums_program()) as session, pytest.raises(OutOfResources):
        session.new_state(1 << 50)


def test_foreign_errors_are_left_to_be_bugs() -> None:
    error = TypeError("ours")
    assert translated(error, "cpu", "run") is error


def test_missing_and_short_external_data_are_bad_input(tmp_path: Path) -> None:
    weighted = model("(float[4] x, float[4] w) => (float[4] y) { y = Add(x, w) }")
    del weighted.graph.input[1]
    weighted.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    path = tmp_path / "model.onnx"
    onnx.save(weighted, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    in_memory = path.read_bytes()
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    with pytest.raises(InputError, match="out of bounds"):
        open_session(program_from_onnx(path))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match=r"w\.bin"):
        open_session(program_from_onnx(path))
    with pytest.raises(InputError, match="keeps 1 tensors in other files, 'w' first"):
        program_from_onnx(in_memory)
    with pytest.raises(InputError, match="cannot be read"):
        program_from_onnx(tmp_path / "no.onnx")


def test_newer_opset_and_ir_version_are_refused_with_the_runtimes_words() -> None:
    with pytest.raises(RuntimeFailed, match="opset"):
        open_session(program_from_onnx(model(NEGATE, opset=99).SerializeToString()))
    newer = model(NEGATE)
    newer.ir_version = 99
    with pytest.raises(RuntimeFailed, match="IR version"):
        open_session(program_from_onnx(newer.SerializeToString()))


def test_maps_and_optionals_are_refused_by_type() -> None:
    for graph, kind in (
        ("(optional(float[N]) x) => (float[N] y) { y = OptionalGetElement(x) }", "optional"),
        ("(seq(map(int64, float)) x) => (seq(map(int64, float)) y) { y = Identity(x) }", "sequence of map"),
    ):
        with pytest.raises(InputError, match=f"'x' is of type {kind}"):
            program(graph)
