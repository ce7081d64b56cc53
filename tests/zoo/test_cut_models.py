"""Real models of which a part is ported: an input that only chooses a branch becomes a number, and graphs end where they are told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import porting
from porting.ascend.handoff import handoffs_of
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.onnx_facts import valued_names
from tests import zoo_inputs
from tests.model_zoo import file
from tests.zoo.test_onnx_models import GOLDEN, OCR, VOICE, listen

Ported = Callable[..., Path]
STEP = 12  # every so many values of a graph


@pytest.mark.slow
def test_silero_at_one_rate(ported: Ported) -> None:
    """Half of the file is for 8 kHz, which cannot be at the size of a chunk of 16 kHz: onnxruntime refuses the whole file at fixed sizes."""
    path = file("silero-vad", "silero_vad/data/silero_vad.onnx")
    options = ("--target", "Ascend310P3", "--state", "state=stateN", "--dims", "1,576,1")
    port = ported("voice_16k", path, *options, "--fix", "sr=16000")
    (handoff,) = handoffs_of(port)
    handoff.verify()
    assert handoff.command.value("input_shape") == "input:1,576;state:2,1,128"
    np.testing.assert_allclose(listen(port, zoo_inputs.voice_chunks(8)), VOICE, rtol=0, atol=GOLDEN)
    assert "with sr = 16000" in porting.validate(port, path).require().details["compared_with"]
    assert porting.validate(port).require().reference == "golden"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "feeds"),
    [
        (("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx"), "voice"),
        ((OCR[0], OCR[1].format("ch_PP-OCRv4_det_infer")), "page"),
    ],
    ids=["voice", "page"],
)
def test_a_part_of_a_real_graph_computes_what_the_whole_does_there(path: tuple[str, str], feeds: str, tmp_path: Path) -> None:
    model = file(*path)
    voice = {"input": zoo_inputs.voice_chunks(4)[3], "state": np.full((2, 1, 128), 0.1, np.float32), "sr": np.array(16000)}
    fed = voice if feeds == "voice" else {"x": zoo_inputs.page()}
    proto = onnx.load(model)
    known = valued_names(proto.graph)
    values = [name for node in proto.graph.node for name in node.output if name in known][::STEP]
    assert len(values) > 3
    own = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in own)
    onnx.save(proto, tmp_path / "tapped.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "tapped.onnx", options, providers=["CPUExecutionProvider"])
    wanted = dict(zip(values, session.run(values, fed), strict=True))
    for name in values:
        source = OnnxFile(model, outputs=(name,))
        original = source.original()
        got = original.run({spec.name: fed[spec.name] for spec in source.inputs})
        original.close()
        assert list(got) == [name] == [spec.name for spec in source.outputs]
        np.testing.assert_allclose(
            got[name], wanted[name], rtol=1e-5, atol=1e-6
        )  # one thread may sum in another order than several
        assert got[name].dtype.name == source.outputs[0].dtype
