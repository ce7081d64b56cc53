"""What an encoder is compared with: transformers' own class in fp32 with the weights as we decoded them, and the inputs for it.

The names of tensors are matched here from upstream's side, not with the converter's code, so that a mistake there shows. What a
sentence-transformers folder does behind the encoder is computed here by torch, from that project's definitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.embedding import TextPreparation, padded
from porting.errors import InputError
from porting.gear_runs import TOKENS, Gear
from porting.inputs import SEED, TEXTS
from porting.npz import read_npz
from porting.registry import load_architecture
from porting.upstream import NOT_MATHS, build_upstream, fill_upstream, upstream_version

if TYPE_CHECKING:
    from porting.types import Checkpoint

LENGTHS = (32, 21, 9, 2)  # tokens kept of each text: rows of one batch that are filled up
LONGEST = 512  # positions of the longest case: what a reference in fp32 on a CPU can be asked for
OLD_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))  # of TensorFlow's checkpoints
OUTPUTS = ("last_hidden_state", "pooler_output", "logits")
SENTENCE = "sentence_transformers"


class EncoderReference:
    """The `Original` protocol (porting/types.py) over transformers' class.

    description: for the report
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """raises: EvidenceUnavailable (no torch or transformers, or it disagrees about the tensors), CheckpointError, UnsupportedModel"""
        from porting.conversion import canonical_graph

        canonical = canonical_graph(checkpoint)
        architecture = canonical.architecture
        config = {k: v for k, v in checkpoint.config.items() if k not in (*NOT_MATHS, SENTENCE)}
        bare = architecture.endswith("Model")
        has_pooler = bare and any(name.endswith("pooler.dense.weight") for name in checkpoint.tensors)
        self._model = build_upstream(architecture, config, **({"add_pooling_layer": has_pooler} if bare else {}))
        self._sentence = checkpoint.config.get(SENTENCE)
        dense = {s["name"] for s in (self._sentence or {}).get("steps", []) if s["kind"] == "dense"}
        behind = {n for n in checkpoint.tensors if n.partition(".")[0] in dense}
        dropped = {str(entry["name"]) for entry in canonical.tensors["dropped"]}
        fill_upstream(self._model, architecture, checkpoint, _stored_names(checkpoint, self._model), dropped | behind)
        self._weights = {name: checkpoint.rows(name, 0, checkpoint.tensors[name].shape[0]) for name in behind}
        self.description = f"transformers {upstream_version()}, {architecture}, fp32 on the CPU"

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Output name -> float32 array, padded positions included.

        feeds:  input_ids, and attention_mask and token_type_ids where they are not all 1 and all 0; (batch, sequence) int64
        raises: InputError when upstream does not take them
        """
        import torch

        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
        tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
        try:
            outputs = self.outputs(tensors)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"upstream does not take the feeds: {type(error).__name__}: {error}", where="reference") from error
        return {name: value.float().numpy() for name, value in outputs.items()}

    def outputs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """As `run`, of torch tensors that lie where the model does, attention_mask among them. raises: what torch raises"""
        import torch

        with torch.inference_mode():
            found = self._model(**tensors)
            outputs = {name: found[name] for name in OUTPUTS if found.get(name) is not None}
            if self._sentence is not None:
                outputs["sentence_embedding"] = self._embedded(outputs["last_hidden_state"], tensors["attention_mask"])
        return outputs

    @property
    def module(self) -> Any:
        """transformers' model, None once it is closed. A backend may move it to its device."""
        return self._model

    def close(self) -> None:
        """Forget the model. Safe to call twice."""
        self._model = None

    def _embedded(self, hidden: Any, mask: Any) -> Any:
        """(batch, sequence, hidden), (batch, sequence) -> (batch, dimensions)."""
        import torch

        assert self._sentence is not None
        hidden = hidden.float()
        shown = mask.unsqueeze(-1).expand(hidden.size()).float()
        how = self._sentence["pooling"]
        if how == "cls":
            x = hidden[:, 0]
        elif how == "max":
            x = hidden.masked_fill(shown == 0, -1e9).max(dim=1).values
        else:
            count = shown.sum(1).clamp(min=1e-9)
            x = (hidden * shown).sum(1) / (count if how == "mean" else count.sqrt())
        for step in self._sentence["steps"]:
            if step["kind"] == "normalize":
                x = torch.nn.functional.normalize(x, p=2, dim=1)
                continue
            weight, bias = (self._weights.get(f"{step['name']}.linear.{kind}") for kind in ("weight", "bias"))
            x = torch.nn.functional.linear(x, _tensor(weight, x), None if bias is None else _tensor(bias, x))
            x = _ACTIVATIONS[step["activation"]](torch, x)
        return x


_ACTIVATIONS = {
    "identity": lambda torch, x: x,
    "tanh": lambda torch, x: torch.tanh(x),
    "relu": lambda torch, x: torch.relu(x),
    "gelu": lambda torch, x: torch.nn.functional.gelu(x),
    "silu": lambda torch, x: torch.nn.functional.silu(x),
}


def _tensor(rows: np.ndarray | None, like: Any) -> Any:
    """A weight where, and as, the numbers are that it is multiplied with."""
    import torch

    assert rows is not None
    return torch.from_numpy(rows.astype(np.float32)).to(device=like.device, dtype=like.dtype)


