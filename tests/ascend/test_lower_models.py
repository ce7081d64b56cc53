"""Whole models through the table: opset 18 at most, the standard's domain, and the outputs that they had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from porting.conversion import canonical_graph
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.converters.passes.ascend.lower_opset import obstacles
from porting.converters.passes.ascend.tables import HIGHEST_OPSET, PASSES, lower_for_ascend
from porting.converters.passes.canonical import canonical
from porting.converters.passes.rewriting import bodies_of
from porting.sources import open_source
from porting.types import Graph
from tests import model_zoo, tiny, tiny_encoders
from tests.ascend.lowering_checks import kinds, read
from tests.graph_bits import run, whole


class WholeRuns:
    """The whole graph before and after each pass, on the same inputs."""

    def __init__(self, feeds: dict[str, np.ndarray], bound: float) -> None:
        self.feeds, self.bound, self.names = feeds, bound, list[str]()

    def begin(self, graph: Graph) -> None:
        self._wanted = run(whole(graph), self.feeds)

    def __call__(self, name: str, graph: Graph) -> dict[str, object]:
        self.names.append(name)
        found = run(whole(graph), self.feeds)
        for wanted, got in zip(self._wanted, found, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=self.bound, err_msg=name)
        self._wanted = found
        return {}


def require_lowered_model(graph: Graph, feeds: dict[str, np.ndarray], bound: float) -> Graph:
    """Lower a model, and hold the lowered one against it; every pass against what came before, too."""
    compare = WholeRuns(feeds, bound)
    before = whole(graph)
    lowered, applied = lower_for_ascend(graph, compare)
    assert whole(graph) == before
    assert [entry["name"] for entry in applied] == [name for name, _ in PASSES]
    assert [entry["name"] for entry in applied if entry["changes"]] == compare.names
    imports = dict(lowered.model.graph.opset_imports)
    assert list(imports) == [""] and imports[""] <= HIGHEST_OPSET and not obstacles(lowered.model)
    assert {node.domain for body in bodies_of(lowered.model) for node in body} == {""}
    onnx.checker.check_model(onnx.load_from_string(whole(lowered)), full_check=True)
    for wanted, got in zip(run(before, feeds), run(whole(lowered), feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
    again, applied = lower_for_ascend(lowered)
    assert whole(again) == whole(lowered) and not any(entry["changes"] for entry in applied)
    return lowered


@pytest.mark.parametrize("length", [5, 1])
def test_a_tiny_llama(tmp_path: Path, length: int) -> None:
    """Prefill of two rows that begin at different places, and one step."""
    tiny.make(tmp_path / "model", "LlamaForCausalLM")
    graph = canonical_graph(open_source(tmp_path / "model")).graph
    rng = np.random.default_rng(0)
    feeds = {"input_ids": tiny.token_ids(2, length), "past_length": np.array([3, 9]), "logits_to_keep": np.array(0)}
    for pair in graph.state.pairs:
        feeds[pair.input] = rng.standard_normal((2, 2, 16, 8)).astype(np.float32)
    lowered = require_lowered_model(graph, feeds, tiny.BOUND)
    assert not set(kinds(lowered)) & {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}
    assert lowered.state == graph.state


def test_a_tiny_bert(tmp_path: Path) -> None:
    tiny_encoders.make_encoder(tmp_path / "model", "BertModel")
    graph = canonical_graph(open_source(tmp_path / "model")).graph
    lowered = require_lowered_model(graph, tiny_encoders.feeds_of(), tiny_encoders.BOUND)
    assert not set(kinds(lowered)) & {"Attention", "Gelu"} and kinds(lowered)["LayerNormalization"]


def test_an_audio_model_of_opset_15() -> None:
    """Pooling, padding and reductions; the sums of a pass that cuts a reduction are in another order."""
    path = model_zoo.package("basic-pitch") / "basic_pitch/saved_models/icassp_2022/nmp.onnx"
    graph, _ = canonical(OnnxFile(path).graph(), HIGHEST_OPSET)
    audio = np.sin(2 * np.pi * 440 * np.arange(43844) / 22050).astype(np.float32)[None, :, None]
    require_lowered_model(graph, {str(graph.model.graph.inputs[0].name): audio}, 1e-4)


def test_a_text_model_with_int32_inputs() -> None:
    path = model_zoo.package("magika") / "magika/models/standard_v3_3/model.onnx"
    graph, _ = canonical(OnnxFile(path).graph(), HIGHEST_OPSET)
    (taken,) = graph.model.graph.inputs
    tokens = np.random.default_rng(0).integers(0, 256, (1, 2048)).astype(np.int32)
    require_lowered_model(graph, {str(taken.name): tokens}, 1e-5)


def test_every_pass_cites_its_rules() -> None:
    _, applied = lower_for_ascend(read("(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", 18))
    cited = {str(entry["name"]): entry["rules"] for entry in applied}
    assert cited["attention"] == ["missing-attention"] and "opset-too-high" in list(cited["lower_opset"])  # type: ignore[call-overload]


def test_a_node_without_a_form_stays_and_the_opset_with_it() -> None:
    graph = read('(float[2, 3] x, int64[4] p) => (float y) { a = Gelu(x) y = Pad<mode = "wrap">(a, p) }', 22)
    lowered, _ = lower_for_ascend(graph)
    assert dict(lowered.model.graph.opset_imports) == {"": 22} and [o.op for o in obstacles(lowered.model)] == ["Pad"]
    assert "Gelu" not in kinds(lowered) and "Pad" in kinds(lowered)
