"""`porting bench`: one run of a port that is no language model, beside another port or the untouched file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from tiny import make

import porting
from porting.bench import bench
from porting.errors import InputError, UsageError
from porting.graph_bench import in_turn
from tests.backends.test_recurrent_state import recurrent

TWICE = '<ir_version: 8, opset_import: ["": 17]> twice (float[batch,features] x, int64[batch] k) => (float[batch,features] y) { y = Add(x, x) z = Neg(k) }'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file and its port, of a plain graph and of an LSTM, and the port of a language model."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "twice.onnx").write_bytes(onnx.parser.parse_model(TWICE).SerializeToString())
    lstm = recurrent("LSTM", 1)
    assert isinstance(lstm.model, bytes)
    (folder / "lstm.onnx").write_bytes(lstm.model)
    porting.convert(folder / "twice.onnx", folder / "twice.port")
    porting.convert(folder / "lstm.onnx", folder / "lstm.port", state={"h": "hn", "c": "cn"})
    make(folder / "llama", "LlamaForCausalLM")
    porting.convert(folder / "llama", folder / "llama.port")
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "porting", "bench", *map(str, arguments), "--quiet"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["twice", "lstm"])
def test_beside_the_untouched_file(folder: Path, name: str) -> None:
    report = bench(folder / f"{name}.port", "cpu,threads=1", compare=folder / f"{name}.onnx", rounds=3)
    assert report["schema"] == "porting.bench/1" and report["device"] == "cpu,threads=1"
    assert report["evidence_level"] == "hardware"
    for side, called in (("port", f"{name}.port"), ("compare", f"{name}.onnx")):
        found = report[side]
        assert found["name"] == called
        assert 0 < found["run_ms"]["p50"] <= found["run_ms"]["p90"]
        assert found["runs_per_second"] == pytest.approx(1e3 / found["run_ms"]["p50"], rel=0.05)
    ratio = report["run_speed_ratio"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert report["peak_rss_bytes"] > 1 << 20


def test_times_that_are_no_npus_say_so(folder: Path) -> None:
    porting.convert(folder / "twice.onnx", folder / "npu.port", "Ascend910B3")
    done = command(folder / "npu.port", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    assert "evidence: static: these times say nothing of an NPU's" in done.stdout


def test_sizes_are_the_users(folder: Path) -> None:
    report = bench(folder / "twice.port", rounds=1, sizes={"features": 77})
    assert report["inputs"]["x"][1] == 77
    assert "compare" not in report and "run_speed_ratio" not in report
    with pytest.raises(UsageError, match="no input has a dimension 'feature'") as caught:
        bench(folder / "twice.port", rounds=1, sizes={"feature": 77})
    assert "features" in caught.value.next


def test_what_cannot_be_compared(folder: Path) -> None:
    with pytest.raises(InputError, match=r"twice.onnx does not take the inputs of the port"):
        bench(folder / "lstm.port", compare=folder / "twice.onnx", rounds=1)
    with pytest.raises(InputError, match="no such file"):
        bench(folder / "lstm.port", compare=folder / "none.onnx", rounds=1)
    with pytest.raises(UsageError, match="language model and something else"):
        bench(folder / "lstm.port", compare=folder / "llama.port", rounds=1)
    with pytest.raises(UsageError, match="language model and something else"):
        bench(folder / "llama.port", compare=folder / "lstm.onnx", rounds=1)
    with pytest.raises(UsageError, match="measured on the CPU, not on null"):
        bench(folder / "twice.port", "null", compare=folder / "twice.onnx", rounds=1)
    with pytest.raises(UsageError, match="has no --size"):
        bench(folder / "llama.port", rounds=1, sizes={"batch": 1})


def test_a_language_model_reports_as_before(folder: Path) -> None:
    report = bench(folder / "llama.port", compare=folder / "llama.port", prompt_tokens=4, new_tokens=2, rounds=1)
    assert {"prefill_tokens_per_second", "decode_ms", "decode_tokens_per_second"} <= set(report["port"])
    assert {"decode_speed_ratio", "prefill_speed_ratio"} <= set(report)


def test_the_command(folder: Path) -> None:
    port, file = folder / "twice.port", folder / "twice.onnx"
    done = command(port, "--compare", file, "--rounds", 2, "--size", "batch=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inputs"]["k"] == [3]
    text = command(port, "--compare", file, "--rounds", 2)
    assert text.returncode == 0 and "speed, first to second" in text.stdout and "inputs: x [" in text.stdout
    for wrong in ("batch", "batch=", "=3", "batch=-1"):
        done = command(port, "--size", wrong)
        assert done.returncode == 2 and "not a size" in done.stderr


def test_blocks_take_turns() -> None:
    order: list[str] = []
    samples = in_turn([lambda: order.append("a"), lambda: order.append("b")], rounds=3)
    assert [len(s) for s in samples] == [3, 3]
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b", "a", "b", "a", "b"]  # ab to begin with, then ba ab ba ab: neighbours merge