def _stored_names(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Upstream's parameters -> what the checkpoint calls them. A tied one has two names upstream and may be stored under either."""
    known_as: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known_as.setdefault(id(parameter), []).append(name)
    found = {}
    for first, parameter in model.named_parameters():
        spellings = [s for name in known_as[id(parameter)] for s in _spellings(name, f"{model.base_model_prefix}.")]
        found[first] = next((s for s in spellings if s in checkpoint.tensors), first)
    return found


def _spellings(name: str, prefix: str) -> list[str]:
    """With or without the prefix of the encoder, in new names or TensorFlow's."""
    bare = name.removeprefix(prefix)
    kinds = [bare, *(bare.replace(new, old) for new, old in OLD_NAMES if new in bare)]
    return [p + kind for kind in kinds for p in (prefix, "")]


# --- inputs ------------------------------------------------------------------------------------------------------


def encoder_cases(
    config: Mapping[str, Any], side_files: Mapping[str, bytes], inputs: Sequence[Path] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """What an encoder is validated on.

    config:     of the checkpoint, its architecture included
    side_files: tokenizer.json and tokenizer_config.json, where there are any; without a tokenizer all ids are seeded
    inputs:     .npz files, each a case of its own, one array per input
    returns:    case name -> input name -> (batch, sequence) int64: texts of different lengths in one batch, one without padding,
                seeded ids with every token type and padding between tokens, and as many positions as the model has, up to LONGEST
    raises:     InputError
    """
    if inputs:
        return _from_files(inputs)
    architecture = str(config["architectures"][0])
    module = load_architecture(architecture)
    if module is None:
        raise InputError(f"{architecture} is not covered", where="config.json")
    longest = min(module.longest(config), LONGEST)
    types = int(config.get("type_vocab_size", 2))
    cases = _seeded(int(config["vocab_size"]), types, config.get("pad_token_id"), longest)
    if side_files.get("tokenizer.json") is None:
        return cases
    prepared = TextPreparation(config, architecture, side_files["tokenizer.json"], side_files.get("tokenizer_config.json"))
    rows = [prepared.ids(text, n)[:length] for n, (text, length) in enumerate(zip(TEXTS.values(), LENGTHS, strict=True))]
    return {"texts": padded(rows, prepared.padding), "one": padded(rows[:1], prepared.padding), **cases}


def cases_in_gears(
    cases: Mapping[str, Mapping[str, np.ndarray]], gears: Sequence[Gear], padding: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """The cases in the shapes of a port that knows no other: rows taken again or left out, positions cut off, or filled up and masked.

    gears:   () leaves the cases as they are
    returns: every case that has such a shape already, and for gears that none has, each case brought to it
    """
    if not gears:
        return {name: dict(feeds) for name, feeds in cases.items()}
    found, met = {}, set()
    for name, feeds in cases.items():
        place = next((i for i, g in enumerate(gears) if g[TOKENS] == feeds[TOKENS].shape), None)
        if place is not None:
            found[name] = dict(feeds)
            met.add(place)
    for i, gear in enumerate(gears):
        for name, feeds in cases.items() if i not in met else ():
            found[f"{name}, {'x'.join(map(str, gear[TOKENS]))}"] = in_gear(feeds, gear[TOKENS], padding)
    return found


def in_gear(feeds: Mapping[str, np.ndarray], shape: tuple[int, ...], padding: int) -> dict[str, np.ndarray]:
    """Feeds of (rows, positions) in another shape. What fills up is not attended to."""
    rows, positions = shape
    complete = {"attention_mask": np.ones_like(feeds[TOKENS]), **feeds}
    made = {}
    for name, array in complete.items():
        cut = np.resize(array[:, :positions], (rows, min(array.shape[1], positions)))  # np.resize takes rows again
        fill = padding if name == TOKENS else 0
        made[name] = np.pad(cut, ((0, 0), (0, positions - cut.shape[1])), constant_values=fill)
    return made


def _seeded(vocab: int, types: int, padding: Any, longest: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(SEED)
    length = min(LENGTHS[0], longest)
    ids = rng.integers(0, vocab, (3, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1, length // 2 :] = 0
    mask[2, length // 3 : length // 2] = 0
    if isinstance(padding, int) and 0 <= padding < vocab:
        ids[mask == 0] = padding
    mixed = {"input_ids": ids, "attention_mask": mask}
    if types > 1:
        mixed["token_type_ids"] = np.sort(rng.integers(0, types, (3, length), dtype=np.int64), axis=1)
    whole = rng.integers(0, vocab, (1, longest), dtype=np.int64)
    return {"seeded": mixed, "longest": {"input_ids": whole, "attention_mask": np.ones_like(whole)}}


def _from_files(inputs: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    """raises: InputError naming file and array"""
    cases: dict[str, dict[str, np.ndarray]] = {}
    for path in inputs:
        arrays = read_npz(path)
        if "input_ids" not in arrays:
            raise InputError(f"the case needs an array input_ids, got {', '.join(arrays) or 'none'}", where=str(path))
        for name, array in arrays.items():
            if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape != arrays["input_ids"].shape or 0 in array.shape:
                shown = f"{array.dtype}{list(array.shape)}"
                raise InputError(
                    f"array {name!r} should be (batch, sequence) integers like input_ids, got {shown}", where=str(path)
                )
        name = path.stem if path.stem not in cases else f"{path.stem} {len(cases) + 1}"
        cases[name] = {name: array.astype(np.int64) for name, array in arrays.items()}
    return cases
