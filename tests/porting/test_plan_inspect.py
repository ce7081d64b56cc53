"""What `inspect` and `plan` say before anything is read or written, against sums by hand and against what then happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import OWN, SIZES, make

import porting
from porting.conversion import convert
from porting.errors import OutOfResources, UnsupportedModel, UsageError
from porting.forecast import plan
from porting.inspection import inspect

LLAMA, MISTRAL, QWEN2, QWEN3 = OWN
V, E, F, L = (SIZES[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"))
KV = E // 6 * 2
MATRICES = L * (E * E + 2 * KV * E + E * E + 3 * E * F)  # q, k, v, o; gate, up, down
NORMS = (2 * L + 1) * E
EMBEDDING = V * E


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoint") / "tiny", LLAMA).folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make(tmp_path_factory.mktemp("checkpoint") / "tied", LLAMA, tie_word_embeddings=True).folder
    (made / "chat_template.jinja").write_text("{# carried over, and counted #}" * 1000)
    return made


def blocks(rows: int, columns: int) -> int:
    return rows * -(-columns // 32)


def test_inspect_counts_what_is_there(folder: Path, tied: Path) -> None:
    found = inspect(folder)
    parameters = MATRICES + NORMS + 2 * EMBEDDING
    assert (found["parameters"], found["tensors"], found["bytes"]) == (parameters, 9 * L + 3, 4 * parameters)
    assert found["dtypes"] == {"F32": {"tensors": 9 * L + 3, "parameters": parameters, "bytes": 4 * parameters}}
    assert found["covered"] and found["architecture"] == LLAMA and found["format"] == "safetensors"
    assert found["weights_bytes"]["fp32"] == 4 * parameters and found["weights_bytes"]["fp16"] == 2 * parameters
    assert found["config"]["hidden_size"] == E and found["side_files"] == ["generation_config.json"]
    assert {f["name"]: f["size"] for f in found["files"]}["model.safetensors"] > 4 * parameters
    assert inspect(tied)["parameters"] == parameters - EMBEDDING
    assert "Ascend910B3" in found["fits"]["fp32"], "anything holds this"
    json.dumps(found, allow_nan=False)


def test_inspect_says_what_is_not_covered(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "odd"
    copy.mkdir()
    os.link(folder / "model.safetensors", copy / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for changes, said in (
        ({"architectures": ["OddForCausalLM"]}, "OddForCausalLM"),
        ({"attention_trick": 1}, "attention_trick"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        found = inspect(copy)
        assert not found["covered"] and said in found["reason"]
        with pytest.raises(UnsupportedModel, match=said):
            plan(copy)


@pytest.mark.parametrize("weights", ["link", "copy"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("which", ["folder", "tied"])
def test_plan_forecasts_the_bytes_that_convert_writes(
    which: str, precision: str, weights: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source: Path = request.getfixturevalue(which)
    forecast = plan(source, "cpu", precision, weights=weights)
    destination = source.parent / f"{precision}-{weights}"  # beside it: a hard link is possible
    port = convert(source, destination, precision=precision, weights=weights)
    files = port.manifest["files"]
    written = sum(f["size"] for f in files if not f["linked"])
    padding = 64 * (3 * 9 * L + 9)  # between tensors, for alignment
    assert 0 <= written - forecast["written_bytes"] <= padding + 2048  # and longer offsets in model.onnx
    assert forecast["linked_bytes"] == port.manifest["weights"]["linked_bytes"]
    assert (forecast["linked_bytes"] > 0) == (precision == "fp32" and weights == "link")


def test_weight_bytes_by_hand(tied: Path) -> None:
    layer = blocks(E, E) + 2 * blocks(KV, E) + blocks(E, E) + 2 * blocks(F, E) + blocks(E, F)
    exact = {
        "fp32": 4 * (MATRICES + NORMS + EMBEDDING),
        "int8": MATRICES + EMBEDDING + 4 * (L * layer + blocks(V, E)) + 4 * (NORMS + EMBEDDING),
    }
    found = inspect(tied)["weights_bytes"]
    assert found["fp32"] == exact["fp32"]
    # the table counts whole blocks of 32; rows of 48 and 80 end in half ones, which are padded
    assert exact["int8"] * 0.9 < found["int8"] < exact["int8"]


def test_plan_knows_the_targets(folder: Path) -> None:
    found = plan(folder, "ascend", "fp16")
    assert found["target"] == "Ascend910B3" and found["cards_at_least"] == 1 and found["device_memory_bytes"] == 64 << 30
    assert "'ascend' stands for Ascend910B3" in found["notes"]
    assert any("not written in fp16 by this version" in n for n in found["notes"])
    assert any("no bf16" in n for n in plan(folder, "ascend910b")["notes"])
    assert plan(folder, "cuda")["cards_at_least"] is None


def test_plan_takes_the_precisions_that_convert_takes(folder: Path) -> None:
    assert plan(folder, precision="source")["precision"] == "fp32"
    with pytest.raises(UsageError, match="no forecast for precision"):
        plan(folder, precision="fp64")
    with pytest.raises(UsageError, match="hard"):
        plan(folder, weights="hard")


def test_max_ram_refuses_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    needed = plan(folder)["peak_ram_bytes"]
    with pytest.raises(OutOfResources, match="forecast to need") as error:
        convert(folder, tmp_path / "port", max_ram=needed - 1)
    assert error.value.exit_code == 4 and not os.listdir(tmp_path)
    convert(folder, tmp_path / "port", max_ram=needed)


# --- a real model --------------------------------------------------------------------------------------------------

MEASURED = """
import json, sys
from porting.conversion import convert
from porting.verdict import peak_rss_of_this_process
port = convert(sys.argv[1], sys.argv[2], "cpu", sys.argv[3], weights=sys.argv[4])
print(json.dumps({"peak": peak_rss_of_this_process(), "written": sum(f["size"] for f in port.manifest["files"] if not f["linked"])}))
"""


def measured(source: Path, destination: Path, precision: str, weights: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(source), str(destination), precision, weights],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("container", ["gguf", "folder"])
def test_the_forecast_is_honest(container: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Within a fifth of what a process of its own then takes: the largest resident set, and the bytes on the disk."""
    source: Path = request.getfixturevalue(f"smollm2_{container}")
    forecast = plan(source, "cpu", precision, weights="copy")
    found = measured(source, tmp_path / "port", precision, "copy")
    assert found["peak"] == pytest.approx(forecast["peak_ram_bytes"], rel=0.2)
    assert found["written"] == pytest.approx(forecast["written_bytes"], rel=0.01)


@pytest.mark.slow
def test_numbers_of_a_known_model(smollm2_gguf: Path) -> None:
    """SmolLM2-135M: 49152 x 576 embedding, tied; 30 layers of 9 heads, 3 of them with keys; 1536 inside."""
    layer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536 + 2 * 576
    parameters = 49152 * 576 + 30 * layer + 576
    found = inspect(smollm2_gguf)
    assert found["parameters"] == parameters == 134_515_008
    assert found["dtypes"]["Q8_0"]["bytes"] == 49152 * 576 // 32 * 34
    assert found["dtypes"]["Q4_1"]["bytes"] == found["dtypes"]["Q4_1"]["parameters"] // 32 * 20
    assert found["bytes"] == sum(d["bytes"] for d in found["dtypes"].values())


def test_plan_is_the_public_one(folder: Path) -> None:
    assert porting.plan(folder) == plan(folder) and porting.inspect(folder) == inspect(folder)
    assert np.isfinite(plan(folder)["seconds"])
