"""Arguments that are numbers or None, rare dtypes, weights files of other kinds: they work, or the message says what is wrong and what to do."""

from __future__ import annotations

import functools
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import porting
from porting.converters.torch_module import open_factory, open_module
from porting.converters.torch_weights import load_weights
from porting.errors import CheckpointError, InputError, UnsupportedModel, UsageError
from porting.types import TensorSpec


class Cuts(torch.nn.Module):
    def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
        return x[:, :k] * k


class Optional(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: Any = None, k: int = 2) -> torch.Tensor:
        y = x * k
        return y if mask is None else y * mask


# --- numbers


@pytest.mark.parametrize("script", [False, True])
def test_a_number_is_a_constant_that_the_port_names(script: bool, tmp_path: Path) -> None:
    module = torch.jit.script(Cuts()) if script else Cuts()
    verdict = porting.port(module.eval(), tmp_path / "port", example_inputs=(torch.randn(2, 4), 3))
    assert verdict.ok and verdict.details["constant_inputs"] == ["k = 3"]
    with porting.load(tmp_path / "port") as session:
        assert [spec.name for spec in session.inputs] == ["x"]
        x = np.ones((2, 4), np.float32)
        assert np.array_equal(session.run({"x": x})["output"], x[:, :3] * 3)


def test_a_number_that_no_example_gives_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"Cuts\.forward needs k") as caught:
        open_module(Cuts().eval(), [(torch.randn(2, 4),)])
    assert "a number for k, which becomes a constant of the port" in caught.value.next
    for specs in ([], [TensorSpec("k", "int64", ())]):
        with pytest.raises(UsageError, match=r"k of Cuts\.forward: a Python number") as asked:
            open_module(Cuts().eval(), [], input_specs=[TensorSpec("x", "float32", ("b", 4)), *specs])
        assert "--inputs x.npz with k" in asked.value.next


def test_inspect_and_convert_name_the_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from porting.cli import main

    (tmp_path / "cuts_by.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, k: int):\n        return x[:, :k] * k\n"
    )
    np.savez(tmp_path / "x.npz", x=np.ones((2, 4), np.float32), k=np.array(3))
    model = ["--model", f"{tmp_path / 'cuts_by.py'}:Net", "--inputs", str(tmp_path / "x.npz")]
    x = torch.randn(2, 4)
    torch.export.save(torch.export.export(Optional().eval(), (x, None, 3)), tmp_path / "net.pt2")
    for arguments, line in (
        (["convert", *model, "-o", str(tmp_path / "port")], "a constant of the port, no input: k = 3"),
        (["inspect", str(tmp_path / "net.pt2"), "--allow-pickle"], "constants of a port, numbers in the example: k = 3"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*arguments, "--quiet"])
        assert line in capsys.readouterr().out


# --- programs that were exported with constants


