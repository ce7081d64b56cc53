"""Ports for Ascend with gears: sizes written into the graph, every gear compared, other shapes refused, and the hand-off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import BOUND, Tiny, make
from tiny_encoders import make_encoder

import porting
from porting.ascend.handoff import handoffs_of, open_handoff
from porting.errors import InputError, PortError, UsageError
from tests.graph_models import model, node, weight

SEQUENCES = "sequence=1,capacity=48; sequence=4,capacity=48; sequence=16,capacity=48"


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that reshapes by its own sizes: batch and length are free."""
    nodes = [
        node("Shape", "x", "shape"),
        node("MatMul", "x w", "p"),
        node("Gelu", "p", "g"),
        node("Reshape", "g shape", "y"),
    ]
    proto = model(nodes, {"x": ["batch", "length", 8]}, {"y": ["batch", "length", 8]}, [weight("w", 8, 8)])
    proto.opset_import[0].version = 20
    path = tmp_path_factory.mktemp("dynamic") / "m.onnx"
    onnx.save(proto, str(path))
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM")


def names(verdict: porting.Verdict) -> str:
    return "\n".join(check.name for check in verdict.checks)


def test_sizes_are_written_in_and_every_gear_is_compared(dynamic: Path, tmp_path: Path) -> None:
    verdict = porting.port(
        dynamic, tmp_path / "m.port", "Ascend310P3", gears="batch=2,length=4; batch=2,length=7", host_cpu="aarch64"
    ).require()
    assert "gear x [2, 4, 8]: relative error of y" in names(verdict) and "gear x [2, 7, 8]: relative error of y" in names(
        verdict
    )
    graph = onnx.load(str(tmp_path / "m.port" / "model.onnx"), load_external_data=False).graph
    assert [d.dim_value or d.dim_param for d in graph.input[0].type.tensor_type.shape.dim] == [2, "length", 8]
    assert verdict.details["handoff"] == "targets/Ascend310P3-any-aarch64"
    handoff = open_handoff(tmp_path / "m.port" / verdict.details["handoff"])
    handoff.verify()
    assert handoff.command.value("dynamic_dims") == "4;7" and handoff.command.value("precision_mode_v2") == "fp16"
    assert handoff.command.value("input_shape") == "x:2,-1,8" and handoff.command.value("host_env_cpu") == "aarch64"
    assert (handoff.path / "model.onnx").read_bytes() == (tmp_path / "m.port" / "model.onnx").read_bytes()


def test_one_gear_is_a_graph_without_shape_arithmetic(dynamic: Path, tmp_path: Path) -> None:
    porting.port(dynamic, tmp_path / "m.port", "Ascend910B3", gears="batch=1,length=4").require()
    graph = onnx.load(str(tmp_path / "m.port" / "model.onnx"), load_external_data=False).graph
    assert not {"Shape", "Reshape"} & {n.op_type for n in graph.node}
    command = handoffs_of(tmp_path / "m.port")[0].command
    assert command.value("input_shape") == "x:1,4,8" and command.value("precision_mode_v2") == "origin"
    assert not [option for option, _ in command.options if option.startswith("dynamic")]


def test_a_run_that_meets_no_gear_is_refused(dynamic: Path, tmp_path: Path) -> None:
    porting.port(dynamic, tmp_path / "m.port", "Ascend310P3", gears="batch=2,length=4; batch=2,length=7").require()
    with porting.load(tmp_path / "m.port") as session:
        assert session.run({"x": np.zeros((2, 7, 8), np.float32)})["y"].shape == (2, 7, 8)
        with pytest.raises(InputError, match=r"no gear has the shapes x \[2, 5, 8\]"):
            session.run({"x": np.zeros((2, 5, 8), np.float32)})
        with pytest.raises(InputError, match="expected"):
            session.run({"x": np.zeros((3, 7, 8), np.float32)})


