""".pt2, TorchScript and pickled modules: refused before anything of them runs, and with the flag exported like any module."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
nn = torch.nn

from porting.converters import torch_files, torch_storage  # noqa: E402
from porting.converters.torch_files import open_torch_file, torch_file_kind  # noqa: E402
from porting.errors import InputError, UnsupportedModel, UsageError  # noqa: E402
from porting.types import TensorSpec  # noqa: E402

ROUNDING = 1e-5  # float32 sums of a few terms in another order


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Pair(nn.Module):
    """State in and out, nested; goes another way by values, which TorchScript can say."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x, state: tuple[torch.Tensor, torch.Tensor]):
        h = torch.tanh(self.fc(x) + state[0])
        return {"y": h.sum(1), "state": (h, state[1] + 1)}


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


class Forgets(nn.Module):
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x):
        self.seen = self.seen + x.sum()
        return x + self.seen


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    free = {0: torch.export.Dim("rows")}
    example = (torch.randn(2, 3), (torch.randn(2, 3), torch.ones(2, 3)))
    program = torch.export.export(Pair().eval(), example, dynamic_shapes=(free, (free, free)))
    torch.export.save(program, folder / "pair.pt2")
    torch.jit.script(Branch().eval()).save(str(folder / "branch.ts"))
    torch.jit.trace(nn.Linear(3, 2).eval(), torch.ones(1, 3)).save(str(folder / "linear.pt"))
    torch.jit.script(Forgets().eval()).save(str(folder / "forgets.ts"))
    torch.save(nn.Linear(3, 2), folder / "module.pth")
    torch.save({"model": nn.Linear(3, 2), "epoch": 3}, folder / "beside.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(3, 2).state_dict(), folder / "state.pth")
    torch.save(nn.Linear(3, 2).state_dict(), folder / "old_state.pth", _use_new_zipfile_serialization=False)
    (folder / "other.zip").write_bytes(b"")
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    (folder / "text.pt").write_text("not torch's")
    return folder


KINDS = {
    "pair.pt2": "pt2",
    "branch.ts": "torchscript",
    "linear.pt": "torchscript",
    "module.pth": "pickle",
    "beside.pth": "pickle",
    "state.pth": "state_dict",
    "old_state.pth": "state_dict",
    "other.zip": None,
    "text.pt": None,
}


def require_same(source, feeds):
    session = ort.InferenceSession(str(source.onnx_path), providers=["CPUExecutionProvider"])
    expected = source.original().run(feeds)
    assert [o.name for o in session.get_outputs()] == list(expected) == [o.name for o in source.outputs]
    for got, reference in zip(session.run(None, dict(feeds)), expected.values(), strict=True):
        np.testing.assert_allclose(got, reference, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_kind_is_told_by_the_bytes_not_by_the_name(files, tmp_path, name, kind):
    copy = tmp_path / "model.anything"
    copy.write_bytes((files / name).read_bytes())
    assert torch_file_kind(copy) == kind


@pytest.fixture
def no_loader(monkeypatch):
    """Nothing that runs code out of a file may be reached."""

    def reached(*args, **kwargs):
        if kwargs.get("weights_only") is not True:
            pytest.fail("a loader that runs code was reached")
        return original(*args, **kwargs)

    original = torch.load
    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch.export, "load"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(owner, name, reached)


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind in ("pt2", "torchscript", "pickle")])
def test_code_is_refused_before_a_loader_is_reached(files, no_loader, name):
    with pytest.raises(InputError, match=f"{name} is .*; nothing of it was run") as caught:
        open_torch_file(files / name, [(x(2, 3),)])
    assert "--allow-pickle" in caught.value.next


def test_the_guard_of_that_test_can_fail(files, no_loader):
    with pytest.raises(pytest.fail.Exception, match="a loader that runs code was reached"):
        open_torch_file(files / "module.pth", [(x(2, 3),)], allow_pickle=True)


@pytest.mark.parametrize("name", ["state.pth", "old_state.pth", "other.zip", "text.pt"])
def test_files_without_a_program_are_refused_either_way(files, name):
    for allow in (False, True):
        with pytest.raises(InputError, match=r"holds weights only|nothing that torch wrote"):
            open_torch_file(files / name, [], allow_pickle=allow)


# --- crafted files ----------------------------------------------------------------------------------------------------


class Writes:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def crafted_pt2(files: Path, folder: Path, target: Path) -> Path:
    """An exported program whose sample inputs are a pickle that writes a file."""
    evil = folder / "evil"
    torch.save(Writes(target), evil)
    path = folder / "crafted.pt2"
    with zipfile.ZipFile(files / "pair.pt2") as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            is_sample = "sample_inputs" in name
            archive.writestr(name, evil.read_bytes() if is_sample else source.read(name))
    return path


