"""The ONNX backend test data that comes with the onnx package: what onnxruntime passes gives the same after canonicalisation.

Three questions of every case: does onnxruntime pass the untouched model, are its outputs then bit for bit those of the canonical one, and
does a second run change nothing. The cases of single operators are asked again at every older opset that means something else to
one of their operators, which checks each step of version_steps.py by running it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_bits import difference, run, same_bits, whole
from onnx.backend.test.loader import DATA_DIR

from porting.converters.checkpoints.onnx_checks import MAX_OPSET
from porting.converters.passes.canonical import canonical
from porting.errors import UnsupportedModel
from porting.sources import opened
from porting.types import Graph
from tests.standard_cases import SAMPLE, cases, close, data_of, model_of, older, passes, try_run

NEWEST = 26  # the newest opset that onnxruntime 1.31 takes
OLDEST = 9
# case -> why its outputs may differ; a case that is listed and agrees is a failure
EXCEPTIONS: dict[str, str] = {}


def require_same(name: str, model: onnx.ModelProto, feeds: dict[str, Any], before: list[Any]) -> str:
    """ "" or how the canonical model differs."""
    graph = Graph(ir.serde.deserialize_model(model))
    made, _ = canonical(graph)
    proto = whole(made)
    try:
        after = run(proto, feeds)
    except Exception as error:
        return f"{name}: does not run: {error}"
    if not same_bits(after, before):
        return f"{name}: {difference(after, before)}"
    again, applied = canonical(made)
    if whole(again) != proto or any(entry["changes"] for entry in applied):
        return f"{name}: a second run changes {applied}"
    return ""


def check(name: str) -> str | None:
    """None when onnxruntime does not pass the case itself; else "" or what is wrong."""
    case = cases()[name]
    model = model_of(case)
    if any(entry.domain in ("", "ai.onnx") and entry.version > NEWEST for entry in model.opset_import):
        model = older(model, NEWEST)
    for feeds, wanted in data_of(case, model):
        before = try_run(model, feeds)
        if before is None or not close(before, wanted, case.rtol, case.atol):
            return None
        if wrong := require_same(name, model, feeds, before):
            return wrong
    return ""


def opsets_of(model: onnx.ModelProto) -> list[int]:
    """Opsets from OLDEST on, older than the model's, at which one of its operators meant something else."""
    now = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    used = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    known = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name in used and s.domain == ""}
    return sorted(max(v, OLDEST) for v in {*known, OLDEST} if max(v, OLDEST) < min(now, NEWEST + 1))


def by_name(names: list[str]) -> None:
    """Check them all and report all that is wrong at once."""
    wrong, passed = [], 0
    for name in names:
        answer = check(name)
        passed += answer is not None
        if name in EXCEPTIONS:
            if answer == "":
                wrong.append(f"{name} agrees: take it off EXCEPTIONS")
        elif answer:
            wrong.append(answer)
    assert not wrong, "\n".join(wrong)
    assert passed > len(names) / 2, "onnxruntime passes most of the data"


def node_cases() -> list[str]:
    return sorted(name for name, case in cases().items() if case.kind == "node" or case.model is not None)


LIGHT = sorted(Path(DATA_DIR, "light").glob("light_*.onnx"))
QUICK = ("light_squeezenet", "light_shufflenet")


@pytest.mark.parametrize(
    "file", [pytest.param(f, id=f.stem, marks=[] if f.stem in QUICK else [pytest.mark.slow]) for f in LIGHT]
)
def test_a_real_topology_without_its_weights(file):
    """Its weights are made of single numbers by nodes: folded, they would be hundreds of MiB."""
    model = onnx.load(file)
    weights = {tensor.name for tensor in model.graph.initializer}
    [image] = [v for v in model.graph.input if v.name not in weights]
    feeds = {image.name: np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}
    assert require_same(file.stem, model, feeds, run(model.SerializeToString(), feeds)) == ""
    made, _ = canonical(Graph(ir.serde.deserialize_model(model)))
    assert len(whole(made)) < 3 * file.stat().st_size, "types and shapes take room, weights do not"


def test_models_in_folders():
    by_name(sorted(name for name, case in cases().items() if case.model_dir is not None))


def test_a_sample_of_the_operators():
    by_name(node_cases()[::SAMPLE])


@pytest.mark.slow
def test_every_operator():
    by_name(node_cases())


def check_older(name: str) -> list[str]:
    """What is wrong when the case's nodes are taken as written at older opsets, where onnxruntime runs them."""
    case = cases()[name]
    wrong = []
    for opset in opsets_of(model_of(case)):
        model = older(model_of(case), opset)
        for feeds, _ in data_of(case, model):
            before = try_run(model, feeds)
            if before is not None and (answer := require_same(f"{name} at opset {opset}", model, feeds, before)):
                wrong.append(answer)
    return wrong


@pytest.mark.slow
def test_every_operator_at_every_opset():
    wrong = [answer for name in node_cases() for answer in check_older(name)]
    assert not wrong, "\n".join(wrong)


def test_what_onnxruntime_passes_is_read(tmp_path: Path) -> None:
    """None of the cases that onnxruntime passes is called broken. What is not covered is another thing."""
    asked = 0
    for name in sorted(cases())[::SAMPLE]:
        case = cases()[name]
        model = model_of(case)
        if any(entry.domain in ("", "ai.onnx") and entry.version > MAX_OPSET for entry in model.opset_import):
            model = older(model, MAX_OPSET)
        if not all(passes(case, model, *data) for data in data_of(case, model)):
            continue
        asked += 1
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        with suppress(UnsupportedModel), opened(path) as source:
            assert source.outputs, name
    assert asked > 100
