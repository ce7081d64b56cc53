"""Validation can fail: one thing wrong at a time, and which check sees it. And it does not cry wolf."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file
from tiny import OWN, make

from porting.conversion import canonical_graph, convert
from porting.converters.checkpoints.open import open_checkpoint
from porting.converters.checkpoints.port import PortCheckpoint
from porting.converters.passes.tables import lower
from porting.inputs import cases_of
from porting.language_validation import judge
from porting.port_folder import Port
from porting.port_writer import Source, write_port
from porting.reference import UpstreamReference
from porting.session import Session
from porting.types import Checkpoint, Graph
from porting.weights import stream_of

LLAMA, MISTRAL, QWEN2, QWEN3 = OWN
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (LLAMA, {"num_key_value_heads": 6, "attention_bias": True}),
    "mistral": (MISTRAL, {}),
    "tied": (LLAMA, {"tie_word_embeddings": True}),
}


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint, and upstream's outputs for it, which are computed once."""

    folder: Path
    checkpoint: Checkpoint
    reference: UpstreamReference


def model_at(folder: Path) -> Model:
    checkpoint = open_checkpoint(folder)
    reference = UpstreamReference(checkpoint, cases_of(checkpoint.config, None, None))
    reference.prepare()
    return Model(folder, checkpoint, reference)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    found = {}
    for name, (architecture, changes) in MODELS.items():
        folder = tmp_path_factory.mktemp("checkpoints") / name
        make(folder, architecture, **changes)
        found[name] = model_at(folder)
    return found


