"""porting.check: will a model port to an Ascend SoC, in which precision, on how many cards? On no device, and nothing is written.

source -> canonical graph -> sizes of its gears -> judged before and after the passes
                                                -> memory, as a lower bound
                                                -> with inputs or a text: what overflows in fp16, and what has to stay in fp32
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porting.ascend.checking import BLOCKED, Judged, ascend_target, source_name, verdict_of
from porting.ascend.compilation import FIXED_SHAPES, Compilation, Wishes, judged_for
from porting.ascend.exceptions import Exceptions, exceptions_for, most_tokens, no_forecast, token_feeds
from porting.ascend.facts_file import Facts
from porting.ascend.facts_reading import read_facts
from porting.ascend.gear_requests import Request
from porting.ascend.half_formats import FORMATS
from porting.ascend.image_inputs import images_check
from porting.ascend.memory import FLOAT_BYTES, boards, memory_bound
from porting.ascend.preprocessing import read_preprocessing
from porting.ascend.probe_facts import require_fitting
from porting.ascend.soc import find_cann, find_soc
from porting.ascend.whole_numbers import integer_carriers_of
from porting.conversion import ENCODER, LANGUAGE_MODEL, Canonical, canonical_graph
from porting.cuts import cut_details
from porting.embedding import TextPreparation, padded
from porting.encoder_reference import cases_in_gears, encoder_cases
from porting.errors import InputError, UsageError
from porting.feeds import cases_from_npz
from porting.gear_runs import Gear, gear_of
from porting.inputs import cases_of, paths_of
from porting.port_writer import specs_of
from porting.progress import silent
from porting.sources import opened
from porting.state import state_buffers
from porting.targets import Target
from porting.types import Graph, Program
from porting.verdict import Check, Verdict, printable

UNDECIDED = "undecided"  # no rule blocks, and what was fed does not show that the numbers hold


def check(
    source: Any,
    target: str = "ascend",
    precision: str | None = None,
    *,
    cann: str | None = None,
    gears: str | Request | None = None,
    device_memory: int | None = None,
    inputs: str | Path | Sequence[str | Path] | None = None,
    text: str | Sequence[str] | None = None,
    preprocessing: str | Path | None = None,
    facts: str | Path | None = None,
    facts_key: str | Path | None = None,
    progress: Any = silent,
    **options: Any,
) -> Verdict:
    """Will it port? Nothing is written, and no device is needed.

    source, options: as `porting.convert` takes them
    precision:       what it is to be compiled in; fp32, or fp16 where the SoC's matrix unit takes nothing else
    cann:            the CANN release that it will be compiled with; every one that is known when left out
    gears:           the shapes that it will be compiled for, as `porting.convert` takes them
    device_memory:   bytes of the card: more than that at least is a check that fails
    inputs:          .npz files, as `porting.port` takes them: what overflows in fp16 on them, and which nodes have to stay in fp32
    text:            the same from texts, of a language model or an encoder with its tokenizer
    preprocessing:   a file that says how inputs are made from uint8 images: what AIPP cannot do of it is an error
    facts:           a file of what `porting probe` saw of this chip: rules that hold there, block no more, or block now; simulated ones are only told
    facts_key:       a PEM file with the public key of whoever made them; without it their integrity is checked, and no more
    returns:         a verdict of level "static": details["portability"] is "portable", "portable after rewrites" or "blocked" (exit 1: by a rule, by
                     what overflows, or by a memory too small), or "undecided" (exit 3: the forecast could not tell)
    raises:          UsageError (no Ascend target, unknown release, gears, images that AIPP cannot make, facts of another chip or release), InputError
                     (inputs that do not fit, or hold NaN; facts that are none, or not signed with that key), and what reading the source raises
    """
    from porting.converters.passes.ascend.tables import HIGHEST_OPSET

    start = time.perf_counter()
    wanted = ascend_target(target)
    images = () if preprocessing is None else read_preprocessing(preprocessing)
    probed, told = _probed(facts, facts_key, wanted, cann)
    wishes = Wishes(cann, Request(named=gears) if isinstance(gears, str) else gears, facts=probed)
    texts, files = [text] if isinstance(text, str) else list(text or ()), paths_of(inputs)
    with opened(source, **options) as found, progress("check", 3, unit="steps") as advance:
        canonical = canonical_graph(found, HIGHEST_OPSET)
        advance(1)
        compilation = judged_for(canonical, wanted, precision, wishes)
        result = compilation.judged
        more = images_check(images, specs_of(result.lowered.model), result.soc) if images else []
        bound, held = memory_of(compilation, device_memory)
        advance(1)
        exceptions = None
        if (files or texts) and result.portability != "blocked":
            exceptions = exceptions_for(result, result.lowered, feeds_for(compilation, files, texts))
        advance(1)
    forecast = forecast_details(result, exceptions, bool(files or texts))
    if compilation.free:
        forecast["left_open"] = f"{printable(', '.join(compilation.free), 200)}; {FIXED_SHAPES}"
    checks = [*more, *held, *(exceptions.checks() if exceptions is not None else [])]
    return _verdict(result, canonical, wanted, start, checks, {**bound, **forecast, **told})


def _probed(
    facts: str | Path | None, key: str | Path | None, target: Target, cann: str | None
) -> tuple[Facts | None, dict[str, Any]]:
    """The facts, and what the report says of them. raises: UsageError, InputError"""
    if facts is None:
        if key is not None:
            raise UsageError("a key, and no facts", where="--facts-key", next="give --facts FILE")
        return None, {}
    found = read_facts(facts, None if key is None else Path(key))
    said = require_fitting(found, find_soc(target.name), find_cann(cann))
    about = {
        "file": str(facts),
        "level": found.level,
        "made": found.made,
        "complete": found.complete,
        "signature": found.checked,
    }
    return found, {"facts": {**about, "said": said}}


def _verdict(
    result: Judged, canonical: Canonical, target: Target, start: float, checks: Sequence[Check], details: Mapping[str, Any]
) -> Verdict:
    verdict = verdict_of(result, "check", source_name(canonical), target, time.perf_counter() - start, checks)
    portability = {"pass": result.portability, "fail": BLOCKED, "error": UNDECIDED}[verdict.verdict]
    found = {**verdict.details, "portability": portability, **cut_details(canonical.config), **details}
    return Verdict(**{**verdict.__dict__, "details": found})


def forecast_details(result: Judged, found: Exceptions | None, asked: bool) -> dict[str, Any]:
    """What the report says of the forecast: JSON types only."""
    if found is not None:
        return {"forecast": found.details()}
    if reason := no_forecast(result):
        return {"forecast": reason}
    if asked:
        return {"forecast": "none: the model is blocked"}
    carriers = integer_carriers_of(result.facts)
    more = (
        f"; {len(carriers)} nodes carry integers in floats, which {result.precision} holds up to {2 ** FORMATS[result.precision].bits} only"
        if carriers
        else ""
    )
    return {"forecast": f"not asked for: give --inputs or --text{more}"}


# --- memory -------------------------------------------------------------------------------------------------------


def memory_of(compilation: Compilation, device_memory: int | None) -> tuple[dict[str, Any], list[Check]]:
    """The lower bound for the report, and the check of a memory that was given. raises: UsageError"""
    result, gears = compilation.judged, compilation.gears
    precision = result.precision if result.precision in FLOAT_BYTES else "fp32"
    sizes = None if gears is None else gears.sizes_of(specs_of(result.lowered.model))
    bound = memory_bound(result.lowered, precision, sizes)
    cards = boards(bound, result.soc, device_memory)
    content = {
        **bound.content(),
        "boards": [{"bytes": b.nbytes, "cards_at_least": b.cards_at_least, "known_from": b.known_from} for b in cards],
    }
    if device_memory is None:
        return {"memory": content}, []
    where = f"weights {bound.weights}, cache {bound.cache}, activations {bound.fullest.nbytes} at {bound.fullest.node}"
    why = f"a lower bound; {cards[0].cards_at_least} cards at least" if bound.total > device_memory else "a lower bound"
    if bound.unsized:
        where += f", {bound.unsized} values of unknown size left out"
        why += f"; it leaves out {bound.unsized} values whose size is not known: give the gears (--batch, --image-size, --dims, --gears)"
    return {"memory": content}, [Check.at_most("bytes that the card needs at least", bound.total, device_memory, where, why)]


# --- inputs for the forecast ----------------------------------------------------------------------------------------


def feeds_for(compilation: Compilation, files: Sequence[Path], texts: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
    """Cases for the lowered graph, an array for every input each. raises: InputError, UsageError"""
    canonical, graph = compilation.canonical, compilation.judged.lowered
    source, config = canonical.source, canonical.config
    program = program_of(graph)
    shapes = compilation.gears.shapes if compilation.gears is not None else ()
    if canonical.kind == LANGUAGE_MODEL:
        side = source.side_files()  # type: ignore[union-attr]  # of a checkpoint
        ids = cases_of(config, side.get("tokenizer.json"), files) if files else tokens_of(side.get("tokenizer.json"), texts)
        require_room(program, ids)
        return [token_feeds(program, array) for array in ids.values()]
    if canonical.kind == ENCODER:
        side = source.side_files()  # type: ignore[union-attr]
        given = encoder_cases(config, side, files) if files else encoder_texts(canonical, side, texts)
        return [_complete(program, feeds) for feeds in cases_in_gears(given, shapes).values()]
    if texts:
        raise UsageError(
            "this model comes as a graph, and nothing says how it reads a text", where="--text", next="--inputs x.npz"
        )
    return graph_cases(program, files, shapes)


def program_of(graph: Graph) -> Program:
    """What the inputs of a graph are; it cannot be run."""
    return Program(b"", specs_of(graph.model), (), graph.state, graph.defaults)


def tokens_of(tokenizer_json: bytes | None, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Text number -> (1, tokens) int64. raises: InputError"""
    from porting.generation.tokens import encode, tokenizer_from_bytes

    tokenizer = tokenizer_from_bytes(tokenizer_json)
    found = {
        f"text{i}": np.asarray([encode(tokenizer, text, add_special_tokens=True)], np.int64) for i, text in enumerate(texts)
    }
    empty = next((name for name, ids in found.items() if not ids.size), None)
    if empty is not None:
        raise InputError(f"{empty} has no tokens", where="--text", next="give some text")
    return found


