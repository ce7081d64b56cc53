"""What the user names becomes a checkpoint or a graph, and what does not belong together is refused."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from porting.conversion import kept_weights
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.errors import InputError, PortingError, UsageError
from porting.inspection import inspect, state_candidates
from porting.sources import open_source, opened, parse_input, parse_state
from porting.types import TensorSpec, is_checkpoint, is_graph
from tests.other_models import write_other_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tokenizer.json").write_text("{}")
    write_other_models(folder, folder / "tokenizer.json")
    return folder


def test_every_kind_of_source_opens_as_what_it_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(models))
    with opened(models / "vision.onnx") as vision, opened(models / "encoder") as encoder:
        assert is_graph(vision) and vision.format == "onnx" and not is_checkpoint(vision)
        assert is_checkpoint(encoder) and not is_graph(encoder)
        assert kept_weights(vision, "link") == "link"
    spec = parse_input("image: float32[batch, 3, height, width]")
    with opened(model="nets:make", weights_file=models / "net.pth", input_specs=[spec]) as net:
        assert is_graph(net) and net.format == "torch" and net.name == "Net"
        assert [str(i) for i in net.inputs] == ["image: float32[batch, 3, height, width]"]
        assert kept_weights(net, "link") == "copy"
        assert {d["name"] for d in net.accounting()["dropped"]} >= {"epoch", "optimizer"}


def test_what_was_opened_elsewhere_stays_open(models: Path) -> None:
    mine = open_source(models / "vision.onnx")
    with opened(mine) as same:
        assert same is mine
    assert mine.graph().model.graph.num_nodes() == 3  # type: ignore[union-attr]
    mine.close()  # type: ignore[union-attr]


def test_a_module_without_inputs_is_told_what_to_give() -> None:
    with pytest.raises(UsageError) as refused, opened(torch.nn.Linear(3, 2).eval()) as source:
        source.inputs  # noqa: B018
    assert "example_inputs" in refused.value.next


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "name one model"),
        ({"source": "vision.onnx", "model": "nets:make"}, "name one model"),
        ({"source": "vision.onnx", "weights_file": "net.pth"}, "a weights file belongs to --model"),
        ({"source": "vision.onnx", "input_specs": [TensorSpec("x", "float32", (1,))]}, "input_specs cannot be given"),
        ({"source": "vision.onnx", "dynamic": {"image": {0: "n"}}}, "dynamic cannot be given"),
        ({"source": "encoder", "state": {"h": "hn"}}, "state cannot be given"),
        ({"source": "encoder", "example_inputs": (1,)}, "example_inputs cannot be given"),
        ({"source": 3}, "a int is no model"),
        ({"source": "vision.onnx", "state": {"image": "nothing"}}, "nothing"),
        ({"source": "net.pth"}, "weights alone need the code of their module"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    arguments: dict[str, object], said: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(InputError if said.startswith("weights alone") else UsageError) as refused:
        open_source(**arguments)  # type: ignore[arg-type]
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image", "not an input"),
        ("image: float32", "not an input"),
        ("image: floaty[1]", "no dtype 'floaty'"),
        ("image: float32[0]", "not a dimension: '0'"),
        ("image: float32[a b]", "not a dimension"),
        ("image: float32[1,,2]", "not a dimension"),
    ],
)
def test_an_input_that_cannot_be_meant(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_input(text)


@given(
    st.from_regex(r"[A-Za-z_.][A-Za-z0-9_./]{0,20}", fullmatch=True),
    st.sampled_from(("float32", "int64", "bool", "uint8", "bfloat16")),
    st.lists(st.integers(1, 2**31) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), max_size=5),
)
def test_an_input_is_read_as_it_is_printed(name: str, dtype: str, shape: list[int | str]) -> None:
    spec = TensorSpec(name, dtype, tuple(shape))
    assert parse_input(str(spec)) == spec


@given(st.text(max_size=30))
def test_any_text_is_an_input_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        parse_input(text)


def test_inputs_of_a_module_may_stand_in_the_second_place(tmp_path: Path) -> None:
    import porting

    net, x = torch.nn.Linear(3, 2).eval(), torch.ones(2, 3)
    free = {"input": {0: "batch"}}
    for i, examples in enumerate(((x,), {"input": x}, [(x,), (torch.ones(3, 3),)], x)):
        made = porting.convert(net, examples, dynamic=free, output=tmp_path / str(i))
        assert made.path == tmp_path / str(i) and made.manifest["config"]["inputs"] == ["input: float32[batch, 3]"]
    assert porting.port(net, (x,), dynamic=free, output=tmp_path / "judged").ok
    assert porting.convert(net, output=tmp_path / "named", example_inputs=(x,)).path == tmp_path / "named"


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (((torch.ones(2),),), {"dynamic": {}}, "no path says where the port is written, got nothing"),
        ((), {}, "no path says where the port is written, got nothing"),
        (((torch.ones(2),),), {"output": 3}, "no path says where the port is written, got a int"),
        (("a.port",), {"output": "b.port"}, "two places where the port is written: a.port and b.port"),
        (((torch.ones(2),),), {"output": "a.port", "example_inputs": (torch.ones(2),)}, "inputs of the module are given twice"),
    ],
)
def test_an_output_that_is_missing_or_named_twice(args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    import porting

    for function in (porting.convert, porting.port):
        with pytest.raises(UsageError, match=message) as caught:
            function(torch.nn.ReLU().eval(), *args, **options)
        assert 'porting.convert(module, example_inputs, output="net.port")' in caught.value.next


def test_state_pairs() -> None:
    assert parse_state(["h=hn", "c=cn"]) == {"h": "hn", "c": "cn"}
    for wrong in (["h"], ["=hn"], ["h="], ["h=a", "h=b"]):
        with pytest.raises(UsageError, match="not a pair of state"):
            parse_state(wrong)


def test_state_is_guessed_for_the_user_to_confirm(models: Path) -> None:
    assert state_candidates(OnnxFile(models / "vad.onnx")) == ["h=hn", "c=cn"]
    assert state_candidates(OnnxFile(models / "vision.onnx")) == []


def test_inspect_says_what_a_graph_takes_and_holds(models: Path) -> None:
    found = inspect(models / "vad.onnx")
    assert (found["format"], found["covered"], found["operators"]["LSTM"]) == ("onnx", True, 1)
    assert found["inputs"][0] == "audio: float32[batch, time, 40]"
    assert found["parameters"] == 64 * 40 + 64 * 16 + 16 + 1  # and the axis, a constant


def test_a_file_of_another_name_is_told_by_its_bytes(models: Path, tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "model.bin")
    with pytest.raises(PortingError) as refused, opened(tmp_path / "model.bin") as source:
        source.inputs  # noqa: B018
    assert "--allow-pickle" in str(refused.value)
    shutil.copyfile(models / "vision.onnx", tmp_path / "Vision.ONNX")
    with opened(tmp_path / "Vision.ONNX") as source:
        assert is_graph(source)


def test_a_link_to_a_file_gives_a_port_that_loads(models: Path, tmp_path: Path) -> None:
    import porting

    proto = onnx.load(models / "vision.onnx")
    big = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(400, 3, 3, 3)).astype(np.float32), "w")
    proto.graph.initializer[0].CopyFrom(big)
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.zeros(400, np.float32), "b"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 400
    onnx.save(proto, tmp_path / "blob")
    (tmp_path / "linked.onnx").symlink_to(tmp_path / "blob")
    port = porting.convert(tmp_path / "linked.onnx", tmp_path / "port")
    assert port.manifest["weights"]["linked_bytes"] == 4 * 400 * 28
    with porting.load(port.path) as session:
        assert session.run({"image": np.ones((1, 3, 8, 8), np.float32)})["features"].shape == (1, 400, 1, 1)
