"""What counts as a reference: upstream, a golden of this very model, never ourselves; and what must show something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import OWN, make

import porting
from porting.backends.null import NullSession
from porting.conversion import convert
from porting.converters.checkpoints.open import open_checkpoint
from porting.converters.checkpoints.port import PortCheckpoint
from porting.errors import EvidenceUnavailable, InputError, PortError, RuntimeFailed, UsageError
from porting.evidence import placement_check
from porting.fidelity import _cuts
from porting.golden import Golden, GoldenCase
from porting.identity import config_hash, model_facts
from porting.inputs import cases_of
from porting.language_validation import judge
from porting.numerics.sketch import sketch
from porting.port_folder import Port, open_port
from porting.recording import golden_of, identity_of, record
from porting.reference import GoldenReference, UpstreamReference
from porting.validation import validate
from porting.weights import source_stream

LLAMA, MISTRAL, QWEN2, QWEN3 = OWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoint") / "llama", LLAMA).folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> UpstreamReference:
    checkpoint = open_checkpoint(folder)
    made = UpstreamReference(checkpoint, cases_of(checkpoint.config, None, None))
    made.prepare()
    return made


@pytest.fixture(scope="module")
def golden(folder: Path, reference: UpstreamReference) -> Golden:
    return golden_of(reference, identity_of(reference.checkpoint, LLAMA), "fp32", "cpu")


@pytest.fixture(scope="module")
def port(folder: Path) -> Port:
    return convert(folder, folder.parent / "fp32")


@pytest.fixture(scope="module")
def golden_file(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    golden.save(path)
    return path


def verdict_with(golden: Golden, port: Port) -> Any:
    return judge(port, GoldenReference(golden, "golden.json"), "cpu")


# --- goldens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_golden_stands_for_upstream(precision: str, folder: Path, golden: Golden, tmp_path: Path) -> None:
    verdict = verdict_with(golden, convert(folder, tmp_path / precision, precision=precision))
    assert verdict.ok and verdict.reference == "golden", verdict.line()
    assert any("lower bound" in c.name for c in verdict.checks)


def test_a_golden_sees_other_weights(folder: Path, golden: Golden, tmp_path: Path) -> None:
    other = make(tmp_path / "other", LLAMA).folder
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= np.float32(1.01)
    save_file(tensors, other / "model.safetensors")
    verdict = verdict_with(golden, convert(other, tmp_path / "port"))
    assert verdict.verdict == "fail" and "to the reference" in verdict.to_json()


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        (MISTRAL, {}, "MistralForCausalLM"),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}, "config"),
        (LLAMA, {"num_hidden_layers": 1}, "config"),
        (LLAMA, {"rms_norm_eps": 1e-6}, "config"),
    ],
)
def test_a_golden_of_another_model_is_refused(
    architecture: str, changes: dict[str, Any], named: str, golden: Golden, tmp_path: Path
) -> None:
    other = convert(make(tmp_path / "other", architecture, **changes).folder, tmp_path / "port")
    with pytest.raises(InputError, match=f"another model.*{named}"):
        verdict_with(golden, other)


def test_a_checkpoint_of_another_config_is_refused_by_what_differs(port: Port, tmp_path: Path) -> None:
    other = make(tmp_path / "other", LLAMA, intermediate_size=96).folder
    with pytest.raises(InputError, match="intermediate_size is 80 in the port and 96 in the reference"):
        validate(port.path, other)


def test_a_checkpoint_of_the_same_config_and_other_weights_fails(port: Port, folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", LLAMA).folder
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += np.float32(1e-6)
    save_file(tensors, other / "model.safetensors")
    verdict = validate(port.path, other)
    assert verdict.verdict == "fail" and "model.layers.1.mlp.down_proj.weight" in verdict.reason


def test_a_golden_of_a_port_is_no_evidence(port: Port, tmp_path: Path) -> None:
    record(port.path, tmp_path / "golden.json")
    verdict = validate(port.path, tmp_path / "golden.json")
    assert (verdict.reference, verdict.verdict, verdict.exit_code) == ("self", "fail", 1)
    assert all(c.verdict == "pass" for c in verdict.checks)


def test_a_port_is_never_evidence_for_itself(port: Port) -> None:
    verdict = validate(port.path, port.path)
    assert (verdict.reference, verdict.verdict) == ("self", "fail") and "itself" in verdict.reason


def test_the_golden_inside_a_port_is_used_by_default(folder: Path, tmp_path: Path) -> None:
    first = porting.port(folder, tmp_path / "port", precision="int8")
    assert first.ok and first.reference == "upstream", first.line()
    again = validate(tmp_path / "port")
    assert again.ok and again.reference == "golden"
    assert json.loads((tmp_path / "port/evidence/verdict.json").read_text())["verdict"] == "pass"


def test_nothing_to_compare_with(port: Port) -> None:
    with pytest.raises(EvidenceUnavailable, match="carries no golden") as error:
        validate(port.path)
    assert error.value.exit_code == 3


def test_inputs_do_not_go_with_a_golden(port: Port, golden_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones((1, 3), np.int64))
    with pytest.raises(UsageError, match="own inputs"):
        validate(port.path, golden_file, inputs=tmp_path / "x.npz")


# --- a reference that shows nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "holds NaN"), (1.5, "1.5 everywhere"), (np.inf, "everywhere: these inputs show nothing")]
)
def test_an_uninformative_reference_is_an_error(value: float, what: str, folder: Path, port: Port) -> None:
    checkpoint = open_checkpoint(folder)
    made = UpstreamReference(checkpoint, cases_of(checkpoint.config, None, None))
    made._run = lambda: {n: np.full((*ids.shape, 101), value, np.float32) for n, ids in made.cases.items()}  # type: ignore
    with pytest.raises(InputError, match=what):
        judge(port, made, "cpu")


def test_no_cases_are_an_error(folder: Path, port: Port) -> None:
    with pytest.raises(InputError, match="no case has two positions"):
        judge(port, UpstreamReference(open_checkpoint(folder), {}), "cpu")


def test_a_golden_without_positions_or_with_another_number_of_them(golden: Golden, port: Port) -> None:
    name, case = next(iter(golden.cases.items()))
    for ids, what in (
        (np.zeros((1, 0), np.int64), "no logits that belong to them"),
        (case.inputs["input_ids"][:, :-1], "no logits that belong to them"),
        (case.inputs["input_ids"] + 101, "outside the vocabulary"),
        (case.inputs["input_ids"].astype(np.int32), "token ids"),
    ):
        with pytest.raises(InputError, match=what):
            verdict_with(replace(golden, cases={name: GoldenCase({"input_ids": ids}, case.outputs)}), port)


def test_a_golden_of_one_position_shows_no_cache(golden: Golden, port: Port) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 1, 101), np.float32)
    case = GoldenCase({"input_ids": np.ones((1, 1), np.int64)}, {"logits": sketch(logits, top_k=4)})
    with pytest.raises(InputError, match="two positions"):
        verdict_with(replace(golden, cases={"one": case}), port)


def test_a_vocabulary_of_another_size_in_a_golden(golden: Golden, port: Port) -> None:
    ids = np.array([[1, 2, 3]], np.int64)
    logits = np.random.default_rng(0).standard_normal((1, 3, 77), np.float32)
    case = GoldenCase({"input_ids": ids}, {"logits": sketch(logits, top_k=4)})
    with pytest.raises(InputError, match="expected float32"):
        verdict_with(replace(golden, cases={"other": case}), port)


# --- the port that is judged ---------------------------------------------------------------------------------------


def test_a_changed_byte_is_refused_whatever_the_time_stamp_says(folder: Path, golden_file: Path, tmp_path: Path) -> None:
    port = convert(folder, tmp_path / "port", precision="int8")
    path = port.path / "weights" / "weights.bin"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_port(port.path)  # opening compares sizes and times; evidence needs more
    with pytest.raises(PortError, match=r"weights\.bin should have sha256"):
        validate(port.path, golden_file)


def test_a_weight_that_the_port_does_not_hold_is_infinitely_far_off(port: Port, folder: Path) -> None:
    held, source = PortCheckpoint(port), open_checkpoint(folder)
    name = "model.norm.weight"
    assert held.error_in_half_steps(name, source_stream(source, name)) == 0
    del held._raw[name]
    assert held.error_in_half_steps(name, source_stream(source, name)) == float("inf")
    other = source_stream(source, "model.layers.0.mlp.up_proj.weight")
    assert held.error_in_half_steps("model.embed_tokens.weight", other) == float("inf"), "another shape"


def test_a_device_that_computes_nothing_never_passes(port: Port, golden_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeFailed, match="null cannot know"):
        validate(port.path, golden_file, "null")
    monkeypatch.setattr(
        NullSession, "run", lambda self, feeds, state=None: {"logits": np.zeros((*feeds["input_ids"].shape, 101), np.float32)}
    )
    verdict = validate(port.path, golden_file, "null")
    assert (verdict.verdict, verdict.evidence_level, verdict.exit_code) == ("fail", "simulated", 1)
    with pytest.raises(EvidenceUnavailable, match="null gives simulated evidence of a port for cpu, hardware is required"):
        validate(port.path, golden_file, "null", require_level="hardware")
    with pytest.raises(UsageError, match="no evidence level"):
        validate(port.path, golden_file, require_level="hearsay")


def test_placement_that_nobody_states_is_undecided(port: Port) -> None:
    class Silent:
        class device:
            name = "odd"

        program = port.program()
        placement: Mapping[str, str] = {}

    assert placement_check(Silent()).verdict == "error"  # type: ignore[arg-type]
    Silent.placement = {"a": "odd:0", "b": "cpu"}
    found = placement_check(Silent())  # type: ignore[arg-type]
    assert found.verdict == "fail" and "b on cpu" in found.where


def test_a_port_that_is_no_language_model(port: Port, golden: Golden) -> None:
    manifest = {**port.manifest, "inputs": [], "state": {}, "defaults": {}}
    with pytest.raises(InputError, match="no language model"):
        verdict_with(golden, Port(port.path, manifest))


def test_batches_of_several_rows(port: Port, folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "x.npz", pair=rng.integers(0, 101, (3, 19)), short=rng.integers(0, 101, (1, 2), np.uint16))
    verdict = validate(port.path, folder, inputs=tmp_path / "x.npz")
    assert verdict.ok and verdict.details["positions"] == 59


def test_every_run_in_chunks_has_a_past() -> None:
    for length in range(2, 70):
        cuts = _cuts(length)
        assert len(cuts) > 1, "one run would compare a thing with itself"
        assert [b for _, b in cuts[:-1]] == [a for a, _ in cuts[1:]] and cuts[0][0] == 0 and cuts[-1][1] == length
        assert cuts[-1][1] - cuts[-1][0] == 1, "generation goes one by one"


# --- which model a config describes --------------------------------------------------------------------------------

FOLDER_CONFIG = {
    "architectures": [LLAMA],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": 99,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "use_cache": True,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 2,
}
SAME = {
    "numbers of another kind": {"rope_theta": 500000},
    "defaults spelled out": {"num_key_value_heads": 4, "head_dim": 16, "hidden_act": "silu"},
    "the newer spelling of rope": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}},
    "another length, which nothing looks at": {"max_position_embeddings": 131072},
    "no window, said otherwise": {"sliding_window": None, "use_sliding_window": None, "layer_types": ["full_attention"] * 2},
    "what is no maths": {"torch_dtype": "float32", "eos_token_id": 7},
}
DIFFERENT = {
    "a size": {"hidden_size": 128},
    "the base": {"rope_theta": 10000},
    "epsilon": {"rms_norm_eps": 1e-6},
    "a scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "a window": {"use_sliding_window": True, "max_window_layers": 0},
    "key heads": {"num_key_value_heads": 2},
    "a key that nobody knows": {"logit_trick": 3},
}


@pytest.mark.parametrize("change", SAME)
def test_two_containers_of_one_model_are_one(change: str) -> None:
    assert model_facts({**FOLDER_CONFIG, **SAME[change]}) == model_facts(FOLDER_CONFIG)
    assert config_hash({**FOLDER_CONFIG, **SAME[change]}) == config_hash(FOLDER_CONFIG)


@pytest.mark.parametrize("change", DIFFERENT)
def test_another_model_is_another(change: str) -> None:
    assert config_hash({**FOLDER_CONFIG, **DIFFERENT[change]}) != config_hash(FOLDER_CONFIG)


def test_a_golden_of_a_folder_judges_a_port_of_a_gguf(tmp_path: Path) -> None:
    """Llama 3 in GGUF: its rope scaling is a tensor of divisors, which becomes a constant of the graph, and the port still knows it."""
    gguf = pytest.importorskip("gguf")
    source = make(
        tmp_path / "folder",
        LLAMA,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    write_gguf(gguf, source.folder, tmp_path / "model.gguf")
    record(source.folder, tmp_path / "golden.json")
    verdict = porting.port(tmp_path / "model.gguf", tmp_path / "port", against=tmp_path / "golden.json")
    assert verdict.ok, verdict.to_json()
    upstream = validate(tmp_path / "port", tmp_path / "model.gguf")
    assert upstream.ok, upstream.to_json()


def write_gguf(gguf: Any, folder: Path, path: Path) -> None:
    """The checkpoint in a folder as llama.cpp's converter would write it: q and k permuted, divisors in place of llama3's rule."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, w in tensors.items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        count = heads.get(theirs.split(".")[-2])
        if count:
            w = w.reshape(count, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        writer.add_tensor(theirs, np.ascontiguousarray(w))
    writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_divisors(config: dict[str, Any]) -> np.ndarray:
    """By transformers' own function: plain frequencies over scaled ones."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), "cpu")
    dim = config["hidden_size"] // config["num_attention_heads"]
    plain = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    return (plain / scaled.numpy()).astype(np.float32)


# --- without transformers ------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import importlib.metadata as metadata, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
real = metadata.version
def version(name):
    if name in ("torch", "transformers"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from porting.cli import main
main(sys.argv[1:])
"""


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_without_transformers_a_golden_does(folder: Path, golden_file: Path, tmp_path: Path) -> None:
    refused = without_torch("port", folder, "-o", tmp_path / "port", "--quiet")
    assert refused.returncode == 3 and 'pip install "porting[torch]"' in refused.stderr and not os.listdir(tmp_path)
    done = without_torch("port", folder, "-o", tmp_path / "port", "--against", golden_file, "-p", "int8", "--json", "--quiet")
    assert done.returncode == 0 and json.loads(done.stdout)["reference"] == "golden", done.stderr
    refused = without_torch("validate", tmp_path / "port", "--against", folder)
    assert refused.returncode == 3 and "golden" in refused.stderr
    refused = without_torch("record", folder, "-o", tmp_path / "golden.json")
    assert refused.returncode == 3 and not (tmp_path / "golden.json").exists()