def require_room(program: Program, ids: Mapping[str, np.ndarray]) -> None:
    """raises: InputError for a case that one run does not take"""
    most = most_tokens(program)
    name = max(ids, key=lambda case: ids[case].shape[1])
    if most is not None and ids[name].shape[1] > most:
        raise InputError(
            f"case {printable(name, 60)!r} has {ids[name].shape[1]} tokens, and a run from an empty cache takes {most}",
            where="forecast",
            next='shorten it, or name larger gears: --gears "capacity=2048"; of a gear for one token alone nothing can be forecast',
        )


def encoder_texts(canonical: Canonical, side: Mapping[str, bytes], texts: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    files = (side.get("tokenizer.json"), side.get("tokenizer_config.json"))
    prepared = TextPreparation(canonical.config, canonical.architecture, *files)
    return {"texts": padded([prepared.ids(text, number) for number, text in enumerate(texts)], prepared.padding)}


def graph_cases(program: Program, files: Sequence[Path], shapes: Sequence[Gear]) -> Sequence[Mapping[str, np.ndarray]]:
    """The user's files, state that they leave out being zeros. raises: InputError for what does not fit, or is no gear"""
    hidden = {pair.input for pair in program.state.pairs}
    plain = [spec for spec in program.inputs if spec.name not in hidden]
    try:
        cases = cases_from_npz(files, plain)
    except InputError:
        cases = cases_from_npz(files, program.inputs)
    found = [_complete(program, feeds) for feeds in cases.feeds.values()]
    for feeds in found:
        if shapes:
            gear_of(shapes, {name: np.shape(array) for name, array in feeds.items()})
    return found


def _complete(program: Program, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every input: masks of ones and other defaults in the shape of the tokens, and state of zeros."""
    specs = {spec.name: spec for spec in program.inputs}
    sizes = {d: n for name, array in feeds.items() for d, n in zip(specs[name].shape, np.shape(array), strict=True)}
    made = dict(feeds)
    for name, number in program.defaults.items():
        if name not in made:
            made[name] = np.full([d if isinstance(d, int) else sizes[d] for d in specs[name].shape], number, specs[name].dtype)
    buffers = state_buffers(program, 0, 1) if program.state.pairs else {}
    for name, buffer in buffers.items():
        made.setdefault(name, np.zeros(buffer.shape, buffer.dtype))
    return made
