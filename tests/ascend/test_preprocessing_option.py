"""--preprocessing of port, convert and check, and what validate makes of the port: from uint8 images, through the public entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

import porting
from porting.ascend.handoff import handoffs_of
from porting.ascend.image_cases import generated_pixels
from porting.ascend.image_inputs import CONFIG, KEY
from porting.ascend.preprocessing import SCHEMA, from_json
from porting.commands import check, convert, port, validate
from porting.errors import InputError, PortingError, UsageError
from porting.judgement import judgement_for
from porting.verdict import Check, Verdict
from tests.ascend.test_image_inputs import CROP, IMAGENET, SIDE, SOURCE, classifier
from tests.graph_models import constant, model, node, weight

P310 = "Ascend310P3"
PICTURE: dict[str, Any] = {"input": "x", "source": SOURCE, "crop": CROP, "normalise": IMAGENET}
COMMANDS = {"port": port.command, "convert": convert.command, "check": check.command, "validate": validate.command}


def described(folder: Path, **fields: Any) -> Path:
    path = folder / "pre.json"
    image = {k: v for k, v in {**PICTURE, **fields}.items() if v is not None}
    path.write_text(json.dumps({"schema": SCHEMA, "images": [image]}))
    return path


def images(folder: Path, count: int = 1, name: str = "images", **more: np.ndarray) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, x=np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8), **more)
    return path


def run(name: str, *arguments: object) -> Any:
    """A command's exit code, or its error."""
    return CliRunner().invoke(COMMANDS[name], [*map(str, arguments), "--quiet"], standalone_mode=False)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    onnx.save(classifier(outputs=("y", "best")), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def behind(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.verdict for check in verdict.checks if "AIPP" in check.name}


# --- what a user gets ---------------------------------------------------------------------------------------------


def test_port_convert_check_and_validate(network: Path, tmp_path: Path) -> None:
    pre, npz = described(tmp_path), images(tmp_path)
    common = (network, "--target", P310, "--preprocessing", pre)
    done = run("port", *common, "--batch", "1,2", "--inputs", npz, "-o", tmp_path / "m.port", "--json")
    assert done.return_value == 0, (done.output, done.exception)
    verdict = Verdict.from_json(done.stdout)
    assert set(behind(verdict).values()) == {"pass"} and len(behind(verdict)) == 4
    assert verdict.details["image_cases"] == ["images", "images in gear 1"] and verdict.evidence_level == "static"
    made = porting.open_port(tmp_path / "m.port")
    assert made.manifest["ascend"][KEY] == json.loads(json.dumps({"schema": SCHEMA, "images": [parsed(pre)]}))
    (handoff,) = handoffs_of(made.path)
    handoff.verify()
    assert handoff.command.value("insert_op_conf") == CONFIG and b"mean_chn_0: 123" in (handoff.path / CONFIG).read_bytes()
    assert "takes pixels in place of numbers" in (handoff.path / "README.txt").read_text()

    assert run("convert", *common, "--batch", "1,2", "-o", tmp_path / "c.port").return_value == 0
    (other,) = handoffs_of(tmp_path / "c.port")
    assert (other.path / CONFIG).read_bytes() == (handoff.path / CONFIG).read_bytes()

    done = run("check", *common, "--inputs", npz, "--json")
    assert done.return_value == 0 and "images that AIPP cannot make by these sources" in done.stdout

    for against, given in (((), ()), (("--against", network), ("--inputs", npz))):
        done = run("validate", made.path, *against, *given, "--json")
        assert done.return_value == 0, (done.output, done.exception)
        assert set(behind(Verdict.from_json(done.stdout)).values()) == {"pass"}


def parsed(path: Path) -> dict[str, Any]:
    (image,) = from_json(json.loads(path.read_bytes()))
    return image.to_json()


def test_without_images_they_are_made(network: Path, tmp_path: Path) -> None:
    verdict = porting.port(network, tmp_path / "m.port", P310, gears="n=1; n=3", preprocessing=described(tmp_path)).require()
    assert verdict.details["image_cases"] == ["images0", "images1", "images2", "images3"]
    assert len(behind(verdict)) == 4


def test_a_port_without_a_description_is_as_before(network: Path, tmp_path: Path) -> None:
    verdict = porting.port(network, tmp_path / "m.port", P310, gears="n=1").require()
    assert not behind(verdict) and "image_cases" not in verdict.details
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert handoff.command.value("insert_op_conf") is None and not (handoff.path / CONFIG).exists()
    assert KEY not in porting.open_port(tmp_path / "m.port").manifest["ascend"]


def test_against_a_golden(network: Path, tmp_path: Path) -> None:
    pre = described(tmp_path)
    porting.port(network, tmp_path / "m.port", P310, gears="n=1", preprocessing=pre).require()
    golden = tmp_path / "m.port/evidence/golden.json"
    verdict = porting.port(network, tmp_path / "n.port", P310, gears="n=1", preprocessing=pre, against=golden).require()
    assert verdict.reference == "golden" and len(behind(verdict)) == 4
    with pytest.raises(UsageError, match="a golden has its own inputs"):
        porting.validate(tmp_path / "m.port", inputs=images(tmp_path))


def test_gears_of_height_and_width(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "c", name="conv"), node("GlobalAveragePool", "c", "y")]
    proto = model(nodes, {"x": [1, 3, "h", "w"]}, {"y": [1, 4, 1, 1]}, [weight("k", 4, 3, 3, 3)])
    onnx.save(proto, str(tmp_path / "m.onnx"))
    pre = described(tmp_path, source={"format": "RGB", "width": None, "height": None}, crop=None)
    done = run(
        "port",
        tmp_path / "m.onnx",
        "--target",
        P310,
        "--preprocessing",
        pre,
        "--image-size",
        "16,24;32,24",
        "-o",
        tmp_path / "m.port",
        "--json",
    )
    assert done.return_value == 0, (done.output, done.exception)
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert handoff.command.value("dynamic_image_size") == "16,24;32,24"
    for source in ({"format": "RGB", "width": None, "height": None}, SOURCE):  # any size, and one that the description fixes
        pre = described(tmp_path, source=source, crop=None)
        assert run("check", tmp_path / "m.onnx", "--target", P310, "--preprocessing", pre).return_value == 0
    assert "src_image_size_w: 0" in (handoff.path / CONFIG).read_text()


