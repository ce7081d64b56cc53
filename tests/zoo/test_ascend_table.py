"""docs/ascend_portability.md speaks of every model of the zoo, and of what the tools say now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.ascend_table import AT, HEAD, SOCS, models, row

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ascend_portability.md"


def rows() -> dict[str, list[str]]:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


def test_it_has_every_model_and_ends_each_one_way_or_the_other() -> None:
    assert DOCUMENT.read_text(encoding="utf-8").startswith(HEAD)
    found = rows()
    assert list(found) == [name for name, _ in models()]
    for name, (gears, *cells) in found.items():
        assert len(cells) == len(SOCS) and all(c.startswith(("portable, ", "blocked: ")) for c in cells), name
        assert bool(gears) == any(c.startswith("portable, ") for c in cells), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rnet (torch)",
        "magika: model.onnx",
        "text2tashkeel: bilstm.int8.onnx",
        "rapidocr-onnxruntime: ch_PP-OCRv4_det_infer.onnx",
    ],
)
def test_what_it_says_is_what_comes_out(name: str) -> None:
    gears, cells = row(dict(models())[name], AT.get(name, ""))
    said_gears, *said = rows()[name]
    assert gears == said_gears

    def short(text: str) -> str:
        return text.partition(",")[0].partition(" (")[0]

    assert [short(c) for c in cells] == [short(c) for c in said]
