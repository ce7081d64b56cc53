"""The file of a simulated compiled model: what `atc` and the graph engine of the simulator write, and the simulated device loads.

    magic, sizes of the three parts, sha256 of the header      PREFIX
    header    JSON: SoC, release, inputs, outputs, gears, what of the model is computed how
    graph     ONNX that is run, large weights left out
    weights   one after the other, each at a multiple of ALIGNED bytes

Sizes are checked before anything is read by them, and every part by its sha256. It shares nothing with the vendor's format.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from porting.ascend.soc import find_cann, find_soc, release_order
from porting.backends.cann_simulator.machine import GEAR_KINDS, Gear, IoSpec, Machine, Refused
from porting.checked_json import integer, object_with, text
from porting.errors import PortingError

MAGIC = b"SIMULATED-OM\x03\r\n\x1a"
VENDOR_MAGIC = b"IMOD"
SCHEMA = "porting.simulated-om/1"
ALIGNED = 64
PREFIX = struct.Struct("<16sQQQ32s")
MOST_HEADER = 64 << 20
MOST_BYTES = 1 << 44
WHERE = "the simulated .om"

# codes of acl_inference: documented for what they are called; that these cases give them is not
DATA_SIZE, LOAD_MODEL, MODEL_PART, WEIGHT_PART, OTHER_SOC = 145006, 545001, 545002, 545003, 507008


@dataclass(frozen=True)
class Aipp:
    """What the image unit is told. text: of insert_op_conf; channels: of each input of the model, 0 for what is no image"""

    text: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Arithmetic:
    """How the model computes, for reports.

    mode:    option=value of the precision mode
    stores:  what nodes store: "float16", "bfloat16", or "" where the graph's own dtypes stand
    saturates: whether an overflow becomes the largest number
    kept:    nodes that compute in float32 all the same
    ignored: node, rule: what the compiler did not read of the model
    guessed: what of this no document says
    """

    mode: str
    stores: str = ""
    saturates: bool = False
    kept: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    guessed: tuple[str, ...] = ()


@dataclass(frozen=True)
class OmHeader:
    """
    inputs:  as a client feeds them, the gear input left out
    gear_kind: of GEAR_KINDS, "" without gears
    ai_cpu:  nodes that run on the AI CPU
    weight_bytes, work_bytes: of device memory, at least
    """

    soc: str
    cann: str
    options: Mapping[str, str]
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    gear_kind: str
    gears: tuple[Gear, ...]
    aipp: Aipp | None
    arithmetic: Arithmetic
    nodes: int
    ai_cpu: tuple[str, ...]
    weight_bytes: int
    work_bytes: int


@dataclass(frozen=True, eq=False)
class Om:
    """
    graph:   a serialised ModelProto; its large weights are external data at places of `weights`
    weights: as they lie in the file: a view, nothing is copied
    """

    header: OmHeader
    graph: bytes
    weights: memoryview = field(default_factory=lambda: memoryview(b""))


def write_om(header: OmHeader, graph: bytes, weights: Sequence[bytes | memoryview]) -> bytes:
    """weights: pieces that follow each other, padding included"""
    digest = hashlib.sha256()
    for piece in weights:
        digest.update(piece)
    content = {
        "schema": SCHEMA,
        **asdict(header),
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "weights_sha256": digest.hexdigest(),
    }
    said = json.dumps(content, separators=(",", ":")).encode()
    start = -(PREFIX.size + len(said) + len(graph)) % ALIGNED
    said += b" " * start  # JSON takes blanks at its end, and the weights begin where they should
    size = sum(len(piece) for piece in weights)
    prefix = PREFIX.pack(MAGIC, len(said), len(graph), size, hashlib.sha256(said).digest())
    return b"".join((prefix, said, graph, *weights))


def read_om(om: bytes) -> Om:
    """raises: Refused for what is no .om of the simulator, or a damaged one"""
    data = memoryview(om)
    if bytes(data[:4]) == VENDOR_MAGIC:
        raise Refused(
            LOAD_MODEL, "E19999: this is a .om of the vendor's compiler, and the simulator runs those that it made itself"
        )
    if len(data) < PREFIX.size:
        raise Refused(DATA_SIZE, f"E19999: {len(data)} bytes are no model", True)
    magic, header_size, graph_size, weights_size, digest = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise Refused(LOAD_MODEL, "E19999: this is no model: its first bytes are others")
    if header_size > MOST_HEADER or graph_size > MOST_BYTES or weights_size > MOST_BYTES:
        raise Refused(DATA_SIZE, "E19999: the sizes in the model's first bytes cannot be", True)
    said = PREFIX.size + header_size + graph_size + weights_size
    if said != len(data):
        raise Refused(DATA_SIZE, f"E19999: the model has {len(data)} bytes and says {said}: cut short?", True)
    header = data[PREFIX.size : PREFIX.size + header_size]
    graph = data[PREFIX.size + header_size : said - weights_size]
    weights = data[said - weights_size :]
    if hashlib.sha256(header).digest() != digest:
        raise Refused(MODEL_PART, "E19999: the model's description was changed", True)
    read, hashes = _header(bytes(header))
    for part, name, code in ((graph, "graph", MODEL_PART), (weights, "weights", WEIGHT_PART)):
        if hashlib.sha256(part).hexdigest() != hashes[name]:
            raise Refused(code, f"E19999: the model's {name} were changed", True)
    return Om(read, bytes(graph), weights)


def require_runs_on(header: OmHeader, machine: Machine) -> None:
    """raises: Refused for a model of another SoC, or of a newer release"""
    if header.soc != machine.soc:
        raise Refused(OTHER_SOC, f"EE1005: the model was compiled for {header.soc}, and this is {machine.soc}", True)
    if release_order(header.cann) > release_order(machine.cann):
        raise Refused(
            LOAD_MODEL, f"E19999: the model was compiled with CANN {header.cann}, which is newer than {machine.cann} here"
        )


# --- reading the header -------------------------------------------------------------------------------------------

_KEYS = ("schema", *OmHeader.__dataclass_fields__, "graph_sha256", "weights_sha256")


def _header(data: bytes) -> tuple[OmHeader, dict[str, str]]:
    try:
        value = object_with(json.loads(data), _KEYS, WHERE)
        if value["schema"] != SCHEMA:
            raise Refused(LOAD_MODEL, f"E19999: a model of schema {str(value['schema'])[:60]!r}; compile it again")
        return _checked(value), {name: text(value[f"{name}_sha256"], WHERE) for name in ("graph", "weights")}
    except (ValueError, TypeError, KeyError, RecursionError, PortingError) as error:
        raise Refused(
            MODEL_PART, f"E19999: the model's description is not as it should be: {str(error)[:200]}", True
        ) from error


def _checked(value: Mapping[str, Any]) -> OmHeader:
    kind = text(value["gear_kind"], WHERE)
    if kind and kind not in GEAR_KINDS:
        raise ValueError(f"no kind of gears is called {kind!r}")
    inputs, outputs = (tuple(_io(one) for one in _list(value[name])) for name in ("inputs", "outputs"))
    gears = tuple(_gear(one, inputs, outputs) for one in _list(value["gears"]))
    if bool(gears) != bool(kind):
        raise ValueError("gears without a kind, or a kind without gears")
    cann = find_cann(text(value["cann"], WHERE))
    assert cann is not None  # of None only
    return OmHeader(
        find_soc(text(value["soc"], WHERE)).name,
        cann,
        {str(k): str(v) for k, v in object_with(value["options"], tuple(value["options"]), WHERE).items()},
        inputs,
        outputs,
        kind,
        gears,
        _aipp(value["aipp"], len(inputs)),
        _arithmetic(value["arithmetic"]),
        integer(value["nodes"], 0, MOST_BYTES, WHERE),
        _texts(value["ai_cpu"]),
        integer(value["weight_bytes"], 0, MOST_BYTES, WHERE),
        integer(value["work_bytes"], 0, MOST_BYTES, WHERE),
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not all(isinstance(one, str) for one in _list(value)):
        raise ValueError("expected a list of texts")
    return tuple(value)


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(integer(one, -1, 2**62, WHERE) for one in _list(value))


def _io(value: Any) -> IoSpec:
    value = object_with(value, tuple(IoSpec.__dataclass_fields__), WHERE)
    if not isinstance(value["name"], str):
        raise ValueError("a name is a text")
    return IoSpec(
        value["name"],
        integer(value["acl_dtype"], 0, 63, WHERE),
        _dims(value["dims"]),
        integer(value["nbytes"], 0, MOST_BYTES, WHERE),
    )


def _gear(value: Any, inputs: Sequence[IoSpec], outputs: Sequence[IoSpec]) -> Gear:
    value = object_with(value, tuple(Gear.__dataclass_fields__), WHERE)
    made = Gear(_dims(value["values"]), *(tuple(_dims(one) for one in _list(value[name])) for name in ("inputs", "outputs")))
    if len(made.inputs) != len(inputs) or len(made.outputs) != len(outputs):
        raise ValueError("a gear has other inputs or outputs than the model")
    return made


def _aipp(value: Any, inputs: int) -> Aipp | None:
    if value is None:
        return None
    value = object_with(value, ("text", "channels"), WHERE)
    channels = tuple(integer(one, 0, 1 << 16, WHERE) for one in _list(value["channels"]))
    if len(channels) != inputs:
        raise ValueError("the image unit is told of other inputs")
    if not isinstance(value["text"], str):
        raise ValueError("what the image unit is told is a text")
    return Aipp(value["text"], channels)


def _arithmetic(value: Any) -> Arithmetic:
    value = object_with(value, tuple(Arithmetic.__dataclass_fields__), WHERE)
    ignored = [_texts(pair) for pair in _list(value["ignored"])]
    if not isinstance(value["saturates"], bool) or any(len(pair) != 2 for pair in ignored):
        raise ValueError("the arithmetic is not as it should be")
    if value["stores"] not in ("", "float16", "bfloat16"):
        raise ValueError("nodes store nothing that is known")
    pairs = tuple((node, rule) for node, rule in ignored)
    return Arithmetic(
        text(value["mode"], WHERE), value["stores"], value["saturates"], _texts(value["kept"]), pairs, _texts(value["guessed"])
    )