def test_half_floats_and_two_inputs(tmp_path: Path) -> None:
    """An input of fp16 beside a number: what a case holds besides pixels is fed as it is, and validated with them."""
    nodes = [node("Flatten", "x", "f", axis=1), node("MatMul", "f w", "p"), node("Mul", "p scale", "y")]
    half = TensorProto.FLOAT16
    inputs = {"scale": (["n", 1], half), "x": (["n", 3, SIDE, SIDE], half)}
    w = np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, 5)) / 40
    proto = model(nodes, inputs, {"y": (["n", 5], half)}, [constant("w", w, np.float16)])
    onnx.save(proto, str(tmp_path / "m.onnx"))
    pre = described(tmp_path)
    npz = images(tmp_path, 2, scale=np.array([[0.5], [2]], np.float16))
    verdict = porting.port(tmp_path / "m.onnx", tmp_path / "m.port", P310, gears="n=2", preprocessing=pre, inputs=npz).require()
    assert len(behind(verdict)) == 3
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert "related_input_rank: 1" in (handoff.path / CONFIG).read_text()
    assert len(behind(porting.validate(tmp_path / "m.port", tmp_path / "m.onnx", inputs=npz).require())) == 3
    assert not behind(porting.validate(tmp_path / "m.port").require())  # by its golden: nobody gives the number beside an image
    with pytest.raises(InputError, match="says nothing of input scale"):
        porting.port(tmp_path / "m.onnx", tmp_path / "n.port", P310, gears="n=2", preprocessing=pre)


