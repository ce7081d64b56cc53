"""What validation inputs reach: past a sliding window where that can be run, and said in the report where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from porting.conversion import canonical_graph
from porting.converters.checkpoints.open import open_checkpoint
from porting.converters.passes.tables import lower
from porting.errors import InputError
from porting.inputs import BEYOND, LONGEST, POSITIONS, language_model_inputs, not_reached, require_cases
from porting.pipeline import port as port_it
from porting.port_writer import Source, write_port
from porting.render import verdict_text
from porting.validation import validate
from tests import tiny

WINDOW = 40  # longer than the built-in texts


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed") / "model"
    tiny.make(folder, "MistralForCausalLM", sliding_window=WINDOW, max_position_embeddings=256)
    return folder


@pytest.mark.parametrize("window", [WINDOW, -1, WINDOW + 1, WINDOW - 1])
def test_a_window_longer_than_the_texts_is_held_to_the_reference(windowed: Path, tmp_path: Path, window: int) -> None:
    checkpoint = open_checkpoint(windowed)
    canonical = canonical_graph(checkpoint)
    graph, applied = lower(canonical.graph, "cpu", "fp32")
    for node in graph.model.graph:
        if node.op_type == "GroupQueryAttention":
            node.attributes["local_window_size"] = node.attributes["local_window_size"].__class__(
                "local_window_size", node.attributes["local_window_size"].type, window
            )
    manifest = {"kind": "causal-lm", "architecture": canonical.architecture, "config": checkpoint.config, "target": "cpu"}
    manifest |= {"precision": "fp32", "tensors": canonical.tensors, "passes": applied, "min_runtime": {}}
    write_port(graph, tmp_path / "port", manifest, Source(checkpoint.format, tuple(checkpoint.files)))
    verdict = validate(tmp_path / "port", windowed)
    assert verdict.ok == (window == WINDOW), verdict.line()
    assert verdict.details["longest_case"] == WINDOW + BEYOND
    assert verdict.details["not_reached"] == []


def test_what_is_not_reached_is_said(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    sizes = {"sliding_window": LONGEST, "max_position_embeddings": 4096, "rope_parameters": scaling}
    tiny.make(tmp_path / "model", "MistralForCausalLM", **sizes)
    verdict = port_it(tmp_path / "model", tmp_path / "port")
    assert verdict.ok
    left = [f"the sliding window of {LONGEST} positions", "dynamic rope scaling beyond 4096 positions"]
    assert verdict.details["not_reached"] == left
    assert f"NOT shown by these inputs (longest: {POSITIONS} positions): {'; '.join(left)}" in verdict_text(verdict)


def test_the_device_that_ran_is_named_not_the_wish(windowed: Path, tmp_path: Path) -> None:
    verdict = port_it(windowed, tmp_path / "port", device="cuda-or-cpu")
    assert verdict.device == "cpu"
    assert verdict.details["device_asked_for"] == "cuda-or-cpu"


@pytest.mark.parametrize(
    ("config", "lengths", "left"),
    [
        ({"sliding_window": 40}, [32, 32, 32, 32, 56], []),
        ({"sliding_window": 16}, [32] * 4, []),
        ({"sliding_window": 40, "max_position_embeddings": 50}, [32] * 4, ["the sliding window of 40 positions"]),
        ({"sliding_window": 40, "use_sliding_window": False}, [32] * 4, []),
        ({}, [32] * 4, []),
    ],
)
def test_a_case_is_as_long_as_the_window_asks_for(config: dict[str, int], lengths: list[int], left: list[str]) -> None:
    cases = language_model_inputs({"vocab_size": 99, **config}, None)
    assert [ids.shape[1] for ids in cases.values()] == lengths
    assert not_reached(config, cases) == left


def test_one_token_over_and_over_shows_nothing() -> None:
    with pytest.raises(InputError, match="repeats one token"):
        require_cases({"a": np.full((2, 9), 5), "b": np.full((1, 2), 7)}, {"vocab_size": 9}, "x")
    require_cases({"a": np.full((2, 9), 5), "b": np.array([[7, 8]])}, {"vocab_size": 9}, "x")