def test_the_users_inputs_are_a_gear_and_are_brought_to_the_others(dynamic: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    gears = "batch=2,length=4; batch=2,length=7"
    verdict = porting.port(dynamic, tmp_path / "m.port", "Ascend310P3", inputs=tmp_path / "x.npz", gears=gears).require()
    assert {tuple(v["x"]) for v in verdict.details["sizes"].values()} == {(2, 4, 8), (2, 7, 8)}
    np.savez(tmp_path / "x.npz", x=x[:, :3])
    with pytest.raises(InputError, match="no gear has the shapes"):
        porting.port(dynamic, tmp_path / "n.port", "Ascend310P3", inputs=tmp_path / "x.npz", gears=gears)
    assert not (tmp_path / "n.port").exists()


def test_a_port_with_gears_is_validated_again(dynamic: Path, tmp_path: Path) -> None:
    port = tmp_path / "m.port"
    porting.port(dynamic, port, "Ascend310P3", gears="batch=2,length=4; batch=2,length=7").require()
    for against in (None, dynamic):
        verdict = porting.validate(port, against).require()
        assert "gear x [2, 7, 8]: relative error of y" in names(verdict)


def test_a_graph_that_is_wrong_in_one_gear_fails(dynamic: Path, tmp_path: Path) -> None:
    """Length 7 is computed wrongly, length 4 rightly: only the gear shows it."""
    port = tmp_path / "m.port"
    porting.port(dynamic, port, "Ascend310P3", gears="batch=2,length=4; batch=2,length=7").require()
    loaded = onnx.load(str(port / "model.onnx"), load_external_data=True)
    graph = loaded.graph
    last = graph.output[0].name
    for n in graph.node:
        n.output[:] = ["right" if o == last else o for o in n.output]
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array([4], np.int64), "four"),
            onnx.numpy_helper.from_array(np.array([1 << 40], np.int64), "end"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "one"),
            onnx.numpy_helper.from_array(np.array([0], np.int64), "zero"),
            onnx.numpy_helper.from_array(np.array(1.01, np.float32), "factor"),
        ]
    )
    extra = [
        node("Slice", "right zero four one", "front"),
        node("Slice", "right four end one", "back"),
        node("Mul", "back factor", "wrong"),
    ]
    graph.node.extend([*extra, onnx.helper.make_node("Concat", ["front", "wrong"], [last], axis=1, name="Concat")])
    onnx.save(loaded, str(port / "model.onnx"))
    manifest = json.loads((port / "port.json").read_text())
    _rehash(port, manifest)
    verdict = porting.validate(port, dynamic)
    failed = {c.name for c in verdict.checks if c.verdict != "pass"}
    assert failed == {"gear x [2, 7, 8]: relative error of y"}


def _rehash(port: Path, manifest: dict) -> None:
    import hashlib

    entry = next(f for f in manifest["files"] if f["path"] == "model.onnx")
    content = (port / "model.onnx").read_bytes()
    found = (port / "model.onnx").stat()
    entry |= {"size": found.st_size, "sha256": hashlib.sha256(content).hexdigest(), "mtime_ns": found.st_mtime_ns}
    (port / "port.json").write_text(json.dumps(manifest))


def test_without_sizes_there_is_no_handoff_and_it_says_so(dynamic: Path, tmp_path: Path) -> None:
    verdict = porting.port(dynamic, tmp_path / "m.port", "Ascend310P3").require()
    assert verdict.details["handoff"].startswith("no hand-off: x[0] batch, x[1] length left open")
    assert handoffs_of(tmp_path / "m.port") == []


def test_convert_hands_over_and_says_that_nothing_was_compared(dynamic: Path, tmp_path: Path) -> None:
    porting.convert(dynamic, tmp_path / "m.port", "Ascend310P3", gears="batch=1,length=4", cann="8.0.0")
    handoff = handoffs_of(tmp_path / "m.port")[0]
    assert handoff.name.startswith("Ascend310P3-8.0") and any("not compared" in note for note in handoff.manifest["notes"])
    assert any("was not forecast" in note for note in handoff.manifest["notes"])


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("cpu", {"gears": "batch=1"}, "not compiled with CANN"),
        ("cpu", {"host_cpu": "aarch64"}, "not compiled with CANN"),
        ("Ascend310P3", {"host_cpu": "arm"}, "unknown processor 'arm'"),
        ("Ascend310P3", {"gears": "batch=1"}, "left open"),
        ("Ascend310P3", {"gears": "batch=1,length=4; batch=1,length=4"}, "a gear comes twice"),
        ("Ascend310P3", {"gears": "batch=1,width=4"}, "no input has a free dimension 'width'"),
        ("Ascend310P3", {"gears": "batch=0,length=4"}, "no size"),
    ],
)
def test_what_cannot_be_meant(dynamic: Path, tmp_path: Path, target: str, options: dict[str, str], said: str) -> None:
    for command in (porting.port, porting.convert):
        with pytest.raises(UsageError, match=said):
            command(dynamic, tmp_path / "m.port", target, **options)
    assert not (tmp_path / "m.port").exists()


def test_gears_in_port_json_are_not_believed(dynamic: Path, tmp_path: Path) -> None:
    port = tmp_path / "m.port"
    porting.port(dynamic, port, "Ascend310P3", gears="batch=2,length=4; batch=2,length=7").require()
    manifest = json.loads((port / "port.json").read_text())
    for wrong in ({}, None, {**manifest["gears"], "kind": "fixed"}, {**manifest["gears"], "shapes": [{"z": [1]}]}):
        (port / "port.json").write_text(json.dumps({**manifest, "gears": wrong}))
        with pytest.raises(PortError):
            porting.open_port(port)


# --- language models and encoders ---------------------------------------------------------------------------------


