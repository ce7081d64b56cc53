"""Each silent trap of onnxruntime-cann: what the wheel does alone, measured over a simulated CANN, and that the route does not.

Run in an environment with onnxruntime-cann and numpy 1: pytest -m cann_wheel tests/ascend_wheels
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ascend_wheels import cann_models as models
from tests.ascend_wheels.cann_children import child_environment, started, told

pytestmark = pytest.mark.cann_wheel


# --- compiled models ------------------------------------------------------------------------------------------------


def test_a_compiled_model_of_another_graph_is_not_taken(tmp_path: Path) -> None:
    """3 + 3 is 6 and 3 * 3 is 9: the wheel gives 6 twice."""
    alone = """
        add = float(raw(models.binary("Add"), precision_mode="must_keep_origin_dtype").run(None, {"x": X})[0][0, 0])
        tell([add, float(raw(models.binary("Mul"), precision_mode="must_keep_origin_dtype").run(None, {"x": X})[0][0, 0])])
    """
    assert told(alone, tmp_path) == [6, 6]
    ours = 'tell([float(session(models.binary(op)).run({"x": X})["y"][0, 0]) for op in ["%s"]])'
    assert [told(ours % op, tmp_path)[0] for op in ("Add", "Mul", "Add", "Mul")] == [6, 9, 6, 9]


def test_dump_om_model_0_is_no_protection(tmp_path: Path) -> None:
    """It stops the writing only; bits of another dtype are taken for numbers."""
    write = 'raw(models.binary("Add"), dump_om_model="1").run(None, {"x": X}); tell(1)'
    read = 'tell(float(raw(models.binary(%s), dump_om_model="0").run(None, {"x": X.astype(np.%s)})[0][0, 0]))'
    told(write, tmp_path)
    assert told(read % ('"Mul"', "float32"), tmp_path) == 6
    assert told(read % ('"Add", models.DOUBLE', "float64"), tmp_path) != 6
    assert told('tell(session(models.binary("Mul")).run({"x": X})["y"][0, 0])', tmp_path) == 9


def test_weights_count_towards_which_compiled_model_is_taken(tmp_path: Path) -> None:
    """Two files of one name and one graph, whose weights lie beside them and differ."""
    source = """
        import onnx
        model = onnx.load_from_string(models.matmul())
        weight = model.graph.initializer[0]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.full((4, 5), {}, np.float32), "w"))
        onnx.save(model, "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
        tell(session("m.onnx").run({{"x": X}})["y"][0, 0])
    """
    for number in (1, 2):
        for file in ("m.onnx", "w.bin"):
            (tmp_path / file).unlink(missing_ok=True)
        assert told(source.format(number), tmp_path) == 12 * number


def test_weights_in_other_files_do_not_reach_the_wheel(tmp_path: Path) -> None:
    """It keeps the relative path and CANN looks in the current folder: there a file of that name is another's, or there is none."""
    prepared = """
        import onnx
        os.makedirs("port", exist_ok=True)
        path = "port/m.onnx"
        if not os.path.exists(path):
            onnx.save(onnx.load_from_string(models.matmul()), path, save_as_external_data=True, size_threshold=0, location="w.bin")
        np.full((4, 5), 7, np.float32).tofile("w.bin")
    """
    alone = 's = raw(path, dump_om_model="0"); failed = error(s.run, None, {"x": X}); tell(failed or s.run(None, {"x": X})[0])'
    right = np.full((2, 4), 3, np.float32) @ models.normal(4, 5)
    assert not np.array_equal(told(prepared + f"\n        {alone}", tmp_path), right)
    found = told(prepared + '\n        tell(session(path).run({"x": X})["y"])', tmp_path)
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_nothing_is_written_where_the_user_works(tmp_path: Path) -> None:
    alone, ours = tmp_path / "alone", tmp_path / "ours"
    alone.mkdir()
    ours.mkdir()
    told('raw(models.binary("Add")).run(None, {"x": X}); tell(1)', alone)
    assert [path.suffix for path in alone.iterdir()] == [".om"]
    environment = child_environment(tmp_path)
    ran = started('s = session(models.binary("Add")); s.run({"x": X}); s.close(); tell(os.getcwd())', ours, environment)
    assert ran.stdout.strip() == f'RESULT"{ours}"', ran.stderr
    assert not list(ours.iterdir())


def test_a_compiled_model_is_kept_for_the_next_process(tmp_path: Path) -> None:
    source = 's = session(models.binary("Add")); before = os.listdir("."); s.run({"x": X}); s.close(); tell(before)'
    assert told(source, tmp_path) == []
    (kept,) = (tmp_path / "cache").rglob("*.om")
    first = kept.stat().st_mtime_ns
    assert len(told(source, tmp_path)) == 1
    assert kept.stat().st_mtime_ns == first


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_compiled_model_is_compiled_again(tmp_path: Path, damage: str) -> None:
    source = 's = session(models.binary("%s")); y = s.run({"x": X})["y"][0, 0]; s.close(); tell(y)'
    assert told(source % "Add", tmp_path) == 6
    (kept,) = (tmp_path / "cache").rglob("*.om")
    data = kept.read_bytes()
    if damage == "other":
        told(source % "Mul", tmp_path)
        (other,) = set((tmp_path / "cache").rglob("*.om")) - {kept}
        data = other.read_bytes()
    kept.write_bytes({"cut": data[: len(data) // 2], "other": data, "empty": b""}[damage])
    assert told(source % "Add", tmp_path) == 6


@pytest.mark.parametrize("change", ["soc", "toolkit", "precision"])
def test_a_compiled_model_is_for_one_soc_toolkit_and_precision(tmp_path: Path, change: str) -> None:
    source = """
        from porting.backends.ascend import cann_provider as module
        {}
        s = session(models.binary("Add"), precision="{}"); s.run({{"x": X}}); s.close(); tell(1)
    """
    changed = {
        "soc": 'module.soc_name = lambda: "Ascend910B4"',
        "toolkit": 'module.toolkit_identity = lambda: {"toolkit": "another"}',
        "precision": "",
    }[change]
    told(source.format("", "fp32"), tmp_path)
    told(source.format(changed, "fp16" if change == "precision" else "fp32"), tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.om"))) == 2


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    source = 'tell(session(models.binary("Add")).run({"x": X})["y"][0, 0])'
    assert told(source, tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")) == 6


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    """The wheel writes what it compiled before it knows that it can be loaded."""
    assert told(
        'm = models.with_if(); tell([error(raw(m).run, None, {"c": np.array([True]), "x": X}), os.listdir(".")])', tmp_path
    )
    source = """
        from porting.backends.ascend import cann_provider_session
        s = session(models.binary("Add"))
        s._inner.run = lambda *a: (_ for _ in ()).throw(PortingError("broke"))
        open("half_1.om", "wb").close()
        tell(error(s.run, {"x": X})[0])
    """
    assert told(source, tmp_path) == "PortingError"
    assert not list((tmp_path / "cache").rglob("*.om"))


# --- what CANN is told ------------------------------------------------------------------------------------------------


def test_precision_has_no_default(tmp_path: Path) -> None:
    source = """
        program = program_from_onnx(models.matmul())
        tell([error(cann_provider.prepare, program, {"route": "cann"}), error(session, program, precision="force_fp32"),
              raw(models.matmul(), precision_mode="nonsense").get_providers()])
    """
    missing, unknown, taken = told(source, tmp_path)
    assert missing[0] == "UsageError" and "precision=" in missing[1] and "fp16" in missing[1]
    assert unknown[0] == "UsageError" and "known: bf16, fp16, fp32, mixed_fp16" in unknown[1]
    assert taken[0] == "CANNExecutionProvider"  # the wheel takes any word


def test_the_first_session_decides_for_all(tmp_path: Path) -> None:
    """2049 has 12 bits, and fp16 has 11: what is left alone is fp16, and who asks for more later is not heard."""
    source = """
        x = np.full((2, 4), 1024.5, np.float32)
        numbers = []
        for op, options in {}:
            model = models.graph([models.node("Add", ["x", "x"], ["y"])], [("x", 1, [2, 4]), *[("u", 1, [1])] * (len(numbers) > 0)], [("y", 1, [2, 4])])
            feeds = {{"x": x}} if not numbers else {{"x": x, "u": np.ones(1, np.float32)}}
            numbers.append(float(raw(model, **options).run(None, feeds)[0][0, 0]))
        tell(numbers)
    """
    silent, exact = ("Add", {}), ("Add", {"precision_mode": "must_keep_origin_dtype"})
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert 2049 not in told(source.format([silent, exact]), tmp_path / "one")
    assert told(source.format([exact, silent]), tmp_path / "two") == [2049, 2049]
    ours = 'tell(session(models.binary("Add")).run({"x": np.full((2, 4), 1024.5, np.float32)})["y"][0, 0])'
    assert told(ours, tmp_path) == 2049


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "must_keep_origin_dtype"), ("fp16", "force_fp16")])
def test_the_provider_is_told_the_precision(tmp_path: Path, precision: str, mode: str) -> None:
    source = f'tell(session(models.matmul(), precision="{precision}")._inner._session.get_provider_options()["CANNExecutionProvider"])'
    kept = told(source, tmp_path)
    assert (kept["precision_mode"], kept["enable_cann_subgraph"], kept["enable_cann_graph"]) == (mode, "0", "1")


def test_fp32_on_a_chip_that_multiplies_halves_only_is_refused(tmp_path: Path) -> None:
    source = 'cann_provider.soc_name = lambda: "Ascend310P3"; tell([error(session, models.matmul()), error(session, models.matmul(), precision="fp16")])'
    blocked, taken = told(source, tmp_path)
    assert blocked[0] == "RuntimeFailed" and "fp16 only" in blocked[1]
    assert taken is None


def test_a_second_precision_in_one_process_is_refused(tmp_path: Path) -> None:
    source = """
        first = session(models.matmul())
        open_one = error(session, models.matmul(), precision="fp32")
        first.run({"x": X})
        first.close()
        tell([open_one, error(session, models.matmul(), precision="fp16"), error(session, models.binary("Add"))])
    """
    while_open, other, same = told(source, tmp_path)
    assert while_open[0] == "UsageError" and "close it first" in while_open[1]
    assert other[0] == "UsageError" and "would not listen to precision_mode=force_fp16" in other[1]
    assert same is None


def test_a_failed_prepare_leaves_the_process_usable(tmp_path: Path) -> None:
    source = """
        before = os.getcwd()
        failed = error(session, models.matmul(), memory_limit="no number")
        tell([failed[0], os.getcwd() == before, error(session, models.matmul(), precision="fp16")])
    """
    assert told(source, tmp_path) == ["UsageError", True, None]


# --- where nodes run ----------------------------------------------------------------------------------------------------


def test_a_missing_library_is_an_error_and_no_run_on_the_cpu(tmp_path: Path) -> None:
    """The wheel prints a line and goes on with the CPU."""
    alone = "tell(raw(models.matmul()).get_providers())"
    assert told(alone, tmp_path, LD_LIBRARY_PATH="") == ["CPUExecutionProvider"]
    source = """
        a = cann_provider.probe()
        cann_provider.probe = lambda: type(a)(True)
        tell([a.usable, a.reason, error(session, models.matmul())])
    """
    usable, reason, failed = told(source, tmp_path, LD_LIBRARY_PATH="")
    assert not usable and "LD_LIBRARY_PATH" in reason
    assert failed[0] == "DeviceUnavailable" and "set_env.sh" in failed[1]


def test_an_option_that_it_rejects_is_an_error_and_no_run_on_the_cpu(tmp_path: Path) -> None:
    source = """
        tell([raw(models.matmul(), precision_mode_v2="origin").get_providers(),
              error(cann_provider._opened, ort, cann_provider.prepared(program_from_onnx(models.matmul())), {"precision_mode_v2": "origin"}, "ascend:0")])
    """
    alone, ours = told(source, tmp_path)
    assert alone == ["CPUExecutionProvider"]
    assert ours[0] == "RuntimeFailed" and "precision_mode_v2" in ours[1]


def test_a_session_that_fell_back_is_refused(tmp_path: Path) -> None:
    source = """
        graph = cann_provider.prepared(program_from_onnx(models.matmul()))
        real = cann_provider.open_ort
        cann_provider.open_ort = lambda runtime, program, settings, providers, device: ort.InferenceSession(
            program.model, providers=["CPUExecutionProvider"])
        tell(error(cann_provider._opened, ort, graph, {}, "ascend:0"))
    """
    kind, text = told(source, tmp_path)
    assert kind == "DeviceUnavailable" and "would have run on CPUExecutionProvider" in text


def test_a_node_left_to_the_cpu_is_refused(tmp_path: Path) -> None:
    """With enable_cann_subgraph=1 the wheel leaves to the CPU what is not on its list."""
    source = """
        from porting.backends.ascend import cann_provider_graph
        cann_provider_graph._refused = lambda model: []
        graph = cann_provider.prepared(program_from_onnx(models.unregistered()))
        split = raw(graph.model, enable_cann_subgraph="1")
        tell([places(split), error(cann_provider.checked_placement, split, graph, "ascend:0"),
              error(cann_provider._opened, ort, graph, {"enable_cann_subgraph": "1"}, "ascend:0")])
    """
    alone, checked, forbidden = told(source, tmp_path)
    assert alone == {"first": "CANNExecutionProvider", "whole": "CPUExecutionProvider", "last": "CANNExecutionProvider"}
    assert checked[0] == "RuntimeFailed" and "'whole' on CPUExecutionProvider" in checked[1]
    assert forbidden[0] == "RuntimeFailed" and "explicitly disabled" in forbidden[1]


def test_every_node_of_the_graph_is_placed(tmp_path: Path) -> None:
    """onnxruntime's optimisations fold and rename nodes before the provider sees them: then nobody can say where one ran."""
    source = """
        graph = cann_provider.prepared(program_from_onnx(models.block()))
        tell([session(models.block()).placement, list(graph.nodes),
              error(cann_provider.checked_placement, raw(models.cnn(), optimised=True), cann_provider.prepared(program_from_onnx(models.cnn())), "ascend:0")])
    """
    placement, nodes, folded = told(source, tmp_path)
    assert placement == dict.fromkeys(nodes, "ascend:0") and len(nodes) > 20
    assert folded[0] == "RuntimeFailed" and "nowhere" in folded[1]


def test_the_wheel_hands_whole_graphs_to_cann_unread(tmp_path: Path) -> None:
    """... and says that it runs them: what CANN cannot take has to be refused before."""
    source = """
        tell([places(raw(m)) for m in (models.foreign(), models.unregistered())] + [
             [[u.node, u.reason] for u in cann_provider.unsupported(program_from_onnx(m))]
             for m in (models.foreign(), models.unregistered(), models.with_if(), models.with_loop(), models.block())])
    """
    one, two, foreign, unregistered, choice, loop, block = told(source, tmp_path)
    assert set(one.values()) | set(two.values()) == {"CANNExecutionProvider"}
    assert [name for name, _ in foreign] == ["gelu"] and "com.microsoft" in foreign[0][1]
    assert [name for name, _ in unregistered] == ["whole"] and "no entry" in unregistered[0][1]
    for found, name in ((choice, "choice"), (loop, "loop")):
        assert [n for n, _ in found] == [name] and "branches" in found[0][1]
    assert block == []
