"""The simulated .om: what is damaged, foreign or not for this machine is refused with a code, and never crashes."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.backends.cann_simulator.compiler import compile_onnx
from porting.backends.cann_simulator.execution import load
from porting.backends.cann_simulator.machine import Machine, Refused
from porting.backends.cann_simulator.om_file import ALIGNED, MAGIC, PREFIX, _header, read_om
from tests.graph_models import model, node, weight

F = np.float32
HERE = Machine("Ascend910B3")
PROTO = model([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": ["b", 64]}, {"y": ["b", 64]}, [weight("w", 64, 64)])
GEARS = {"input_shape": "x:-1,64", "dynamic_batch_size": "1,2"}
OM = compile_onnx(PROTO.SerializeToString(), GEARS, HERE)
KNOWN = {145006, 545001, 545002, 545003, 507008}


def refused(om: bytes, machine: Machine = HERE) -> Refused:
    with pytest.raises(Refused) as error:
        load(om, machine)
    assert error.value.code in KNOWN and error.value.text.startswith("E")
    return error.value


def test_it_holds_the_graph_and_the_weights_where_a_reader_can_use_them_in_place():
    om = read_om(OM)
    assert om.header.soc == "Ascend910B3" and om.header.gear_kind == "batch" and len(om.header.gears) == 2
    assert (len(OM) - len(om.weights)) % ALIGNED == 0 and len(om.weights) == 64 * 64 * 4
    assert om.weights.obj is OM


def test_a_model_of_another_soc():
    assert refused(OM, Machine("Ascend910B4")).code == 507008 and refused(OM, Machine("Ascend310P3")).documented


def test_a_model_of_a_newer_release():
    assert load(compile_onnx(PROTO.SerializeToString(), GEARS, Machine(cann="9.0.0")), HERE)
    assert not refused(OM, Machine(cann="9.0.0")).documented


def test_a_vendors_model():
    error = refused(b"IMOD" + bytes(1000))
    assert "vendor" in error.text and not error.documented


@pytest.mark.parametrize("cut", [0, 1, 15, 16, PREFIX.size - 1, PREFIX.size, PREFIX.size + 10, len(OM) - 4096 * 4, len(OM) - 1])
def test_cut_short(cut):
    assert refused(OM[:cut]).code == 145006


def test_longer_than_it_says():
    assert refused(OM + b"\x00").code == 145006


@pytest.mark.parametrize("sizes", [(2**63, 1, 1), (1, 2**63, 1), (1, 1, 2 << 30), (2 << 30, 0, 0), (2**64 - 1, 2**64 - 1, 2)])
def test_sizes_that_cannot_be(sizes):
    assert refused(PREFIX.pack(MAGIC, *sizes, bytes(32)) + bytes(1000)).code == 145006


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_is_seen(data):
    place = data.draw(st.integers(0, len(OM) - 1))
    changed = bytearray(OM)
    changed[place] ^= data.draw(st.integers(1, 255))
    refused(bytes(changed))


def test_which_part_was_changed_is_told():
    header = PREFIX.unpack_from(OM)[1]
    for place, code in ((PREFIX.size + 3, 545002), (PREFIX.size + header + 3, 545002), (len(OM) - 3, 545003)):
        changed = bytearray(OM)
        changed[place] ^= 1
        assert refused(bytes(changed)).code == code


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    refused(data)


CONTENT = json.loads(OM[PREFIX.size : PREFIX.size + PREFIX.unpack_from(OM)[1]])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CONTENT)), JSON)
def test_any_value_in_the_description(key, value):
    """With its hash right, what a program wrote that is not ours: taken or refused, nothing else."""
    with suppress(Refused):
        _header(json.dumps({**CONTENT, key: value}).encode())


@pytest.mark.parametrize(
    "more", [{"soc": "cpu"}, {"cann": "1.0"}, {"gear_kind": "none"}, {"gears": []}, {"extra": 1}, {"inputs": []}]
)
def test_a_description_that_is_not_one(more):
    with pytest.raises(Refused):
        _header(json.dumps({**CONTENT, **more}).encode())
    short = {key: value for key, value in CONTENT.items() if key != "nodes"}
    with pytest.raises(Refused):
        _header(json.dumps(short).encode())


def test_a_deep_description_is_no_recursion_error():
    with pytest.raises(Refused):
        _header(b"[" * 100_000)


def test_the_prefix_is_what_it_says():
    assert PREFIX.size == struct.calcsize("<16sQQQ32s") and len(MAGIC) == 16