@pytest.mark.parametrize(
    ("args", "kwargs", "constants"),
    [
        ((None,), {}, {"mask": None}),
        ((None, 3), {}, {"mask": None, "k": 3}),
        ((), {"k": 3}, {"k": 3}),
        ((), {"mask": None}, {"mask": None}),
    ],
)
def test_an_exported_program_with_numbers_or_none(args: Any, kwargs: Any, constants: Any, tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    torch.export.save(torch.export.export(Optional().eval(), (x, *args), kwargs or None), tmp_path / "net.pt2")
    for example in (None, (x,), {"x": x.numpy()}, (x, *args) if not kwargs else None):
        verdict = porting.port(tmp_path / "net.pt2", tmp_path / "port", allow_pickle=True, example_inputs=example, force=True)
        assert verdict.ok
    assert verdict.details.get("constant_inputs", []) == [f"{k} = {v}" for k, v in constants.items() if v is not None]
    with porting.load(tmp_path / "port") as session:
        given = session.run({"x": x.numpy()})["output"]
    assert np.array_equal(given, (x * constants.get("k", 2)).numpy())


def test_an_exported_program_keeps_its_number(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    torch.export.save(torch.export.export(Optional().eval(), (x, None, 3)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match="gives 4 where the program was exported with 3"):
        porting.convert(tmp_path / "net.pt2", tmp_path / "port", allow_pickle=True, example_inputs=(x, None, 4))


# --- dtypes


@pytest.mark.parametrize("free", [None, {"input": {0: "batch"}}], ids=["fixed", "free"])
@pytest.mark.parametrize(
    ("dtype", "hint"),
    [(torch.bfloat16, "holds every value"), (torch.float64, "rounded to float32")],
    ids=["bfloat16", "float64"],
)
def test_dtypes_that_onnxruntime_cannot_compute_in(dtype: torch.dtype, hint: str, free: Any, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1)).to(dtype).eval()
    with pytest.raises(UnsupportedModel, match=r"Sequential computes in .*loat.*, and onnxruntime does not: ") as caught:
        porting.port(module, tmp_path / "port", example_inputs=(torch.randn(2, 4, 3, dtype=dtype),), dynamic=free)
    assert "call .float() on the module" in caught.value.next and hint in caught.value.next
    assert "/tmp" not in caught.value.what


def test_inputs_of_bfloat16_are_generated() -> None:
    with pytest.raises(UnsupportedModel, match="computes in bfloat16"):
        open_module(torch.nn.Linear(4, 5).bfloat16().eval(), [], input_specs=[TensorSpec("input", "bfloat16", ("b", 4))])


@pytest.mark.parametrize("free", [None, {"input": {0: "batch"}}], ids=["fixed", "free"])
def test_half_modules_stay_half(free: Any, tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 5).half().eval()
    assert porting.port(module, tmp_path / "port", example_inputs=(torch.randn(2, 4).half(),), dynamic=free).ok
    with porting.load(tmp_path / "port") as session:
        assert [s.dtype for s in (*session.inputs, *session.outputs)] == ["float16", "float16"]


# --- where


def test_where_is_no_line_of_ours_nor_of_who_called_us() -> None:
    """All code of the module is torch's: its own file has no line to show."""
    module = torch.nn.Identity()
    module.forward = functools.partial(torch.nn.functional.dropout, training=True)
    with pytest.raises(InputError, match="draws random numbers") as caught:
        open_module(module.eval(), [(torch.randn(3, 4),)])
    assert caught.value.where == "forward"


# --- files


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


STATE = {"weight": np.zeros((5, 4), np.float32), "bias": np.zeros(5, np.float32)}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps(STATE, protocol=0), "a pickle of protocol 0 or 1"),
        (pickle.dumps(STATE, protocol=1), "a pickle of protocol 0 or 1"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=0) + b"rest", "a pickle of protocol 0 or 1"),
        (_tar(), "a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer of git-lfs"),
        (b"<!DOCTYPE html><html></html>", "neither safetensors nor what torch saves"),
        (b"\x10\0\0\0\0\0\0\0 no header", "neither safetensors nor what torch saves"),
    ],
    ids=["protocol 0", "protocol 1", "torch, protocol 0", "tar", "lfs", "html", "header"],
)
def test_a_weights_file_of_another_kind_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    for allow in (False, True):
        with pytest.raises(CheckpointError, match=f"w.pth is {what}"):
            load_weights(torch.nn.Linear(4, 5), tmp_path / "w.pth", "Linear", allow_pickle=allow)


def test_the_factory_needs_no_number_that_has_a_default(tmp_path: Path) -> None:
    (tmp_path / "with_default.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, k: int = 2):\n        return x * k\n"
    )
    spec = f"{tmp_path / 'with_default.py'}:Net"
    source = open_factory(spec, None, [], [TensorSpec("x", "float32", ("b", 4))])
    assert [i.name for i in source.inputs] == ["x"]
    source.close()
