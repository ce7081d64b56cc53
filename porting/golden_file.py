"""What every golden file has in common: canonical JSON with a hash over its content, arrays, sketches, and who recorded what from which model.

docs/golden_format.md specifies it to the byte. The hash shows that nothing changed since the file was written; it does not show who wrote it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porting.checked_json import MAX_ARRAY_BYTES, decoded, dtype_name, integer, object_with, shape_of, table, text
from porting.dtypes import dtype_of
from porting.errors import InputError, OutOfResources
from porting.numerics.sketch import Sketch
from porting.verdict import printable

INTEGRITY = "hash only, unsigned"
MAX_FILE_BYTES = 64 << 20  # a golden is kilobytes; level "nodes" of a large graph is a few megabytes
MAX_ELEMENTS = 1 << 50  # of a sketched tensor, of which only the shape is kept
INPUT_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
)


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it was.

    architecture:  upstream's class name
    config_sha256: of the config that decides the maths
    files:         name inside the source -> SHA-256
    """

    architecture: str
    config_sha256: str
    files: Mapping[str, str]


def require_same_model(recorded: ModelIdentity, model: ModelIdentity) -> list[str]:
    """Refuse to judge another model; name the source files that differ.

    returns: names of files whose hash differs or that only one side has; the weights of one model may come in several
             containers, so these are for the report, and the comparison itself decides
    raises:  InputError when architecture or config differ
    """
    for what, expected, got in (
        ("architecture", recorded.architecture, model.architecture),
        ("config SHA-256", recorded.config_sha256, model.config_sha256),
    ):
        if expected != got:
            raise InputError(
                f"this golden is of another model: {what} {printable(expected)!r}, got {printable(got)!r}",
                where="golden",
                next="use the golden that was recorded from this model",
            )
    names = {*recorded.files, *model.files}
    return sorted(n for n in names if recorded.files.get(n) != model.files.get(n))


# --- the file ---------------------------------------------------------------------------------------------------------


def file_bytes(content: Mapping[str, Any], schema: str) -> bytes:
    """The file's bytes. raises: InputError when they are more than a golden may have"""
    data = _canonical({"content": content, "schema": schema, "sha256": _digest(content)}) + b"\n"
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"a golden of {len(data)} bytes is more than {MAX_FILE_BYTES}", where="golden")
    return data


