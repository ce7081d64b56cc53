"""Every example is run as its reader would run it: as a program, on a tiny checkpoint (quick) or on SmolLM2 (slow)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import porting

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an example; its output, whatever its exit code."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def shell(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines of a CI file with this environment's commands first in PATH, as a CI does: the first failure ends it."""
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-e", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def tiny_port(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as an fp32 port."""
    return porting.convert(tiny_checkpoint, tmp_path_factory.mktemp("port") / "tiny.port").path


def test_port_an_llm(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = run("port_an_llm.py", tiny_checkpoint, "out.port", "--precision", "fp32", "--prompt", "Hello", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("PASS out.port on cpu")
    assert "fidelity" in made.stdout
    assert porting.open_port(tmp_path / "out.port").precision == "fp32"


def test_port_an_llm_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    refused = run("port_an_llm.py", "nothing-here", "out.port", cwd=tmp_path)
    assert refused.returncode == 1
    assert "nothing-here" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_use_a_backend(tiny_port: Path, tmp_path: Path) -> None:
    used = run("use_a_backend.py", tiny_port, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert "nodes run on cpu" in used.stdout
    assert "numpy in, numpy out: float32 (2, 12, 260)" in used.stdout
    assert "torch in, torch out: Tensor (2, 12, 260)" in used.stdout
    difference = float(used.stdout.partition("step by step: ")[2].split()[0])
    assert difference < 1e-4  # see BOUND in tests/tiny.py, here relative to logits of about 8


def test_plain_onnxruntime_says_the_same_as_generate(tiny_port: Path, tmp_path: Path) -> None:
    prompt = "The capital of France is"
    plain = run("plain_onnxruntime.py", tiny_port, prompt, "--max-new-tokens", 24, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == prompt + porting.generate(tiny_port, prompt, chat=False, max_new_tokens=24).text + "\n"


def test_plain_onnxruntime_imports_nothing_of_ours(tiny_port: Path) -> None:
    code = f"""
import runpy, sys
from pathlib import Path
example = runpy.run_path({str(EXAMPLES / "plain_onnxruntime.py")!r})
print(example["greedy"](Path({str(tiny_port)!r}), [1, 2, 3], 4))
assert not [name for name in sys.modules if name.partition(".")[0] == "porting"]
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ["github_workflow.yml", "gitlab_ci.yml"])
def test_ci_file_validates_a_port(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The steps of the file pass on a good golden, fail on a golden of other weights, and leave JUnit behind for both."""
    variables, install, script, kept = ci_file(name)
    assert install == ['pip install "./${PORTING}[cpu,gguf]"']
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    porting.record(tiny_checkpoint, tmp_path / "golden.json")
    passed = shell(script, tmp_path, **variables)
    assert passed.returncode == 0, passed.stderr
    assert [suite(path)["failures"] for path in tmp_path.glob(kept)] == ["0", "0"]

    shutil.rmtree(tmp_path / "build")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.self_attn.q_proj.weight"] *= np.float32(1.05)  # five per cent in one of 21 tensors
    save_file(tensors, weights, metadata={"format": "pt"})
    failed = shell(script, tmp_path, **variables)
    assert failed.returncode == 1, failed.stderr
    assert [int(suite(path)["failures"]) > 0 for path in tmp_path.glob(kept)] == [True]


def ci_file(name: str) -> tuple[dict[str, str], list[str], str, str]:
    """Variables, the lines that install, the other lines, and the pattern of the JUnit files that are kept."""
    content = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    if name.startswith("github"):
        (job,) = content["jobs"].values()
        lines = [line for step in job["steps"] if "run" in step for line in step["run"].strip().splitlines()]
        (upload,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
        assert upload["if"] == "always()"
        variables, kept = content["env"], upload["with"]["path"].splitlines()[0]
    else:
        job = content["numerics of the port"]
        lines = [*job["before_script"], *job["script"]]
        assert job["artifacts"]["when"] == "always"
        variables, kept = job["variables"], job["artifacts"]["reports"]["junit"]
    installs = [line for line in lines if line.startswith("pip ")]
    return dict(variables), installs, "\n".join(line for line in lines if line not in installs), kept


def suite(path: Path) -> dict[str, str]:
    """Attributes of a JUnit file's root."""
    return ElementTree.parse(path).getroot().attrib


@pytest.mark.slow
def test_recording_the_golden_again_gives_the_same(smollm2_gguf: Path, tmp_path: Path) -> None:
    """What lies in examples/smollm2 is what transformers computes here, but for the rounding of float32.

    30 layers of six products of length 576 and one of 1536, and the head. A count sketch of N buckets estimates a norm with a
    relative standard deviation of sqrt(1 / 2N): four of them are allowed for.
    """
    from porting.golden import Golden
    from porting.numerics.bounds import UNIT_ROUNDOFF, rounding_bound

    bound = rounding_bound(30 * [576, 576, 576, 576, 576, 576, 1536], UNIT_ROUNDOFF["float32"], residual_blocks=60, final=[576])
    golden = Golden.load(EXAMPLES / "smollm2" / "golden.json")
    again = porting.record(smollm2_gguf, tmp_path / "golden.json")
    assert again.model == golden.model
    assert set(again.cases) == set(golden.cases)
    for name, case in golden.cases.items():
        there = again.cases[name]
        assert np.array_equal(there.inputs["input_ids"], case.inputs["input_ids"])
        old, new = case.outputs["logits"], there.outputs["logits"]
        slack = 1 + 4 * (2 * len(old.buckets)) ** -0.5
        assert np.linalg.norm(old.buckets - new.buckets) / old.l2_norm <= bound.value * slack
        assert np.array_equal(old.top_ids[:, 0], new.top_ids[:, 0])


@pytest.mark.slow
def test_examples_on_a_trained_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    golden = EXAMPLES / "smollm2" / "golden.json"
    made = run("port_an_llm.py", smollm2_gguf, "smollm2.port", "--against", golden, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith("The capital of France is Paris.\n")
    shown = re.findall(r"^ PASS   (.+?)  ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = re.findall(r"^  pass  (.*), bound ", made.stdout, re.MULTILINE)
    assert len(shown) == len(names)
    assert all(name.startswith(start) for start, name in zip(shown, names, strict=True)), "README shows another verdict"
    plain = run("plain_onnxruntime.py", "smollm2.port", "The capital of France is", "--max-new-tokens", 2, cwd=tmp_path)
    assert plain.stdout.startswith("The capital of France is Paris.")