# --- faults: what a wrong converter, pass or writer would have made ------------------------------------------------

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a port.

    model:   of MODELS
    weights: tensor as decoded from the checkpoint -> how it comes out instead
    config:  keys that the graph is built from, in place of the checkpoint's
    graph:   what is done to the target graph
    stored:  tensor as the port holds it (codes, scales) -> how it is written instead
    fp32, int8: beginnings of the names of all checks that fail
    """

    model: str = "llama"
    weights: Mapping[str, Change] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    graph: Callable[[ir.Graph], None] | None = None
    stored: Mapping[str, Change] = field(default_factory=dict)
    fp32: tuple[str, ...] | None = ()
    int8: tuple[str, ...] | None = ()


def spoil(graph: Graph, changes: Mapping[str, Change]) -> None:
    """Make the streams of some initializers give something else; what is changed cannot be a link to the source."""
    for value in graph.model.graph.initializers.values():
        found = stream_of(value.const_value)
        if found is None or value.name not in changes:
            continue
        stream, index = found
        whole, change = stream.make(0, stream.rows), changes[str(value.name)]
        parts = [change(a.copy()) if i == index else a for i, a in enumerate(whole)]
        stream.stored = None
        stream._make = lambda start, stop, parts=parts: [np.ascontiguousarray(p[start:stop]) for p in parts]
    missed = set(changes) - set(graph.model.graph.initializers)
    assert not missed, f"no such weights: {missed}"


def faulty_port(model: Model, destination: Path, precision: str, fault: Fault) -> Port:
    """A port as a converter with this fault would write it: complete, and right by its own hashes."""
    checkpoint = open_checkpoint(model.folder)
    config = dict(checkpoint.config)
    checkpoint.config = {**config, **fault.config}
    canonical = canonical_graph(checkpoint)
    spoil(canonical.graph, fault.weights)
    graph, applied = lower(canonical.graph, "cpu", precision)
    spoil(graph, fault.stored)
    if fault.graph is not None:
        fault.graph(graph.model.graph)
    manifest = {"kind": "causal-lm", "architecture": canonical.architecture, "config": config, "target": "cpu"}
    manifest |= {"precision": precision, "tensors": canonical.tensors, "passes": applied, "min_runtime": {}}
    return write_port(graph, destination, manifest, Source(checkpoint.format, tuple(checkpoint.files)), weights="copy")


def scaled(factor: float) -> Change:
    return lambda w: (w * np.float32(factor)).astype(w.dtype)


def zeros(w: np.ndarray) -> np.ndarray:
    return np.zeros_like(w)


def flipped_bit(bit: int) -> Change:
    def change(codes: np.ndarray) -> np.ndarray:
        codes.reshape(-1)[5] ^= 1 << bit
        return codes

    return change


def of_kind(graph: ir.Graph, op_type: str, number: int = 0) -> ir.Node:
    return [n for n in graph if n.op_type == op_type][number]


def without_residual(graph: ir.Graph) -> None:
    add = next(n for n in graph if n.name and n.name.endswith("add_mlp"))
    ir.convenience.replace_all_uses_with(add.outputs[0], add.inputs[1])


def other_activation(graph: ir.Graph) -> None:
    of_kind(graph, "Sigmoid").op_type = "HardSigmoid"


def caches_crossed(graph: ir.Graph) -> None:
    """Layer 0 finds the keys of layer 1 in its cache: right in one run from an empty state."""
    names = [o.name for o in graph.outputs]
    a, b = (graph.outputs[names.index(f"cache.{i}.key.new")] for i in (0, 1))
    a.name, b.name = b.name, a.name


def queries_and_keys_exchanged(graph: ir.Graph) -> None:
    node = of_kind(graph, "GroupQueryAttention", 1)
    q, k = node.inputs[:2]
    node.replace_input_with(0, k)
    node.replace_input_with(1, q)


def not_a_number(graph: ir.Graph) -> None:
    of_kind(graph, "Sigmoid").op_type = "Log"  # of numbers below 0 too


QUERY, OUT, UP = (f"model.layers.1.{n}.weight" for n in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"))
EMBEDDING = "model.embed_tokens.weight"
NORM, BIAS = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias"

WEIGHTS, KL, TOP1 = "weights that are not the source's", "quality: mean KL", "quality: top-1"
WHOLE, CHUNKS, REFERENCE = "fidelity: ", "chunked run: ", "fidelity to the reference: "
FLOAT, FLOAT_CHUNKS = "fidelity, float activations: ", "chunked run, float activations: "
QUALITY, EXACT = (KL, TOP1), (FLOAT, FLOAT_CHUNKS)

# fp32: everything shows against the reference. int8: rounded activations are noise of a few percent, and what is smaller shows in the
# checks without that noise. Wrong weights cannot show there, since both sides are made from what lies in the port: those show
# against the source (WEIGHTS); without it, against a golden, only when they are bad enough for quality. That is where int8 is blind.
FAULTS: dict[str, Fault] = {
    "a matrix times 1.01": Fault(weights={QUERY: scaled(1.01)}, fp32=(WEIGHTS, KL, REFERENCE), int8=(WEIGHTS,)),
    "a matrix transposed": Fault(weights={OUT: lambda w: w.T}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)),
    "rows out of order": Fault(weights={UP: lambda w: w[::-1]}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)),
    "a norm weight zeroed": Fault(weights={NORM: zeros}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)),
    "a norm weight off by 1": Fault(
        weights={NORM: lambda w: w - 1}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)
    ),
    "a bias dropped": Fault(weights={BIAS: zeros}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)),
    "q and k exchanged": Fault(
        graph=queries_and_keys_exchanged, fp32=(WHOLE, *QUALITY, REFERENCE), int8=(*EXACT, WHOLE, *QUALITY)
    ),
    "a head that is not the tied embedding": Fault(
        "tied", weights={EMBEDDING: lambda w: np.roll(w, 1, 0)}, fp32=(WEIGHTS, *QUALITY, REFERENCE), int8=(WEIGHTS, *QUALITY)
    ),
    "rope theta": Fault(
        config={"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
        fp32=(WHOLE, *QUALITY, REFERENCE),
        int8=(*EXACT, WHOLE, *QUALITY),
    ),
    "epsilon": Fault(config={"rms_norm_eps": 1e-5}, fp32=(WHOLE, *QUALITY, REFERENCE), int8=EXACT),
    "window one too short": Fault(
        "mistral", config={"sliding_window": 6}, fp32=(WHOLE, *QUALITY, REFERENCE), int8=(*EXACT, WHOLE, *QUALITY)
    ),
    "no window": Fault(
        "mistral", config={"sliding_window": None}, fp32=(WHOLE, *QUALITY, REFERENCE), int8=(*EXACT, WHOLE, *QUALITY)
    ),
    "a residual left out": Fault(graph=without_residual, fp32=(WHOLE, *QUALITY, REFERENCE), int8=(*EXACT, WHOLE, *QUALITY)),
    "another activation": Fault(graph=other_activation, fp32=(WHOLE, *QUALITY, REFERENCE), int8=(*EXACT, TOP1)),
    "caches of two layers crossed": Fault(graph=caches_crossed, fp32=(CHUNKS,), int8=(FLOAT_CHUNKS, CHUNKS)),
    "NaN in the outputs": Fault(
        graph=not_a_number, fp32=(WHOLE, CHUNKS, *QUALITY, REFERENCE), int8=(*EXACT, WHOLE, CHUNKS, *QUALITY)
    ),
    "highest bit of one code": Fault(stored={f"{QUERY}.codes": flipped_bit(7)}, int8=(WEIGHTS,)),
    "a scale": Fault(stored={f"{QUERY}.scales": scaled(1.05)}, int8=(WEIGHTS,)),
}
LONG_TAIL = {"rows out of order", "a norm weight off by 1", "no window", "a residual left out"}  # much like another one
CASES = [
    pytest.param(name, precision, marks=pytest.mark.slow if name in LONG_TAIL else ())
    for name, fault in FAULTS.items()
    for precision in ("fp32", "int8")
    if getattr(fault, precision)
]


def failing(model: Model, port: Port) -> list[str]:
    verdict = judge(port, model.reference, "cpu", source=model.checkpoint)
    assert verdict.exit_code == (0 if all(c.verdict == "pass" for c in verdict.checks) else 1)
    return [c.name for c in verdict.checks if c.verdict != "pass"]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_fault_is_seen_by_the_checks_that_should(
    name: str, precision: str, models: Mapping[str, Model], tmp_path: Path
) -> None:
    fault = FAULTS[name]
    model = models[fault.model]
    found = failing(model, faulty_port(model, tmp_path / "port", precision, fault))
    missed = [check for check in getattr(fault, precision) if not any(f.startswith(check) for f in found)]
    assert not missed, f"seen by {found}"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_without_a_fault_everything_holds(name: str, precision: str, models: Mapping[str, Model], tmp_path: Path) -> None:
    assert failing(models[name], faulty_port(models[name], tmp_path / "port", precision, Fault(name))) == []


BOTH = {
    "nodes on another device",
    "weights that are not the source's, rounded to nearest",
    "fidelity: relative error of logits",
    "chunked run: relative error of logits",
    "quality: mean KL divergence, nats",
    "quality: top-1 agreement",
}
OF_PRECISION = {
    "fp32": {"fidelity to the reference: relative error of logits"},
    "int8": {
        "source in fp32 to the reference: relative error of logits",
        "fidelity, float activations: relative error of logits",
        "chunked run, float activations: relative error of logits",
    },
}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pass_says_everything_that_was_checked(precision: str, models: Mapping[str, Model], tmp_path: Path) -> None:
    """A check that is no longer made would otherwise be missed by nobody: what is left still passes."""
    model = models["llama"]
    verdict = judge(faulty_port(model, tmp_path / "port", precision, Fault()), model.reference, "cpu", source=model.checkpoint)
    names = [check.name for check in verdict.checks]
    assert verdict.verdict == "pass" and len(names) == len(set(names))
    assert set(names) == BOTH | OF_PRECISION[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_node_on_another_device_fails_the_verdict(
    precision: str, models: Mapping[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = faulty_port(models["llama"], tmp_path / "port", precision, Fault())
    monkeypatch.setattr(Session, "placement", property(lambda session: {"first": "cpu", "second": "cuda:0"}))
    assert failing(models["llama"], port) == ["nodes on another device"]


BITS = {"int8": 8, "int4": 4}


@pytest.mark.parametrize("precision", BITS)
def test_one_code_beside_the_nearest_is_seen(precision: str, models: Mapping[str, Model], tmp_path: Path) -> None:
    """The smallest thing that can be wrong with a code: the weight nearest to the middle of two codes has the other of them.

    Its error is then just above the half step that rounding to nearest leaves, so the bound has no room for more.
    """
    model, bits, kept = models["llama"], BITS[precision], dict[str, np.ndarray]()

    def keep(name: str) -> Change:
        def change(array: np.ndarray) -> np.ndarray:
            kept[name] = array
            return array

        return change

    right = faulty_port(
        model, tmp_path / "right", precision, Fault(stored={f"{QUERY}.{n}": keep(n) for n in ("codes", "scales")})
    )
    assert not [name for name in failing(model, right) if name.startswith(WEIGHTS)]
    source = load_file(model.folder / "model.safetensors")[QUERY]  # (n_out, n_in)
    per_byte, block = 8 // bits, kept["codes"].shape[-1] * 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits  # the low bits hold the first code
    codes = ((kept["codes"][..., None] >> shifts) & (2**bits - 1)).reshape(len(source), -1)[:, : source.shape[1]]
    half = np.repeat(kept["scales"].reshape(len(source), -1) / 2, block, axis=1)[:, : source.shape[1]]
    error = (PortCheckpoint(right).rows(QUERY, 0, len(source)) - source) / half  # from -1 to 1
    usable = (codes > 0) & (codes < 2**bits - 1) & (np.abs(error) < 0.99)
    row, column = np.unravel_index(int(np.argmax(np.where(usable, np.abs(error), 0))), error.shape)
    moved = 2 - abs(float(error[row, column]))
    assert 1.01 <= moved < 1.1

    def beside(array: np.ndarray) -> np.ndarray:
        byte, place = divmod(int(column), per_byte)
        step = (-1 if error[row, column] > 0 else 1) << (place * bits)  # `usable` keeps it within its own bits
        flat = array.reshape(len(source), -1)
        flat[row, byte] = int(flat[row, byte]) + step
        return flat.reshape(array.shape)

    wrong = faulty_port(model, tmp_path / "wrong", precision, Fault(stored={f"{QUERY}.codes": beside}))
    assert [name for name in failing(model, wrong) if name.startswith(WEIGHTS)]


@pytest.mark.parametrize("architecture", [LLAMA, *(pytest.param(a, marks=pytest.mark.slow) for a in (MISTRAL, QWEN2, QWEN3))])
def test_no_false_alarm_whatever_the_weights(architecture: str, tmp_path: Path) -> None:
    make(tmp_path / "made", architecture)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        tensors = load_file(tmp_path / "made" / "model.safetensors")
        drawn = {k: (np.float32(0.3) * rng.standard_normal(v.shape, np.float32)) + ("norm" in k) for k, v in tensors.items()}
        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / "made", folder)
        save_file({k: v.astype(np.float32) for k, v in drawn.items()}, folder / "model.safetensors")
        model = model_at(folder)
        for precision in ("fp32", "int8"):
            assert failing(model, convert(folder, folder / precision, precision=precision)) == []