@pytest.mark.parametrize("kind", ["pt2", "zip pickle", "old pickle", "bare pickle"])
def test_a_crafted_file_writes_nothing_without_the_flag_and_does_with_it(files, tmp_path, kind):
    target, path = tmp_path / "written", tmp_path / "crafted.pt"
    if kind == "pt2":
        path = crafted_pt2(files, tmp_path, target)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Writes(target)))
    else:
        torch.save({"model": Writes(target)}, path, _use_new_zipfile_serialization=kind == "zip pickle")
    assert torch_file_kind(path) == ("pt2" if kind == "pt2" else "pickle")
    with pytest.raises(InputError, match="nothing of it was run"):
        open_torch_file(path, [])
    assert not target.exists()
    with pytest.raises(InputError):
        open_torch_file(path, [], allow_pickle=True)
    if kind != "bare pickle":  # which torch.load does not take at all
        assert target.exists(), "the crafted file does nothing, so the check above could not fail"


# --- with the flag ----------------------------------------------------------------------------------------------------


def test_an_exported_program_keeps_its_free_sizes_and_brings_its_example(files):
    source = open_torch_file(
        files / "pair.pt2", [], dynamic={"x": {0: "batch"}}, allow_pickle=True, state={"state_0": "state_0_out"}
    )
    assert source.format == "torch-export" and source.files == (files / "pair.pt2",)
    assert [str(spec) for spec in source.inputs] == [f"{n}: float32[batch, 3]" for n in ("x", "state_0", "state_1")]
    assert [o.name for o in source.outputs] == ["y", "state_0_out", "state_1_out"]
    for feeds in (source.examples[0], {"x": x(5, 3), "state_0": x(5, 3), "state_1": x(5, 3)}):
        require_same(source, feeds)
    assert source.accounting() == {"used": ["fc.bias", "fc.weight"], "dropped": [], "parameters": 12}
    source.close()


def test_an_exported_programs_fixed_sizes_cannot_be_named_and_its_inputs_are_checked(files):
    with pytest.raises(UsageError, match="axis 1 of x is no free size"):
        open_torch_file(files / "pair.pt2", [], dynamic={"x": {1: "n"}}, allow_pickle=True)
    with pytest.raises(InputError, match="gives x, the program takes x, state_0, state_1"):
        open_torch_file(files / "pair.pt2", [{"x": x(2, 3)}], allow_pickle=True)
    with pytest.raises(InputError, match=r"does not take these inputs .*float32\[2, 4\]"):
        open_torch_file(files / "pair.pt2", [(x(2, 4), (x(2, 4), x(2, 4)))], allow_pickle=True)


def test_torchscript_keeps_both_ways_of_a_branch(files):
    source = open_torch_file(files / "branch.ts", [(x(2, 3),)], dynamic={"x": {0: "batch"}}, allow_pickle=True)
    assert source.format == "torchscript" and source.name == "Branch"
    require_same(source, {"x": np.full((4, 3), 2, np.float32)})
    require_same(source, {"x": np.full((4, 3), -2, np.float32)})
    source.close()


def test_a_traced_module_and_pickled_ones_are_exported(files):
    for name, argument in (("linear.pt", "input"), ("module.pth", "input"), ("beside.pth", "input")):
        source = open_torch_file(files / name, [], [TensorSpec(argument, "float32", ("n", 3))], allow_pickle=True)
        assert source.inputs == (TensorSpec(argument, "float32", ("n", 3)),)
        require_same(source, {argument: x(3, 3)})
        source.close()


def test_torchscript_that_remembers_is_refused(files):
    with pytest.raises(InputError, match=r"Forgets changes attributes of its own .*: seen"):
        open_torch_file(files / "forgets.ts", [(x(2, 3),)], allow_pickle=True)


def test_torchscript_that_neither_exporter_takes_is_refused_with_both_reasons(tmp_path):
    class Words(nn.Module):
        def forward(self, x):
            counts: dict[str, torch.Tensor] = {"a": x}
            total = x
            for key in counts.keys():  # noqa: SIM118  TorchScript needs it
                total = total + counts[key] * len(key)
            return torch.linalg.eigvalsh(total)

    torch.jit.script(Words().eval()).save(str(tmp_path / "w.ts"))
    with pytest.raises(UnsupportedModel, match=r"(?s)cannot be exported. torch.onnx, dynamo: .*torch.onnx, TorchScript: "):
        open_torch_file(tmp_path / "w.ts", [(x(3, 3),)], allow_pickle=True)


def test_damaged_archives_are_refused(files, tmp_path):
    for name in ("pair.pt2", "linear.pt", "module.pth"):
        raw = (files / name).read_bytes()
        (tmp_path / "cut").write_bytes(raw[: len(raw) // 2])
        with pytest.raises(InputError):
            open_torch_file(tmp_path / "cut", [], allow_pickle=True)
    assert torch_files.torch_file_kind is torch_storage.torch_file_kind
