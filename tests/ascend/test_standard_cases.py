"""The ONNX standard's own cases through `check`, the passes, and the simulated device: what is called portable gives what the standard says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from porting.ascend.checking import Judged, judged
from porting.ascend.soc import find_soc
from porting.backends.onnx_program import program_from_onnx
from porting.conversion import canonical_graph
from porting.converters.checkpoints.onnx_checks import MAX_OPSET
from porting.converters.passes.ascend.tables import HIGHEST_OPSET
from porting.errors import UnsupportedModel
from porting.session import open_session
from porting.sources import opened
from tests.graph_bits import run, whole
from tests.standard_cases import SAMPLE, cases, close, data_of, model_of, older, passes

SOCS = ("Ascend310P3", "Ascend910B3")
SIM = "ascend-sim,soc=Ascend910B3,precision=origin"
ON_DEVICE = 12  # every how many of the portable ones of a sample are run there
HALF = 1e-3  # of numbers of size 1: an fp16 rounding in another place than the standard's authors have it


def lowered(name: str, soc: str, folder: Path) -> Judged | None:
    """None where onnxruntime does not pass the case, or the project does not cover it. Each pass is compared as it runs."""
    case, model = cases()[name], model_of(cases()[name])
    if any(entry.domain in ("", "ai.onnx") and entry.version > MAX_OPSET for entry in model.opset_import):
        model = older(model, MAX_OPSET)
    if not all(passes(case, model, *data) for data in data_of(case, model)):
        return None
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        with opened(path) as source:
            return judged(canonical_graph(source, HIGHEST_OPSET).graph, find_soc(soc), precision=None, compared=True)
    except UnsupportedModel as error:
        if "mistake in the pass" in str(error):
            raise
        return None


def wrong_on_the_cpu(names: list[str], soc: str, folder: Path) -> tuple[list[str], Counter[str]]:
    wrong, verdicts = [], Counter[str]()
    for name in names:
        found = lowered(name, soc, folder)
        if found is None:
            continue
        verdicts[found.portability] += 1
        if found.portability == "blocked":
            assert found.blocking, name
            continue
        case, graph = cases()[name], whole(found.lowered)
        for feeds, wanted in data_of(case, model_of(case)):
            if not close(run(graph, read_by(graph, feeds)), list(wanted), case.rtol, case.atol):
                wrong.append(f"{name}: {[entry['name'] for entry in found.applied if entry['changes']]}")
    return wrong, verdicts


def read_by(graph: bytes, feeds: dict[str, Any]) -> dict[str, Any]:
    names = {value.name for value in onnx.load_model_from_string(graph).graph.input}
    return {name: np.asarray(array) for name, array in feeds.items() if name in names}


@pytest.mark.parametrize("soc", SOCS)
def test_a_sample_gives_what_the_standard_says(tmp_path: Path, soc: str) -> None:
    wrong, verdicts = wrong_on_the_cpu(sorted(cases())[::SAMPLE], soc, tmp_path)
    assert not wrong, "\n".join(wrong)
    assert min(verdicts[kind] for kind in ("portable", "portable after rewrites", "blocked")) > 10


@pytest.mark.slow
@pytest.mark.parametrize("soc", SOCS)
def test_all_give_what_the_standard_says(tmp_path: Path, soc: str) -> None:
    wrong, verdicts = wrong_on_the_cpu(sorted(cases()), soc, tmp_path)
    assert not wrong, "\n".join(wrong)
    assert verdicts["portable"] + verdicts["portable after rewrites"] > 900


def test_the_simulated_device_takes_what_is_portable_and_computes_it(tmp_path: Path) -> None:
    ran = 0
    for name in sorted(cases())[:: SAMPLE * ON_DEVICE]:
        found = lowered(name, "Ascend910B3", tmp_path)
        if found is None or found.portability == "blocked":
            continue
        case, graph = cases()[name], whole(found.lowered)
        with open_session(program_from_onnx(graph), SIM) as session:
            for feeds, wanted in data_of(case, model_of(case)):
                made = session.run(read_by(graph, feeds))
                outputs = [made[value.name] for value in onnx.load_model_from_string(graph).graph.output]
                assert close(outputs, list(wanted), max(case.rtol, HALF), max(case.atol, HALF)), name
                ran += 1
    assert ran > 5
