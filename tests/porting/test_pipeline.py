"""The main job end to end: what lies in a port afterwards, what is found before anything is written, and a real model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import OWN, Tiny, make

import porting
from porting.converters.checkpoints.open import open_checkpoint
from porting.errors import DeviceUnavailable, EvidenceUnavailable, InputError, UsageError
from porting.golden import Golden
from porting.port_folder import open_port
from porting.upstream import load_upstream
from porting.verdict import Verdict

LLAMA = "LlamaForCausalLM"
assert LLAMA in OWN


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("checkpoint") / "tiny", LLAMA)


def test_a_port_carries_its_evidence(tiny: Tiny, tmp_path: Path) -> None:
    verdict = porting.port(tiny.folder, tmp_path / "port", precision="int8")
    assert verdict.ok and verdict.reference == "upstream" and verdict.evidence_level == "hardware"
    evidence = tmp_path / "port" / "evidence"
    assert Verdict.from_json((evidence / "verdict.json").read_text()).to_dict() == verdict.to_dict()
    assert ElementTree.parse(evidence / "junit.xml").getroot().attrib["failures"] == "0"
    golden = Golden.load(evidence / "golden.json")
    assert golden.model.architecture == LLAMA and golden.precision == "fp32"
    assert verdict.details["port_sha256"] == open_port(tmp_path / "port").identity()
    assert verdict.details["tensors_used"] == len(load_file(tiny.folder / "model.safetensors"))
    assert verdict.details["again"] == f"porting validate {tmp_path / 'port'} --device cpu"
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_verdict_that_does_not_hold_is_kept_with_its_port(tiny: Tiny, tmp_path: Path) -> None:
    """int4 of random weights: the verdict says which quality limit it misses, and the port is there to be looked at."""
    verdict = porting.port(tiny.folder, tmp_path / "port", precision="int4")
    assert (verdict.verdict, verdict.exit_code) == ("fail", 1) and "quality" in verdict.reason
    assert all(c.verdict == "pass" for c in verdict.checks if not c.name.startswith("quality")), "it is right, and not good"
    kept = json.loads((tmp_path / "port" / "evidence" / "verdict.json").read_text())
    assert kept["verdict"] == "fail" and open_port(tmp_path / "port").precision == "int4"


def test_force_leaves_no_older_evidence(tiny: Tiny, tmp_path: Path) -> None:
    porting.port(tiny.folder, tmp_path / "port", precision="int8")
    porting.convert(tiny.folder, tmp_path / "port", precision="int4", force=True)
    assert not (tmp_path / "port" / "evidence").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cann": "8.5"}, UsageError, "not compiled with CANN"),
        ({"precision": "fp16"}, UsageError, "fp16"),
        ({"device": "cuda"}, DeviceUnavailable, "cuda"),
        ({"device": "cpi"}, UsageError, "cpi"),
        ({"against": "nothing.json"}, InputError, "no such golden"),
        ({"inputs": "nothing.npz"}, InputError, "No such file"),
    ],
)
def test_what_can_be_known_is_said_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], said: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        porting.port(tiny.folder, tmp_path / "port", **options)
    assert not os.listdir(tmp_path)


def test_a_reference_that_shows_nothing_ends_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(checkpoint: Any, architecture: str, cases: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.zeros((*ids.shape, 101), np.float32) for name, ids in cases.items()}

    monkeypatch.setattr("porting.reference.upstream_logits", constant)
    with pytest.raises(InputError, match="0 everywhere: these inputs show nothing"):
        porting.port(tiny.folder, tmp_path / "port")
    assert not os.listdir(tmp_path)


def test_an_architecture_that_upstream_lacks_needs_a_golden(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.delattr(transformers, LLAMA, raising=False)
    monkeypatch.setattr(transformers, "__getattr__", lambda name: (_ for _ in ()).throw(AttributeError(name)), raising=False)
    monkeypatch.setattr(transformers, LLAMA, None, raising=False)
    with pytest.raises(EvidenceUnavailable, match="has no LlamaForCausalLM"):
        porting.port(tiny.folder, tmp_path / "port")
    assert not os.listdir(tmp_path)


# --- a real model --------------------------------------------------------------------------------------------------

PROMPT = "The harbour was quiet before dawn."
NEW_TOKENS = 256


@pytest.mark.slow
def test_greedy_output_equals_upstreams_for_256_tokens(smollm2_folder: Path, tmp_path: Path) -> None:
    import torch

    port = porting.convert(smollm2_folder, tmp_path / "port")
    ours = porting.generate(port.path, PROMPT, max_new_tokens=NEW_TOKENS, chat=False, stop=())
    model = load_upstream(open_checkpoint(smollm2_folder), LLAMA)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json")).encode(PROMPT).ids
    with torch.inference_mode():
        theirs = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
    assert len(ours.token_ids) == NEW_TOKENS, f"it stopped by itself after {len(ours.token_ids)}: choose another prompt"
    assert list(ours.token_ids) == theirs


@pytest.mark.slow
def test_int8_holds_and_int4_says_which_limit_it_misses(smollm2_gguf: Path, tmp_path: Path) -> None:
    verdict = porting.port(smollm2_gguf, tmp_path / "int8", precision="int8")
    assert verdict.ok, verdict.line()

    golden = tmp_path / "int8" / "evidence" / "golden.json"
    verdict = porting.port(smollm2_gguf, tmp_path / "int4", precision="int4", against=golden)
    missed = [c.name for c in verdict.checks if c.verdict != "pass"]
    assert verdict.exit_code == 1 and missed and all(name.startswith("quality") for name in missed), verdict.to_json()
    assert "quality" in verdict.reason and np.isfinite(verdict.checks[-1].value)


@pytest.mark.slow
def test_fp32_is_upstreams_to_rounding(smollm2_folder: Path, tmp_path: Path) -> None:
    verdict = porting.port(smollm2_folder, tmp_path / "fp32")
    assert verdict.ok, verdict.line()
    closest = next(c for c in verdict.checks if c.name.startswith("fidelity to the reference"))
    assert closest.value < 1e-5, "SmolLM2 was measured at 2e-6"
