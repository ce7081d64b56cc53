"""What a language model is validated on: a few texts of different kinds, or seeded token ids where there is no tokenizer.

The texts are our own and lie in this file, so that a golden recorded on one machine and a port validated on another see the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.errors import InputError

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
SEED = 20261122  # of the ids for a model without a tokenizer


def language_model_inputs(config: Mapping[str, Any], tokenizer_json: bytes | None) -> dict[str, np.ndarray]:
    """Cases for a causal language model.

    tokenizer_json: a `tokenizers` file, or None for seeded ids
    returns:        case name -> (1, up to 32) int64 token ids
    raises:         InputError when the tokenizer gives ids outside the vocabulary
    """
    vocab = int(config["vocab_size"])
    limit = min(POSITIONS, int(config.get("max_position_embeddings") or POSITIONS))
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


def inputs_from_npz(path: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A user's own cases: an .npz whose arrays are (batch, sequence) integer token ids, one case each.

    raises: InputError naming the array
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            cases = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"inputs cannot be read: {error}", where=str(path), next="an .npz with one integer array per case"
        ) from error
    vocab = int(config["vocab_size"])
    for name, ids in cases.items():
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or 0 in ids.shape:
            raise InputError(
                f"case {name!r} should be (batch, sequence) integers, got {ids.dtype}{list(ids.shape)}", where=str(path)
            )
        if ids.min() < 0 or ids.max() >= vocab:
            raise InputError(f"case {name!r} has ids outside 0..{vocab - 1}", where=str(path))
    if not cases:
        raise InputError("no case in the file", where=str(path))
    return {name: ids.astype(np.int64) for name, ids in cases.items()}
