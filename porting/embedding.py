"""From texts to vectors with a port of an encoder: tokenize, pad, run, pool.

What a sentence-transformers folder says about pooling is in the port's graph (output "sentence_embedding"). Of another encoder the caller
has to say how its hidden states become one vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import InputError, UsageError, nearest
from porting.gear_runs import TOKENS, fitting
from porting.generation.tokens import encode, tokenizer_from_bytes
from porting.registry import load_architecture
from porting.session import Session, load

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from porting.port_folder import Port

HIDDEN, SENTENCE = "last_hidden_state", "sentence_embedding"
LEAST_NORM = 1e-12  # as torch.nn.functional.normalize
NO_LIMIT = 1 << 20  # tokenizer_config.json says 1e30 where nobody said anything


def embed(
    port: str | Path,
    texts: Sequence[str],
    device: str = "cpu",
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """One vector per text.

    port:      of an encoder, with its tokenizer
    texts:     cut off where they are longer than the model takes
    pooling:   "mean", "cls", "max" or "mean_sqrt_len"; needed where the port has no sentence_embedding of its own, refused where it has
    normalize: to length 1; belongs to `pooling`
    returns:   (texts, dimensions) float32, in the order of the texts
    raises:    InputError (no encoder, no tokenizer, a text without tokens), UsageError, PortError, DeviceUnavailable
    """
    with Embedder(port, device, pooling=pooling, normalize=normalize) as embedder:
        return embedder(texts, batch_size=batch_size)


class Embedder:
    """An opened port that turns texts into vectors; arguments as of `embed`.

    device:     the one that runs
    dimensions: of a vector
    limit:      tokens of a text that are looked at
    """

    def __init__(
        self, port: str | Path, device: str = "cpu", *, pooling: str | None = None, normalize: bool | None = None
    ) -> None:
        from porting.port_folder import open_port

        opened = open_port(port)
        outputs = {str(o["name"]): o["shape"] for o in opened.manifest["outputs"]}
        self._output, self._pool = _how(outputs, pooling, normalize, str(port))
        self.dimensions = int(outputs[self._output][-1])
        self._text = TextPreparation.of_port(opened)
        self.limit = self._text.limit
        self._session: Session = load(port, device)
        self.device = str(self._session.device)

    def __call__(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """(texts, dimensions) float32. Texts of like length run together; the order is kept."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("a list of texts is needed", where="embed", next='give several, or one as ["text"]')
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} texts", where="embed", next="at least 1")
        ids = [self._text.ids(text, number) for number, text in enumerate(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = np.empty((len(ids), self.dimensions), np.float32)
        for start, stop in self._batches([len(ids[i]) for i in order], batch_size):
            rows = order[start:stop]
            feeds = self._in_gear(padded([ids[i] for i in rows], self._text.padding))
            found = self._session.run(feeds)[self._output]
            vectors[rows] = self._pool(found[: len(rows)], feeds["attention_mask"][: len(rows)])
        return vectors

    def _batches(self, lengths: Sequence[int], batch_size: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of texts that run together; no more than the gear for the longest of them has rows."""
        gears = self._session.program.gears
        start = 0
        while start < len(lengths):
            stop = min(start + batch_size, len(lengths))
            if gears:
                holding = [gear[TOKENS][0] for gear in gears if gear[TOKENS][1] >= lengths[stop - 1]]
                stop = min(stop, start + max(holding, default=1))
            yield start, stop
            start = stop

    def _in_gear(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Feeds filled up to the smallest gear that holds them: rows with the last one again, positions masked. raises: InputError"""
        gears = self._session.program.gears
        if not gears:
            return feeds
        rows, positions = fitting(gears, {TOKENS: feeds[TOKENS].shape})[TOKENS]
        count, length = feeds[TOKENS].shape
        fill = {name: self._text.padding if name == TOKENS else 0 for name in feeds}
        return {
            name: np.pad(
                np.concatenate([array, np.repeat(array[-1:], rows - count, 0)]),
                ((0, 0), (0, positions - length)),
                constant_values=fill[name],
            )
            for name, array in feeds.items()
        }

    def close(self) -> None:
        """Release the device. Safe to call twice."""
        self._session.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TextPreparation:
    """What happens to a text before the model: lower case, prompt, tokens, the limit.

    tokenizer: cuts off at `limit` tokens, special ones included
    padding:   the id that fills up a row
    """

    def __init__(
        self, config: Mapping[str, Any], architecture: str, tokenizer_json: bytes | None, settings: bytes | None
    ) -> None:
        """
        config:   of the checkpoint
        settings: tokenizer_config.json, for its model_max_length
        raises:   InputError
        """
        module = load_architecture(architecture)
        if module is None or getattr(module, "KIND", None) != "encoder":
            raise InputError(f"{architecture} is no encoder: it has no embeddings of texts", where="port.json")
        sentence = config.get("sentence_transformers")
        self._sentence: Mapping[str, Any] = sentence if isinstance(sentence, dict) else {}
        own = json.loads(settings).get("model_max_length") if settings is not None else None
        limits = [module.longest(config), self._sentence.get("max_seq_length"), own]
        self.limit = min(int(n) for n in limits if isinstance(n, int | float) and 0 < n < NO_LIMIT)
        self.tokenizer: Tokenizer = tokenizer_from_bytes(tokenizer_json)
        padding = config.get("pad_token_id")
        self.padding = padding if isinstance(padding, int) else 0
        self._vocabulary = int(config["vocab_size"])
        try:
            self.tokenizer.enable_truncation(self.limit)
        except BaseException as error:  # its panics are no Exception: a limit below the number of special tokens
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise InputError(f"texts cannot be cut to {self.limit} tokens: {error}", where="tokenizer.json") from error

    @classmethod
    def of_port(cls, port: Port) -> TextPreparation:
        """raises: InputError"""
        m = port.manifest
        files = (port.side_file("tokenizer.json"), port.side_file("tokenizer_config.json"))
        return cls(m["config"], str(m["architecture"]), *files)

    def ids(self, text: str, number: int) -> list[int]:
        """Token ids of a text, special tokens included. raises: InputError for a text without any, or ids that the model has not"""
        if self._sentence:
            text = text.strip()
            text = text.lower() if self._sentence.get("do_lower_case") else text
            text = f"{self._sentence.get('prompt', '')}{text}"
        ids = encode(self.tokenizer, text, add_special_tokens=True)
        if not ids:
            raise InputError(f"text {number} has no tokens: {text[:80]!r}", where="embed", next="leave it out")
        if max(ids) >= self._vocabulary:
            raise InputError(
                f"the tokenizer gives id {max(ids)}, the model has {self._vocabulary}",
                where="tokenizer.json and port.json",
                next="they belong to different models",
            )
        return ids


def padded(rows: Sequence[Sequence[int]], padding: int) -> dict[str, np.ndarray]:
    """Rows of ids as one batch: input_ids and attention_mask, (rows, longest) int64, filled up on the right."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


# --- pooling -----------------------------------------------------------------------------------------------------


def _mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def _mean_sqrt_len(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (hidden * mask[..., None]).sum(1) / np.sqrt(mask.sum(1, keepdims=True))


def _max(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None] == 1, hidden, -np.inf).max(1)


def _cls(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return hidden[:, 0]


# (B, S, E) float32, (B, S) int64 with a 1 in every row -> (B, E)
POOLINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "mean_sqrt_len": _mean_sqrt_len,
}


def _how(
    outputs: Mapping[str, Any], pooling: str | None, normalize: bool | None, where: str
) -> tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Which output is taken, and what happens to it. raises: InputError, UsageError"""
    if SENTENCE in outputs:
        if pooling is not None or normalize is not None:
            raise UsageError(
                "this port has an embedding of its own, made as its checkpoint says",
                where=where,
                next="leave pooling and normalize out; `porting run` gives last_hidden_state for another one",
            )
        return SENTENCE, lambda found, mask: found
    if HIDDEN not in outputs:
        raise InputError(
            f"this port gives no embeddings: its outputs are {', '.join(outputs)}",
            where=where,
            next="embed needs the port of an encoder (BertModel, RobertaModel, a sentence-transformers folder)",
        )
    if pooling not in POOLINGS:
        what = "the port does not say how its hidden states become one vector" if pooling is None else f"no pooling {pooling!r}"
        known = f"pooling (--pooling): {', '.join(POOLINGS)}; the model's card says which"
        raise UsageError(what, where=where, next=known if pooling is None else nearest(pooling, list(POOLINGS)))
    pool = POOLINGS[pooling]
    return HIDDEN, (lambda found, mask: _unit(pool(found, mask))) if normalize else pool


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LEAST_NORM)
