"""Single operators of the graph engine against torch and numpy, which share nothing with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.single_operators import OPERATORS, run

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 3, 5, 7)).astype(np.float32)
EVERY = [
    ("Abs", np.abs),
    ("Ceil", np.ceil),
    ("Cos", np.cos),
    ("Floor", np.floor),
    ("Neg", np.negative),
    ("Reciprocal", np.reciprocal),
    ("Round", np.round),
    ("Sin", np.sin),
    ("Exp", np.exp),
    ("Identity", lambda x: x),
]


def one(kind: str, *inputs: np.ndarray, **attributes: object) -> np.ndarray:
    return run(kind, attributes, inputs)[0]


@pytest.mark.parametrize(("kind", "function"), EVERY, ids=[kind for kind, _ in EVERY])
def test_elementwise(kind, function):
    found = one(kind, X)
    assert found.dtype == np.float32 and np.array_equal(found, function(X))


def test_elementwise_of_what_is_above_zero_and_of_erf():
    above = np.abs(X)
    assert np.array_equal(one("Sqrt", above), np.sqrt(above)) and np.array_equal(one("Log", above), np.log(above))
    assert np.allclose(one("Erf", X), torch.erf(torch.from_numpy(X)).numpy(), rtol=0, atol=2**-23)
    assert one("Relu", np.float32([-1, 0, 2])).tolist() == [0, 0, 2]


def test_arithmetic_broadcasts_and_divides_integers_towards_zero():
    y = np.float32([1, 2, 4, 8, 16, 32, 64])
    for kind, function in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide)):
        assert np.array_equal(one(kind, X, y), function(X, y))
    assert one("Div", np.int32([-7, 7, -8, 7]), np.int32([2, -2, 2, 2])).tolist() == [-3, -3, -4, 3]


def test_exp_and_log_to_another_base():
    assert np.allclose(one("Exp", np.float32([0, 1, 3]), base=2.0, scale=1.0, shift=0.0), [1, 2, 8])
    assert np.allclose(one("Log", np.float32([1, 2, 8]), base=2.0, scale=1.0, shift=0.0), [0, 1, 3])


def test_half_floats_are_rounded_once():
    x, y = (RNG.standard_normal((33, 40)).astype(np.float16) for _ in range(2))
    found = one("Mul", x, y)
    assert found.dtype == np.float16 and np.array_equal(found, (torch.from_numpy(x) * torch.from_numpy(y)).numpy())
    product = one("MatMul", x, y, transpose_x2=True)
    assert np.array_equal(product, (x.astype(np.float32) @ y.astype(np.float32).T).astype(np.float16))
    assert one("Add", np.float16([60000]), np.float16([60000]))[0] == np.inf


@pytest.mark.parametrize(("turn_a", "turn_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products(turn_a, turn_b):
    a, b = RNG.standard_normal((6, 4)).astype(np.float32), RNG.standard_normal((4, 5)).astype(np.float32)
    fed = a.T if turn_a else a, b.T if turn_b else b
    assert np.allclose(one("MatMul", *fed, transpose_x1=turn_a, transpose_x2=turn_b), a @ b)
    c, alpha, beta = np.float32(RNG.standard_normal((6, 5))), np.float32([2]), np.float32([3])
    assert np.allclose(
        one("GEMM", *fed, c, alpha, beta, transpose_a=turn_a, transpose_b=turn_b), 2 * (a @ b) + 3 * c, atol=1e-5
    )
    batch = np.stack([fed[0], 2 * fed[0]])
    assert np.allclose(one("BatchMatMul", batch, fed[1], adj_x1=turn_a, adj_x2=turn_b), np.stack([a @ b, 2 * (a @ b)]))


@pytest.mark.parametrize(("group", "dilation", "stride"), [(1, 1, 1), (3, 1, 2), (1, 2, 1)])
def test_conv(group, dilation, stride):
    weight = RNG.standard_normal((6, 3 // group, 3, 2)).astype(np.float32)
    bias = RNG.standard_normal(6).astype(np.float32)
    told = {"strides": [1, 1, stride, stride], "dilations": [1, 1, dilation, dilation], "group": group}
    found = one("Conv2D", X, weight, bias, pads=[2, 2, 1, 1], auto_pad="NOTSET", **told)
    wanted = torch.nn.functional.conv2d(
        *map(torch.from_numpy, (X, weight, bias)), stride=stride, padding=(2, 1), dilation=dilation, groups=group
    )
    assert found.shape == tuple(wanted.shape) and np.allclose(found, wanted.numpy(), atol=1e-5)
    assert np.allclose(
        one("Conv2D", X, weight, np.empty(0, np.float32), pads=[2, 2, 1, 1], **told), found - bias.reshape(-1, 1, 1), atol=1e-5
    )


def test_pads_are_top_bottom_left_right():
    x, weight = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    found = one("Conv2D", x, weight, pads=[1, 2, 0, 3], strides=[1, 1, 1, 1], dilations=[1, 1, 1, 1])
    assert found.shape == (1, 1, 4, 4) and np.argwhere(found[0, 0]).tolist() == [[1, 0]]


@pytest.mark.parametrize("ceil", [False, True])
def test_pools(ceil):
    told = {
        "ksize": [1, 1, 3, 3],
        "strides": [1, 1, 2, 2],
        "pads": [1, 1, 1, 1],
        "ceil_mode": ceil,
        "padding_mode": "CALCULATED",
    }
    x = torch.from_numpy(X)
    wanted = torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=ceil).numpy()
    assert np.array_equal(one("MaxPoolV3", X, **told), wanted)
    for exclusive in (True, False) if not ceil else (True,):
        mean = torch.nn.functional.avg_pool2d(x, 3, 2, 1, ceil_mode=ceil, count_include_pad=not exclusive).numpy()
        assert np.allclose(one("AvgPoolV2", X, exclusive=exclusive, **told), mean, atol=1e-6)


def test_pools_of_everything():
    told = {"ksize": [1, 1, 5, 7], "strides": [1, 1, 1, 1], "pads": [0] * 4, "padding_mode": "VALID", "global_pooling": True}
    assert np.array_equal(one("MaxPoolV3", X, **told), X.max((2, 3), keepdims=True))
    assert np.allclose(one("AvgPoolV2", X, **told), X.mean((2, 3), keepdims=True), atol=1e-6)


def test_batch_norm():
    scale, offset, mean = (RNG.standard_normal(3).astype(np.float32) for _ in range(3))
    variance = np.float32([0.5, 1, 2])
    made = run("BatchNorm", {"epsilon": 1e-3, "data_format": "NCHW", "is_training": False}, [X, scale, offset, mean, variance])
    wanted = torch.nn.functional.batch_norm(*map(torch.from_numpy, (X, mean, variance, scale, offset)), eps=1e-3)
    assert len(made) == 5 and np.allclose(made[0], wanted.numpy(), atol=1e-5)


def test_shapes_and_casts():
    assert one("BroadcastToD", np.float32([[1], [2]]), shape=[2, 3]).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert one("Fill", np.int64([2, 2]), np.float32([7])).tolist() == [[7, 7], [7, 7]]
    assert one("Flatten", X, axis=2).shape == (6, 35) and one("Reshape", X, np.int64([6, -1])).shape == (6, 35)
    assert np.array_equal(one("Transpose", X, np.int32([0, 2, 3, 1])), X.transpose(0, 2, 3, 1))
    assert np.array_equal(one("TransposeD", X, perm=[3, 2, 1, 0]), X.T)
    assert one("Cast", np.float32([1.7, -1.7]), dst_type=3).tolist() == [1, -1]
    assert one("Cast", np.float16([1.5]), dst_type=0).dtype == np.float32
    assert [o.shape for o in run("DropoutV2", {"p": 0}, [X])] == [X.shape, X.shape]


def test_every_operator_is_in_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    assert not [kind for kind in OPERATORS if f'"{kind}"' not in source and kind not in ("MatMulV2", "Conv3D")]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("Add", [np.zeros(2, np.float32), np.zeros(3, np.float32)], {}),
        ("Add", [np.zeros(2, np.float32)], {}),
        ("MatMul", [np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)], {}),
        ("Cast", [X], {"dst_type": 99}),
        ("Cast", [X], {}),
        ("Conv2D", [X, np.zeros((4, 2, 3, 3), np.float32)], {}),
        ("BatchNorm", [X] * 5, {"is_training": True}),
    ],
)
def test_what_does_not_fit_is_refused(kind, inputs, attributes):
    with pytest.raises(Refused, match="EZ"):
        run(kind, attributes, inputs)


def test_an_operator_that_is_not_here():
    with pytest.raises(Refused, match="NoSuchThing") as error:
        run("NoSuchThing", {}, [X])
    assert error.value.code == 100024