def test_a_language_model_runs_in_pieces(llama: Tiny, tmp_path: Path) -> None:
    verdict = porting.port(llama.folder, tmp_path / "l.port", "Ascend910B3", gears=SEQUENCES).require()
    assert "gear of 4 tokens: relative error of logits" in names(verdict) and "gear of 16 tokens" in names(verdict)
    command = handoffs_of(tmp_path / "l.port")[0].command
    assert command.value("dynamic_dims") == "1;4;16" and "logits_to_keep" not in str(command.value("input_shape"))
    ids = np.random.default_rng(0).integers(0, 101, (1, 33))
    expected = llama.logits(ids)
    from porting.gear_runs import run_tokens

    with porting.load(tmp_path / "l.port") as session:
        state = session.new_state()
        assert state.capacity == 48
        got = np.concatenate([run_tokens(session, ids[:, :21], state), run_tokens(session, ids[:, 21:], state)], axis=1)
        assert np.abs(got - expected).max() < BOUND and state.length.tolist() == [33]
        with pytest.raises(InputError, match="no gear has the shapes"):
            session.run({"input_ids": ids[:, :3]}, state)
        with pytest.raises(InputError, match="a cache of 48"):
            run_tokens(session, ids[:, :16], state)
        state.length = state.length + 15 - 15
        with pytest.raises(InputError, match="the cache has 48 positions, and 49 are needed"):
            session.run({"input_ids": ids[:, :16]}, state)


def test_padding_that_is_counted_would_show(llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 4 of gear_runs.py broken: the length counts padding too, and the next piece sees it."""
    import porting.gear_runs as gear_runs

    porting.port(llama.folder, tmp_path / "l.port", "Ascend910B3", gears=SEQUENCES).require()
    right = gear_runs.pieces

    def wrong(length: int, filled: int, capacity: int, buckets: tuple[int, ...]) -> tuple[gear_runs.Piece, ...]:
        found = right(length, filled, capacity, buckets)
        return tuple(gear_runs.Piece(min(p.tokens + 1, p.bucket), p.bucket) for p in found)

    monkeypatch.setattr(gear_runs, "pieces", wrong)
    ids = np.random.default_rng(0).integers(0, 101, (1, 30))
    with porting.load(tmp_path / "l.port") as session:
        state = session.new_state()
        parts = [gear_runs.run_tokens(session, ids[:, a : a + 3], state)[:, :3] for a in range(0, 30, 3)]
    assert np.abs(np.concatenate(parts, axis=1) - llama.logits(ids)).max() > 1e-3


def test_generated_tokens_are_those_of_the_cpu_port(llama: Tiny, tmp_path: Path) -> None:
    from porting.generation.loop import generate_tokens
    from porting.generation.sampling import settings_for

    porting.convert(llama.folder, tmp_path / "cpu.port")
    porting.convert(llama.folder, tmp_path / "l.port", "Ascend910B3", gears=SEQUENCES)
    prompt = np.random.default_rng(1).integers(0, 101, 9).tolist()
    found = []
    for name in ("cpu.port", "l.port"):
        with porting.load(tmp_path / name) as session:
            found.append(list(generate_tokens(session, prompt, 30, settings_for({}))))
    assert found[0] == found[1] and len(found[0]) == 30
    with porting.load(tmp_path / "l.port") as session, pytest.raises(InputError, match="exceed"):
        list(generate_tokens(session, prompt, 41, settings_for({})))


def test_batches_of_a_language_model(llama: Tiny, tmp_path: Path) -> None:
    verdict = porting.port(
        llama.folder, tmp_path / "l.port", "Ascend910B3", gears="batch=2,sequence=1; batch=2,sequence=8"
    ).require()
    assert verdict.ok
    with porting.load(tmp_path / "l.port") as session:
        assert session.new_state().length.shape == (2,)
        with pytest.raises(InputError, match="made for 2 rows"):
            session.new_state(batch=3)


def test_an_encoder_with_three_sequence_gears(tmp_path: Path) -> None:
    make_encoder(tmp_path / "bert", "BertModel")
    gears = "batch=2,sequence=8; batch=2,sequence=16; batch=2,sequence=32"
    verdict = porting.port(tmp_path / "bert", tmp_path / "b.port", "Ascend310P3", gears=gears).require()
    for length in (8, 16, 32):
        assert f"gear input_ids [2, {length}]: " in names(verdict)
    assert handoffs_of(tmp_path / "b.port")[0].command.value("dynamic_dims") == "8,8,8;16,16,16;32,32,32"


def test_the_options_of_the_command_line(dynamic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from porting import cli

    def run(*options: str) -> int:
        with pytest.raises(SystemExit) as done:
            cli.main(["port", str(dynamic), "-o", str(tmp_path / "m.port"), "--force", "--quiet", *options])
        return int(str(done.value.code))

    assert run("--target", "Ascend310P3", "--dims", "2,4; 2,7", "--host-cpu", "aarch64") == 0
    assert "for the compiler: targets/Ascend310P3-any-aarch64" in capsys.readouterr().out
    assert run("--target", "Ascend310P3", "--batch", "1,2") == 2
    assert "axis 1 (length) of input 'x' is left open" in capsys.readouterr().err
    for option in ("--batch", "--dims", "--gears", "--image-size"):
        assert run("--target", "Ascend310P3", option, " ") == 2
        assert "says nothing" in capsys.readouterr().err
    assert run("--batch", "1") == 2
    assert "cpu is not compiled with CANN" in capsys.readouterr().err
