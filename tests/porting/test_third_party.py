"""A third person's architecture and backend, installed beside, work without a change here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "third_party" / "gpt2_and_shadow"
SIZES = {"vocab_size": 103, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 6, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed; built from a copy, for setuptools writes beside its source."""
    folder = tmp_path_factory.mktemp("third")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install, str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    path = [str(folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded GPT-2 as transformers saves it."""
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if ".ln_" in name and name.endswith("weight") else 0.2 * noise
    path = tmp_path_factory.mktemp("checkpoint") / "gpt2"
    model.save_pretrained(path)
    return path


COMMANDS = """
import contextlib, io, json, sys
from porting.cli import _exit_code
found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = _exit_code([*arguments, "--json", "--quiet"])
    found.append([code, json.loads(out.getvalue())])
print(json.dumps(found))
"""


def porting(environment: dict[str, str], *commands: list[object]) -> list[tuple[int, dict[str, Any]]]:
    """(exit code, what --json gives) of each command, in one process."""
    listed = json.dumps([[str(a) for a in c] for c in commands])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, listed], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_the_package_the_model_is_not_covered(folder: Path, tmp_path: Path) -> None:
    inspected, converted = porting(dict(os.environ), ["inspect", folder], ["convert", folder, "-o", tmp_path / "port"])
    assert inspected[0] == 0 and not inspected[1]["covered"] and "GPT2LMHeadModel" in inspected[1]["reason"]
    assert converted[0] == 2 and "'GPT2LMHeadModel' is not covered" in converted[1]["error"]["what"]


def test_with_it_everything_works(environment: dict[str, str], folder: Path, tmp_path: Path) -> None:
    port = tmp_path / "port"
    np.savez(tmp_path / "x.npz", input_ids=np.arange(7)[None])
    x, ours, theirs = tmp_path / "x.npz", tmp_path / "ours.npz", tmp_path / "theirs.npz"
    found = porting(
        environment,
        ["inspect", folder],
        ["port", folder, "-o", port, "--device", "shadow:1,threads=1"],
        ["validate", port, "--device", "shadow"],
        ["run", port, "--device", "shadow", "--input", x, "-o", theirs],
        ["run", port, "--device", "cpu", "--input", x, "-o", ours],
        ["run", port, "--device", "shadw", "--input", x, "-o", tmp_path / "never"],
        ["run", port, "--device", "shadow:7", "--input", x, "-o", tmp_path / "never"],
        ["doctor"],
    )
    (_, inspected), (_, ported), (_, validated), (_, run), _, (_, misspelt), (_, too_many), (_, doctor) = found
    assert [code for code, _ in found[:7]] == [0, 0, 0, 0, 0, 2, found[6][0]] and found[6][0] in (2, 3), found
    assert inspected["covered"] and inspected["architecture"] == "GPT2LMHeadModel"
    assert (ported["verdict"], ported["reference"], ported["device"]) == ("pass", "upstream", "shadow:1,threads=1")
    assert len(ported["checks"]) >= 6, "weights, placement, fidelity, chunks, quality twice, reference"
    placed = next(c for c in ported["checks"] if "another device" in c["name"])
    assert placed["value"] == 0 and placed["where"].endswith("nodes on shadow")
    assert (validated["verdict"], validated["reference"]) == ("pass", "golden")
    assert run["outputs"] == {"logits": [1, 7, 103]}
    np.testing.assert_array_equal(np.load(theirs)["logits"], np.load(ours)["logits"])
    assert "did you mean 'shadow'" in misspelt["error"]["next"] and "7" in too_many["error"]["what"]
    assert "shadow" in json.dumps(doctor)

    # the same package with another epsilon in its maths fails like anything else
    shutil.copytree(environment["PYTHONPATH"].split(os.pathsep)[0], tmp_path / "site")
    module = tmp_path / "site" / "porting_gpt2.py"
    module.write_text(module.read_text().replace("epsilon=c.layer_norm_epsilon", "epsilon=1e-2"))
    wrong = {**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    golden = port / "evidence" / "golden.json"
    ((code, verdict),) = porting(wrong, ["port", folder, "-o", tmp_path / "wrong", "--against", golden])
    assert code == 1 and verdict["verdict"] == "fail"
    failing = {c["name"].partition(":")[0] for c in verdict["checks"] if c["verdict"] == "fail"}
    assert "fidelity to the reference" in failing and "fidelity" not in failing, "its own graph agrees with itself"