def write_file(path: str | Path, data: bytes) -> None:
    """Write in one step: at no moment is there half a golden at `path`.

    raises: InputError for a place that cannot be written, OutOfResources for a full disk
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp's 0600 would keep a committed golden from other users
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = OutOfResources if full else InputError
        raise kind(f"cannot write a golden: {error.strerror}", where=str(path)) from error


def read_file(path: str | Path) -> bytes:
    """raises: InputError for what is no file, or cannot be read"""
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError("no such file" if not path.exists() else "not a file", where=str(path))
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read a golden: {error.strerror}", where=str(path)) from error


def content_of(data: bytes, schema: str) -> Any:
    """The content of a file's bytes, as JSON values.

    raises: InputError saying what is wrong: no JSON, truncated, another or a newer schema, a changed byte
    """
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"more than {MAX_FILE_BYTES} bytes, which no golden is")
    document = _parse(data, schema)
    content, claimed = document["content"], document["sha256"]
    if _digest(content) != claimed or _canonical(document) + b"\n" != data:
        raise InputError(
            "changed since it was recorded: the content does not match its SHA-256",
            next="take the golden from where it was recorded, or record it again",
        )
    return content


def at_place(error: InputError, path: str | Path) -> InputError:
    """The same error, naming the file."""
    return InputError(error.what, where=f"{path}: {error.where}" if error.where else str(path), next=error.next)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _refuse_float(text: str) -> Any:
    raise ValueError(f"{text[:20]} where only integers stand")


def _parse(data: bytes, wanted: str) -> dict[str, Any]:
    if not data.rstrip().endswith(b"}"):
        raise InputError("not a golden: no JSON object, or truncated", next="copy the file again")
    try:
        document = json.loads(data, parse_float=_refuse_float, parse_constant=_refuse_float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a golden: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != wanted:
        family, _, version = str(schema).rpartition("/")
        newer = family == wanted.rpartition("/")[0] and version.isdecimal() and len(version) < 9 and int(version) > 1
        raise InputError(
            f"{'written by a newer version' if newer else 'not a golden'}: schema {printable(str(schema), 60)!r}, expected {wanted!r}",
            next="update porting" if newer else "",
        )
    return object_with(document, ("content", "schema", "sha256"), "golden")


# --- its parts: every value that is read is checked before it is used -----------------------------------------------------


def model_content(model: ModelIdentity) -> dict[str, Any]:
    return {"architecture": model.architecture, "config_sha256": model.config_sha256, "files": dict(model.files)}


def model_from(value: Any) -> ModelIdentity:
    model = object_with(value, ("architecture", "config_sha256", "files"), "content.model")
    return ModelIdentity(
        text(model["architecture"], "architecture"),
        text(model["config_sha256"], "config_sha256"),
        texts_from(model["files"], "files"),
    )


def texts_from(value: Any, where: str) -> dict[str, str]:
    """Names and texts."""
    return {k: text(v, where) for k, v in table(value, where).items()}


def recorded_from(value: Any) -> tuple[str, str, str]:
    """Reference, precision, device."""
    recorded = object_with(value, ("reference", "precision", "device"), "content.recorded")
    return (
        text(recorded["reference"], "reference"),
        text(recorded["precision"], "precision"),
        text(recorded["device"], "device"),
    )


def array_content(array: np.ndarray, name: str) -> dict[str, Any]:
    array = np.asarray(array)
    if str(array.dtype) not in INPUT_DTYPES or array.nbytes > MAX_ARRAY_BYTES:
        raise InputError(f"an input of {array.nbytes} bytes of {array.dtype} does not go into a golden", where=printable(name))
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": _encoded(array, str(array.dtype))}


def sketch_content(s: Sketch) -> dict[str, Any]:
    top = None
    if s.top_ids is not None and s.top_values is not None and s.logsumexp is not None:
        top = {
            "k": s.top_ids.shape[1],
            "ids": _encoded(s.top_ids, "int32"),
            "values": _encoded(s.top_values, "float32"),
            "logsumexp": _encoded(s.logsumexp, "float64"),
        }
    return {
        "shape": list(s.shape),
        "dtype": s.dtype,
        **{k: repr(float(getattr(s, k))) for k in ("l2_norm", "mean", "minimum", "maximum")},
        "nan_count": s.nan_count,
        "inf_count": s.inf_count,
        "seed": f"{s.seed:016x}",
        "buckets": _encoded(s.buckets, "float64"),
        "top": top,
    }


def _encoded(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype_of(dtype).newbyteorder("<")).tobytes()).decode("ascii")


def array_from(value: Any, where: str) -> np.ndarray:
    value = object_with(value, ("dtype", "shape", "data"), where)
    dtype = dtype_name(value["dtype"], INPUT_DTYPES, where)
    shape = shape_of(value["shape"], MAX_ARRAY_BYTES, where)
    return decoded(value["data"], dtype, math.prod(shape), where).reshape(shape)


def sketch_from(value: Any, where: str) -> Sketch:
    statistics = ("l2_norm", "mean", "minimum", "maximum")
    value = object_with(value, ("shape", "dtype", *statistics, "nan_count", "inf_count", "seed", "buckets", "top"), where)
    shape = shape_of(value["shape"], MAX_ELEMENTS, where)
    size = math.prod(shape)
    if integer(value["nan_count"], 0, size, where):
        raise InputError("the reference itself holds NaN: it shows nothing", where=where, next="record it on other inputs")
    inf_count = integer(value["inf_count"], 0, size, where)
    dtype = dtype_name(value["dtype"], INPUT_DTYPES, where)
    try:
        numbers = {k: float(text(value[k], where)) for k in statistics}
        seed = int(text(value["seed"], where), 16)
        if seed < 0 or f"{seed:016x}" != value["seed"]:
            raise ValueError("the seed is not 16 hexadecimal digits")
    except ValueError as error:
        raise InputError(f"unreadable: {error}", where=where) from error
    if size == 0 or inf_count == size or not all(map(math.isfinite, numbers.values())):
        raise InputError("the reference is empty or not finite: it shows nothing", where=where)
    encoded = value["buckets"] if isinstance(value["buckets"], str) else ""
    count = 1 << max(
        1, (len(encoded) * 3 // 4 // 8).bit_length() - 1
    )  # the largest power of two that fits; the length must match
    buckets = decoded(encoded, "float64", count, where)
    if not np.isfinite(buckets).all():
        raise InputError("buckets are not finite", where=where)
    top = _top_from(value["top"], shape, where) if value["top"] is not None else (None, None, None)
    ids, values, totals = top
    return Sketch(
        shape,
        dtype,
        **numbers,
        nan_count=0,
        inf_count=inf_count,
        seed=seed,
        buckets=buckets,
        top_ids=ids,
        top_values=values,
        logsumexp=totals,
    )


def _top_from(top: Any, shape: tuple[int, ...], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    top = object_with(top, ("k", "ids", "values", "logsumexp"), f"{where}, top")
    vocabulary, rows = (shape[-1], math.prod(shape[:-1])) if shape else (0, 0)
    k = integer(top["k"], 1, vocabulary, f"{where}, top")
    ids = decoded(top["ids"], "int32", rows * k, where).reshape(rows, k).astype(np.int64)
    values = decoded(top["values"], "float32", rows * k, where).reshape(rows, k)
    totals = decoded(top["logsumexp"], "float64", rows, where)
    distinct = bool((np.diff(np.sort(ids, -1), axis=-1) > 0).all())
    falling = bool((values[:, 1:] <= values[:, :-1]).all()) and bool(
        np.isfinite(values[:, 0]).all() and np.isfinite(totals).all()
    )
    if not distinct or not falling or ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError("top tokens are not distinct, in range and in falling order", where=where)
    return ids, values, totals
