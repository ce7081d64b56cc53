"""What a language model is validated on: a few texts of different kinds, or seeded token ids where there is no tokenizer.

The texts are our own and lie in this file, so that a golden recorded on one machine and a port validated on another see the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import InputError
from porting.identity import dynamic_from, window_of
from porting.npz import read_npz

LONGEST = 512  # positions of a case that leaves a sliding window: what a reference in fp32 on a CPU can be asked for
BEYOND = 16  # positions past the window: the first ones no longer see the start
POSITIONS = 32  # token ids per text: enough for a context to form, few enough for a golden in kilobytes
TEXTS = {
    "prose": (
        "The harbour was quiet before dawn. Two fishing boats lay against the stone wall, and a man in a yellow coat counted the ropes "
        "on the deck while the first gulls came in from the sea and settled on the roofs of the old warehouses."
    ),
    "facts": (
        "The capital of France is Paris. The capital of Japan is Tokyo. Water boils at 100 degrees Celsius at sea level, and light travels "
        "about 300,000 kilometres in one second, which is why the moon appears to us as it was a little more than a second ago."
    ),
    "code": (
        "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n\n\n"
        "def variance(values):\n    centre = mean(values)\n    return mean([(v - centre) ** 2 for v in values])\n"
    ),
    "chinese": "人工智能模型需要在不同的硬件上运行，因此每一次移植都必须用数字来证明结果仍然正确，而不是只说它已经成功。",
}
UNLIMITED = 1 << 31  # positions
SEED = 20261122  # of the ids for a model without a tokenizer


def paths_of(inputs: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """The .npz files that a caller gave: none, one or several."""
    if inputs is None:
        return ()
    return (Path(inputs),) if isinstance(inputs, (str, Path)) else tuple(Path(path) for path in inputs)


def cases_of(config: Mapping[str, Any], tokenizer_json: bytes | None, inputs: Sequence[Path]) -> dict[str, np.ndarray]:
    """Case name -> (batch, sequence) int64 token ids: the user's own, or the built-in texts. raises: InputError"""
    if not inputs:
        return language_model_inputs(config, tokenizer_json)
    cases: dict[str, np.ndarray] = {}
    for path in inputs:
        found = inputs_from_npz(path, config)
        twice = sorted(cases.keys() & found.keys())
        if twice:
            raise InputError(
                f"case {twice[0]!r} is in two of the files", where=str(path), next="give each case a name of its own"
            )
        cases |= found
    return cases


def language_model_inputs(config: Mapping[str, Any], tokenizer_json: bytes | None) -> dict[str, np.ndarray]:
    """Cases for a causal language model.

    tokenizer_json: a `tokenizers` file, or None for seeded ids
    returns:        case name -> (1, up to 32) int64 token ids, and a case "window" that is longer than a sliding window, where there is one
                    and it is short enough to be run; `not_reached` says what the cases leave out
    raises:         InputError when the tokenizer gives ids outside the vocabulary
    """
    vocab = _count(config, "vocab_size")
    window = window_of(config)
    beyond = {}
    if window is not None and POSITIONS < window + BEYOND <= min(LONGEST, context_of(config)):
        beyond["window"] = np.random.default_rng(SEED + 1).integers(0, vocab, (1, window + BEYOND), dtype=np.int64)
    return {**_cases(config, tokenizer_json, vocab), **beyond}


def not_reached(config: Mapping[str, Any], cases: Mapping[str, np.ndarray]) -> list[str]:
    """What of the model the cases are too short to show, for the report."""
    longest = max(ids.shape[1] for ids in cases.values())
    window, dynamic = window_of(config), dynamic_from(config)
    left = []
    if window is not None and longest <= window:
        left.append(f"the sliding window of {window} positions")
    if dynamic is not None and longest <= dynamic:
        left.append(f"dynamic rope scaling beyond {dynamic} positions")
    return left


def _cases(config: Mapping[str, Any], tokenizer_json: bytes | None, vocab: int) -> dict[str, np.ndarray]:
    limit = min(POSITIONS, context_of(config))
    if tokenizer_json is None:
        rng = np.random.default_rng(SEED)
        return {f"seeded{i}": rng.integers(0, vocab, (1, limit), dtype=np.int64) for i in range(len(TEXTS))}
    from porting.generation.tokens import encode, tokenizer_from_bytes

    tokenizer = tokenizer_from_bytes(tokenizer_json)
    cases = {}
    for name, text in TEXTS.items():
        ids = np.asarray([encode(tokenizer, text, add_special_tokens=False)[:limit]], np.int64)
        if ids.size and ids.max() >= vocab:
            raise InputError(
                f"the tokenizer gives id {ids.max()}, the model has {vocab}",
                where="tokenizer.json and config.json",
                next="they belong to different models",
            )
        if ids.shape[1] > 1:
            cases[name] = ids
    if not cases:
        raise InputError(
            "the tokenizer makes nothing of the validation texts: these inputs show nothing", where="tokenizer.json"
        )
    return cases


def inputs_from_npz(path: str | Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A user's own cases: an .npz whose arrays are (batch, sequence) integer token ids, one case each.

    raises: InputError naming the array
    """
    cases = read_npz(path)
    for name, ids in cases.items():
        if ids.dtype.kind not in "iu":
            raise InputError(
                f"case {name!r} should be (batch, sequence) integers, got {ids.dtype}{list(ids.shape)}", where=str(path)
            )
        if ids.dtype == np.uint64 and ids.size and ids.max() >= 1 << 63:
            raise InputError(f"case {name!r} has ids beyond every vocabulary", where=str(path))
    cases = {name: ids.astype(np.int64) for name, ids in cases.items()}
    require_cases(cases, config, str(path))
    return cases


def require_cases(cases: Mapping[str, np.ndarray], config: Mapping[str, Any], where: str) -> None:
    """Cases that fit the model, and that show something: one at least has a second position, which looks back at the first.

    raises: InputError
    """
    vocab, context = _count(config, "vocab_size"), context_of(config)
    for name, ids in cases.items():
        if ids.ndim != 2 or ids.dtype != np.int64 or 0 in ids.shape:
            raise InputError(
                f"case {name!r} should be (batch, sequence) token ids, got {ids.dtype}{list(ids.shape)}", where=where
            )
        if ids.min() < 0 or ids.max() >= vocab:
            raise InputError(f"case {name!r} has ids outside the vocabulary, 0..{vocab - 1}", where=where)
        if ids.shape[1] > context:
            raise InputError(f"case {name!r} has {ids.shape[1]} positions, the model's context is {context}", where=where)
    if max((ids.shape[1] for ids in cases.values()), default=0) < 2:
        raise InputError(
            "no case has two positions: nothing would look back at anything", where=where, next="use longer inputs"
        )
    if vocab > 1 and not any((ids != ids[:, :1]).any() for ids in cases.values()):
        raise InputError(
            "every case repeats one token: what attention looks at would make no difference", where=where, next="use real text"
        )


def context_of(config: Mapping[str, Any]) -> int:
    """max_position_embeddings; a config without one limits nothing. raises: InputError"""
    return UNLIMITED if config.get("max_position_embeddings") is None else _count(config, "max_position_embeddings")


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InputError(f"{key} should be a positive number, got {value!r}", where="config.json")
    return value
