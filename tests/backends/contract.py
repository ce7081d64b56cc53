"""Promises of the session contract, each a function of a device; suite.py runs them on every backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from porting.backends.onnx_program import program_from_onnx
from porting.errors import DeviceUnavailable, InputError, PortingError, UsageError
from porting.session import open_session
from porting.types import Program

CHECKS: dict[str, Callable[[str], None]] = {}


def check(function: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS[function.__name__] = function
    return function


def program(graph: str, **options) -> Program:
    """In an opset that every device takes, compilers for Ascend too."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    return program_from_onnx(model.SerializeToString(), **options)


NEGATE = "(float[N,4] x) => (float[N,4] y) { [neg] y = Neg(x) }"
ADD = (
    "(float[N,4] x, int64[N] k) => (float[N,4] y) "
    "{ c = Cast<to=1>(k) a = Constant<value=int64[1] {1}>() u = Unsqueeze(c, a) y = Add(x, u) }"
)
EMPTY = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]> g () => () {}').SerializeToString()
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def computes(device: str) -> bool:
    return device.split(",")[0] != "null"


@check
def unknown_input_is_named_with_the_nearest(device: str) -> None:
    with open_session(program(ADD), device) as session, pytest.raises(InputError) as caught:
        session.run({"x": X, "kk": np.array([1, 2])})
    assert "unknown input 'kk'" in caught.value.what
    assert "did you mean 'k'" in caught.value.next


@check
def missing_input_is_named(device: str) -> None:
    with open_session(program(ADD), device) as session, pytest.raises(InputError, match=r"not fed: k: int64\[N\]"):
        session.run({"x": X})


@check
def wrong_dtype_is_refused_not_cast(device: str) -> None:
    with open_session(program(NEGATE), device) as session:
        with pytest.raises(InputError, match=r"expected x: float32\[N, 4\], got float64\[2, 4\]"):
            session.run({"x": X.astype(np.float64)})
        with pytest.raises(InputError, match=r"expected x: float32\[N, 4\], got >f4\[2, 4\]|got float32\[2, 4\]"):
            session.run({"x": X.astype(">f4")})


@check
def wrong_rank_is_refused(device: str) -> None:
    with open_session(program(NEGATE), device) as session, pytest.raises(InputError, match=r"expected x.*got float32\[4\]"):
        session.run({"x": X[0]})


@check
def wrong_fixed_dimension_is_refused(device: str) -> None:
    with open_session(program(NEGATE), device) as session, pytest.raises(InputError, match=r"expected x.*got float32\[2, 3\]"):
        session.run({"x": X[:, :3]})


@check
def a_list_is_no_array(device: str) -> None:
    with open_session(program(NEGATE), device) as session, pytest.raises(InputError, match="'x' is a list"):
        session.run({"x": X.tolist()})


@check
def session_goes_on_after_a_refused_run(device: str) -> None:
    with open_session(program(NEGATE), device) as session:
        with pytest.raises(InputError):
            session.run({"x": X[0]})
        assert session.run({"x": X})["y"].shape == (2, 4)


@check
def closed_session_is_refused(device: str) -> None:
    session = open_session(program(NEGATE), device)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": X})


@check
def two_sessions_at_once(device: str) -> None:
    with open_session(program(NEGATE), device) as first, open_session(program(ADD), device) as second:
        for _ in range(3):
            negative, sums = first.run({"x": X})["y"], second.run({"x": X, "k": np.array([1, 2])})["y"]
            if computes(device):
                np.testing.assert_array_equal(negative, -X)
                np.testing.assert_array_equal(sums, X + np.array([[1], [2]], np.float32))


@check
def four_threads_share_a_session(device: str) -> None:
    with open_session(program(NEGATE), device) as session, ThreadPoolExecutor(4) as pool:
        feeds = [np.full((1 + i % 5, 4), i, np.float32) for i in range(64)]
        for fed, got in zip(feeds, pool.map(lambda x: session.run({"x": x})["y"], feeds), strict=True):
            np.testing.assert_array_equal(got, -fed if computes(device) else np.zeros_like(fed))


@check
def outputs_outlive_later_runs_and_the_session(device: str) -> None:
    with open_session(program(NEGATE), device) as session:
        first = session.run({"x": X})["y"]
        second = session.run({"x": X + 1})["y"]
    if computes(device):
        np.testing.assert_array_equal(first, -X)
        np.testing.assert_array_equal(second, -X - 1)


@check
def feeds_may_change_after_a_run(device: str) -> None:
    with open_session(program("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }"), device) as session:
        x = X.copy()
        y = session.run({"x": x})["y"]
        x[:] = 77
        assert (y != 77).all()


@check
def any_memory_layout_can_be_fed(device: str) -> None:
    read_only = X.copy()
    read_only.flags.writeable = False
    layouts = [read_only, np.asfortranarray(X), X[::-1, ::-1], np.repeat(X, 2, axis=1)[:, ::2], np.broadcast_to(X[:1], (3, 4))]
    with open_session(program(NEGATE), device) as session:
        for x in layouts:
            np.testing.assert_array_equal(session.run({"x": x})["y"], -x if computes(device) else np.zeros_like(x))


@check
def unknown_option_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="has no option 'threds'"):
        open_session(program(NEGATE), f"{device},threds=2")


@check
def a_device_that_does_not_exist_is_refused(device: str) -> None:
    name, comma, options = device.partition(",")
    with pytest.raises(DeviceUnavailable, match=":99 does not exist"):
        open_session(program(NEGATE), f"{name.partition(':')[0]}:99{comma}{options}")


@check
def a_stateless_program_has_no_state(device: str) -> None:
    with open_session(program(NEGATE), device) as session, pytest.raises(UsageError, match="keeps no state"):
        session.new_state()


@check
def placement_names_every_node(device: str) -> None:
    with open_session(program(NEGATE), device) as session:
        placed = {node: where.partition(":")[0] for node, where in session.placement.items()}
    assert placed == ({"neg": device.partition(",")[0].partition(":")[0]} if computes(device) else {})


@check
def a_broken_model_is_an_error_of_the_tree(device: str) -> None:
    for junk in (b"", b"\x00junk", EMPTY):
        with pytest.raises(PortingError):
            open_session(program_from_onnx(junk), device)


@check
def an_unknown_operator_is_refused_by_name(device: str) -> None:
    with pytest.raises(PortingError, match="Frobnicate"):
        open_session(program("(float[N] x) => (float[N] y) { [odd] y = Frobnicate(x) }"), device)