def test_a_recurrent_model(tmp_path: Path) -> None:
    nodes = [
        node("GlobalAveragePool", "x", "g"),
        node("Flatten", "g", "f", axis=1),
        node("Add", "f h", "s"),
        node("MatMul", "s w", "p"),
        node("Tanh", "p", "hn"),
        node("MatMul", "hn v", "y"),
    ]
    inputs = {"x": [1, 3, SIDE, SIDE], "h": [1, 3]}
    proto = model(nodes, inputs, {"y": [1, 4], "hn": [1, 3]}, [weight("w", 3, 3), weight("v", 3, 4)])
    onnx.save(proto, str(tmp_path / "m.onnx"))
    verdict = porting.port(
        tmp_path / "m.onnx", tmp_path / "m.port", P310, state={"h": "hn"}, preprocessing=described(tmp_path)
    ).require()
    assert "relative error of y behind AIPP" in behind(verdict)
    assert len(behind(porting.validate(tmp_path / "m.port").require())) == len(behind(verdict))


# --- what does not fit --------------------------------------------------------------------------------------------


def refused(tmp_path: Path, network: Path, *more: object, pre: Path | None = None, command: str = "port") -> PortingError:
    output = () if command == "check" else ("-o", tmp_path / "m.port")
    arguments = (network, "--target", P310, "--preprocessing", pre or described(tmp_path), *more, *output)
    done = run(command, *arguments)
    assert isinstance(done.exception, PortingError) and done.exception.exit_code == 2, (done.output, done.exception)
    assert not (tmp_path / "m.port").exists()
    return done.exception


def test_floats_in_place_of_images(network: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.zeros((1, 3, SIDE, SIDE), np.float32))
    error = refused(tmp_path, network, "--batch", "1", "--inputs", tmp_path / "f.npz")
    assert "expected uint8 [N, 32, 32, 3] RGB, got float32[1, 3, 24, 24]" in error.what and "f.npz" in error.where
    porting.port(network, tmp_path / "m.port", P310, gears="n=1", preprocessing=described(tmp_path)).require()
    with pytest.raises(InputError, match="expected uint8"):
        porting.validate(tmp_path / "m.port", network, inputs=tmp_path / "f.npz")


def test_an_array_that_no_input_takes_is_named_with_the_users_file(network: Path, tmp_path: Path) -> None:
    error = refused(tmp_path, network, "--batch", "1", "--inputs", images(tmp_path, extra=np.zeros(1)))
    assert "no input 'extra'" in error.what and error.where == "images.npz"


def test_a_batch_that_is_no_gear(network: Path, tmp_path: Path) -> None:
    assert "no gear has the shapes" in refused(tmp_path, network, "--batch", "1,2", "--inputs", images(tmp_path, 3)).what


def test_dynamic_dims_and_open_shapes(tmp_path: Path, network: Path) -> None:
    assert "AIPP is compiled for fixed shapes" in refused(tmp_path, network).what
    nodes = [node("GlobalAveragePool", "x", "y")]
    onnx.save(model(nodes, {"x": ["n", 3, "h", 24]}, {"y": ["n", 3, 1, 1]}, []), str(tmp_path / "d.onnx"))
    error = refused(tmp_path, tmp_path / "d.onnx", "--gears", "n=1,h=24; n=2,h=32")
    assert "dynamic_dims" in error.what and "exclude each other" in error.what


@pytest.mark.parametrize("command", ["port", "convert", "check"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "y"}, "no input 'y'"),
        ({"crop": {**CROP, "width": SIDE - 1}}, "becomes 23 x 24 pixels"),
        ({"source": {**SOURCE, "format": "GRAY"}, "normalise": {}}, "takes 3 channels, GRAY has 1"),
        ({"normalise": {**IMAGENET, "std": [1e-9, 1, 1]}}, "nothing that fp16 holds"),
        ({"layout": "NHWC"}, "AIPP gives ONNX models NCHW"),
    ],
)
def test_descriptions_that_do_not_fit(network: Path, tmp_path: Path, command: str, fields: Any, message: str) -> None:
    gears = () if command == "check" else ("--batch", "1,2")
    assert message in refused(tmp_path, network, *gears, pre=described(tmp_path, **fields), command=command).what


