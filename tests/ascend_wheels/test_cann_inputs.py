"""What route `cann` takes and refuses: scalars, opsets, branches, sizes, weights, dtypes; and what the wheel alone makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ascend_wheels.cann_children import told

pytestmark = pytest.mark.cann_wheel


@pytest.mark.parametrize("opset", [11, 17])
def test_scalar_inputs_enter_as_one_number(tmp_path: Path, opset: int) -> None:
    source = f"""
        s = session(models.scalar({opset}))
        graph = cann_provider.prepared(program_from_onnx(models.scalar({opset})))
        shapes = [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in __import__("onnx").load_from_string(graph.model).graph.input]
        tell([s.run({{"x": X, "c": np.array(5, np.float32)}})["y"][0, 0], s.placement, shapes])
    """
    number, placement, shapes = told(source, tmp_path)
    assert number == 28
    assert placement == {"c/scalar": "ascend:0", "square": "ascend:0", "add": "ascend:0"}
    assert shapes == [[2, 4], [1]]


@pytest.mark.parametrize("opset", [7, 19, 21])
def test_an_opset_that_cann_does_not_read_is_refused(tmp_path: Path, opset: int) -> None:
    source = f'm = models.binary("Add", opset={opset}); tell([places(raw(m)), error(session, m)])'
    alone, ours = told(source, tmp_path)
    assert opset < 8 or alone == {"n": "CANNExecutionProvider"}
    assert ours[0] == "InputError" and f"opset {opset}" in ours[1]


def test_control_flow_is_refused_with_its_reason(tmp_path: Path) -> None:
    source = """
        feeds = {"c": np.array([True]), "x": X}
        tell([error(raw(models.with_if()).run, None, feeds), error(raw(models.with_loop()).run, None, {"x": X}),
              error(session, models.with_if()), error(session, models.with_loop())])
    """
    *alone, ours_if, ours_loop = told(source, tmp_path)
    assert all(failed is not None for failed in alone)
    for kind, text in (ours_if, ours_loop):
        assert kind == "RuntimeFailed" and "branches apart" in text


@pytest.mark.parametrize("rows", [1, 3])
def test_a_branch_that_sizes_settle_is_taken(tmp_path: Path, rows: int) -> None:
    source = f"""
        from dataclasses import replace
        program = program_from_onnx(models.with_if_on_sizes())
        both = replace(program, gears=({{"x": (1, 4)}}, {{"x": (3, 4)}}))
        s = session(replace(program, gears=({{"x": ({rows}, 4)}},)))
        y = s.run({{"x": models.normal({rows}, 4)}})["y"]
        tell([list(y.shape), y, -np.maximum(models.normal({rows}, 4), 0).reshape(y.shape), s.placement, [u.node for u in cann_provider.unsupported(both)]])
    """
    shape, found, right, placement, undecided = told(source, tmp_path)
    assert shape == ([4] if rows == 1 else [3, 4])
    np.testing.assert_array_equal(found, right)
    assert set(placement.values()) == {"ascend:0"} and "choice" not in placement
    assert undecided == ["choice"]  # gears that take different branches


def test_free_sizes_need_gears(tmp_path: Path) -> None:
    source = 'tell([error(session, models.matmul("rows")), error(session, models.matmul(0))])'
    free, empty = told(source, tmp_path)
    assert free[0] == "InputError" and "--gears" in free[1] and "x: float32[rows, 4]" in free[1]
    assert empty[0] == "InputError" and "no numbers" in empty[1]


def test_a_graph_over_two_gib_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    source = """
        import onnx
        w = onnx.TensorProto(name="w", data_type=1, dims=[4, 1 << 27], data_location=onnx.TensorProto.EXTERNAL)
        w.external_data.add(key="location", value="huge.bin")
        model = onnx.load_from_string(models.matmul())
        model.graph.initializer[0].CopyFrom(w)
        open("m.onnx", "wb").write(model.SerializeToString())
        tell(error(session, "m.onnx"))
    """
    kind, text = told(source, tmp_path)
    assert kind == "RuntimeFailed" and "2 GiB" in text and "route=om" in text


def test_strings_and_sequences_are_refused(tmp_path: Path) -> None:
    source = """
        m = models.graph([models.node("Identity", ["x"], ["y"])], [("x", 8, [2])], [("y", 8, [2])])
        tell(error(session, m))
    """
    kind, text = told(source, tmp_path)
    assert kind == "InputError" and "string" in text


def test_the_arena_has_the_limit_that_was_asked_for(tmp_path: Path) -> None:
    source = """
        big = models.graph([models.node("Add", ["x", "x"], ["y"])], [("x", 1, [512, 512])], [("y", 1, [512, 512])])
        x = np.ones((512, 512), np.float32)
        s = session(big, memory_limit="65536")
        failed = error(s.run, {"x": x})
        s.close()
        tell([failed, session(big, memory_limit=str(1 << 24)).run({"x": x})["y"][0, 0]])
    """
    (kind, text), number = told(source, tmp_path)
    assert kind == "OutOfResources" and "memory_limit" in text
    assert number == 2


def test_no_other_framework_is_loaded(tmp_path: Path) -> None:
    """numpy, onnx and the wheel are enough."""
    source = """
        session(models.matmul()).run({"x": X})
        tell([sorted({"torch", "transformers", "torch_npu"} & set(sys.modules)), np.__version__])
    """
    loaded, numpy = told(source, tmp_path)
    assert loaded == [] and numpy.startswith("1.")