@pytest.mark.parametrize("command", ["port", "convert", "check"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.485", "NaN", "no JSON"),
        ("0.485", "1e999", "expected a finite number"),
        ('"scale": 255', '"scale": 255, "scale": 1', "a key occurs twice"),
        ('"RGB"', '"RGB", "fromat": 1', "unknown key 'fromat'"),
        ("]}", "", "no JSON"),
    ],
)
def test_files_that_are_no_descriptions(network: Path, tmp_path: Path, command: str, old: str, new: str, message: str) -> None:
    pre = described(tmp_path)
    text = pre.read_text()
    assert old in text
    pre.write_text(text.replace(old, new))
    gears = () if command == "check" else ("--batch", "1,2")
    assert message in refused(tmp_path, network, *gears, pre=pre, command=command).what
    pre.unlink()
    assert "cannot be read" in refused(tmp_path, network, *gears, pre=tmp_path / "none.json", command=command).what


def test_inputs_that_are_no_images(tmp_path: Path) -> None:
    onnx.save(
        model([node("MatMul", "x w", "y")], {"x": ["n", 8]}, {"y": ["n", 4]}, [weight("w", 8, 4)]), str(tmp_path / "f.onnx")
    )
    for command, gears in (("port", ("--batch", "1")), ("check", ())):
        error = refused(tmp_path, tmp_path / "f.onnx", *gears, command=command)
        assert "AIPP makes images, and the model takes x: float32" in error.what


def test_a_language_model_has_no_images(tmp_path: Path) -> None:
    from tiny import make

    make(tmp_path / "llama", "LlamaForCausalLM")
    assert "no input 'x'" in refused(tmp_path, tmp_path / "llama").what


def test_another_target_knows_no_aipp(network: Path, tmp_path: Path) -> None:
    for function in (porting.port, porting.convert):
        with pytest.raises(UsageError, match="cpu is not compiled with CANN") as caught:
            function(network, tmp_path / "m.port", preprocessing=described(tmp_path))
        assert caught.value.where == "--preprocessing"


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertModel"])
def test_checks_made_elsewhere_count_for_every_kind_of_port(kind: str, tmp_path: Path) -> None:
    from tiny import make
    from tiny_encoders import make_encoder

    (make if kind == "LlamaForCausalLM" else make_encoder)(tmp_path / "model", kind)
    porting.convert(tmp_path / "model", tmp_path / "m.port")
    made = porting.open_port(tmp_path / "m.port")
    with judgement_for(made, tmp_path / "model", "cpu", (), {}) as judgement:
        verdict = judgement.judge(made, "cpu", more=[Check("made elsewhere", "fail", 1, 0, "there")])
    assert verdict.exit_code == 1 and verdict.reason.startswith("made elsewhere")


def test_w8a8_is_calibrated_on_images(network: Path, tmp_path: Path) -> None:
    """The integer graph too is held to what AIPP makes of images, with the description's numbers in its calibration."""
    given = from_json(json.loads(described(tmp_path).read_bytes()))[0]
    files = [tmp_path / f"c{seed}.npz" for seed in range(6)]
    for seed, path in enumerate(files):
        np.savez(path, x=generated_pixels(given, (1, 3, SIDE, SIDE), seed))
    options: dict[str, Any] = {"gears": "n=1", "preprocessing": tmp_path / "pre.json", "calibration": files}
    verdict = porting.port(network, tmp_path / "m.port", P310, "w8a8", **options, inputs=files[:1])
    assert set(behind(verdict).values()) == {"pass"} and len(behind(verdict)) == 4
    floats = tmp_path / "f.npz"
    np.savez(floats, x=np.zeros((1, 3, SIDE, SIDE), np.float32))
    with pytest.raises(InputError, match="expected uint8"):
        porting.port(network, tmp_path / "n.port", P310, "w8a8", **{**options, "calibration": [floats]})
