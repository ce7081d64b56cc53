"""Weights files into torch modules: which mapping is taken, what is left out and why, and weights of another model."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
nn = torch.nn

from safetensors.torch import save_file  # noqa: E402

from porting.converters.torch_storage import read_object, torch_file_kind  # noqa: E402
from porting.converters.torch_weights import load_weights  # noqa: E402
from porting.errors import CheckpointError, InputError, PortingError, UsageError  # noqa: E402


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.bn = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, classes)
        self.copy = nn.Linear(4, classes, bias=False)
        self.copy.weight = self.fc.weight


def trained(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.detach().clone() for name, tensor in Net().state_dict().items()}


def saved(path: Path, value, **options) -> Path:
    torch.save(value, path, **options)
    return path


def loaded(path: Path, **options):
    torch.manual_seed(7)
    module = Net()
    return module, load_weights(module, path, "Net", **options)


def require_state(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name


CONTAINERS = {
    "plain": (lambda s: s, ""),
    "OrderedDict": (lambda s: OrderedDict(s), ""),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "state_dict"),
    "any name": (lambda s: {"what_i_trained": s}, "what_i_trained"),
    "two levels": (lambda s: {"run": {"model": s, "lr": 0.1}, "best_acc": 0.9}, "run.model"),
    "parts": (lambda s: {"model": _parts(s)}, "model"),
}


def _parts(state):
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_the_mapping_that_fits_is_found_wherever_it_is(tmp_path, name, legacy):
    wrap, entry = CONTAINERS[name]
    path = saved(tmp_path / "w.pth", wrap(trained()), _use_new_zipfile_serialization=not legacy)
    module, result = loaded(path)
    require_state(module, trained())
    assert result.facts == {"file": "w.pth"} | ({"entry": entry} if entry else {})
    assert sorted(result.used) == sorted(trained())


def test_safetensors_and_tied_names_that_the_file_leaves_out(tmp_path):
    state = trained()
    del state["copy.weight"]
    save_file(state, tmp_path / "w.safetensors")
    module, result = loaded(tmp_path / "w.safetensors")
    require_state(module, trained())
    assert "missing" not in result.facts and module.copy.weight is module.fc.weight


def test_a_training_checkpoint_is_read_and_everything_beside_the_weights_is_listed(tmp_path):
    module = Net()
    optimizer = torch.optim.Adam(module.parameters())
    sum(p.sum() for p in module.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    content = {
        "model_state_dict": trained(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 12,
        "best_acc": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, data=Path("/data")),
        "discriminator": {"w": torch.ones(3)},
        "classes": {"cat", "dog"},
    }
    module, result = loaded(saved(tmp_path / "w.pth", content))
    require_state(module, trained())
    reasons = {d["name"]: d["reason"] for d in result.dropped}
    assert reasons.keys() == content.keys() - {"model_state_dict"}
    assert "optimiser" in reasons["optimizer_state_dict"] and "schedule" in reasons["scheduler"]
    assert "how far" in reasons["epoch"] and "result" in reasons["best_acc"] and "settings" in reasons["args"]
    assert reasons["discriminator"] == "holds tensors that are not this module's"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off_when_all_names_have_them(tmp_path, prefix):
    module, result = loaded(saved(tmp_path / "w.pth", {prefix + n: t for n, t in trained().items()}))
    require_state(module, trained())
    assert result.facts["prefix"] == prefix and all(name.startswith(prefix) for name in result.used)


def test_a_prefix_of_some_names_is_none(tmp_path):
    state = {("module." + n if n != "fc.bias" else n): t for n, t in trained().items()}
    with pytest.raises(CheckpointError, match="do not fit Net: "):
        loaded(saved(tmp_path / "w.pth", state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_cast_up_exactly_and_counted(tmp_path, dtype):
    halves = {n: t.to(dtype) if t.is_floating_point() else t for n, t in trained().items()}
    for path in (saved(tmp_path / "w.pth", halves), tmp_path / "w.safetensors"):
        if path.suffix == ".safetensors":
            save_file({n: t.clone() for n, t in halves.items()}, path)
        module, result = loaded(path)
        require_state(module, halves)
        assert result.facts["cast"] == {f"{str(dtype).removeprefix('torch.')} -> float32": 9}


def test_values_that_the_modules_dtype_cannot_hold_are_refused(tmp_path):
    state = trained()
    state["fc.bias"] = state["fc.bias"].double() + 1e-12
    with pytest.raises(CheckpointError, match=r"'fc.bias' is float64, and the module's float32 cannot hold") as caught:
        loaded(saved(tmp_path / "w.pth", state))
    assert ".to(torch.float64)" in caught.value.next
    state["fc.bias"] = torch.tensor([0.5, 2.0], dtype=torch.float64)  # these it can
    assert loaded(saved(tmp_path / "w.pth", state))[1].facts["cast"] == {"float64 -> float32": 1}


def test_nan_is_refused_and_strided_and_empty_tensors_come_as_they_are(tmp_path):
    state = trained()
    state["conv.weight"] = state["conv.weight"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    require_state(loaded(saved(tmp_path / "w.pth", state))[0], trained())
    state["bn.running_var"][2] = float("nan")
    with pytest.raises(CheckpointError, match=r"'bn.running_var' holds NaN"):
        loaded(saved(tmp_path / "w.pth", state))


def test_weights_of_another_model_show_the_nearest_names_with_their_shapes(tmp_path):
    state = {n.replace("conv", "convolution").replace("fc.", "head.fc."): t for n, t in trained().items()}
    with pytest.raises(CheckpointError) as caught:
        loaded(saved(tmp_path / "w.pth", state))
    assert re.search(r"3 names missing, 4 left over", caught.value.what)
    assert "conv.weight [4, 3, 3]: the file has convolution.weight [4, 3, 3]" in caught.value.what
    assert "fc.bias [2]: the file has head.fc.bias [2]" in caught.value.what
    assert "strict=False" in caught.value.next


def test_at_most_ten_names_are_shown(tmp_path):
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    state = {f"layer{n}": t for n, t in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, saved(tmp_path / "w.pth", state), "S")
    assert caught.value.what.count("the file has") == 10 and "40 names missing" in caught.value.what


def test_weights_of_other_sizes_show_both_shapes(tmp_path):
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"fc.weight: the module has \[2, 4\], the file \[5, 4\]"):
            loaded(saved(tmp_path / "w.pth", Net(5).state_dict()), strict=strict)


def test_not_strict_loads_what_fits_and_lists_the_rest(tmp_path):
    state = trained() | {"aux.weight": torch.ones(3)}
    del state["bn.weight"]
    path = saved(tmp_path / "w.pth", state)
    with pytest.raises(CheckpointError, match=r"1 names missing, 1 left over. bn.weight \[4\]"):
        loaded(path)
    module, result = loaded(path, strict=False)
    assert torch.equal(module.fc.bias, state["fc.bias"])
    assert result.facts["missing"] == ["bn.weight"] and "aux.weight" not in result.used
    assert result.dropped == [{"name": "aux.weight", "reason": "the module has no such name (strict=False)"}]


def test_not_strict_still_refuses_a_file_of_which_nothing_fits(tmp_path):
    with pytest.raises(CheckpointError, match="do not fit"):
        loaded(saved(tmp_path / "w.pth", {"a": torch.ones(1)}), strict=False)


def test_two_mappings_that_fit_are_never_guessed_between(tmp_path):
    path = saved(tmp_path / "w.pth", {"model": trained(1), "ema": trained(2)})
    with pytest.raises(UsageError, match="2 mappings that fit Net: model, ema"):
        loaded(path)
    require_state(loaded(path, entry="ema")[0], trained(2))
    with pytest.raises(UsageError, match="no mapping of tensors called 'emma'") as caught:
        loaded(path, entry="emma")
    assert caught.value.next == "known: ema, model"


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], 3, {"a": "text"}])
def test_files_without_tensors_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="holds no mapping of names to tensors"):
        loaded(saved(tmp_path / "w.pth", content))


@pytest.mark.parametrize(
    "raw", [b"", b"PK", b"PK\x03\x04nothing", b"\x80\x02}q\x00.", b"\x80", b"text that is no weights file at all"]
)
def test_damaged_files_are_refused(tmp_path, raw):
    (tmp_path / "w.pth").write_bytes(raw)
    with pytest.raises(InputError):
        loaded(tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not exist"):
        loaded(tmp_path / "missing.pth")


class Writes:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_a_crafted_weights_file_runs_nothing_without_the_flag_and_does_with_it(tmp_path, legacy):
    target = tmp_path / "written"
    content = {"model": trained(), "extra": Writes(target)}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=not legacy)
    assert torch_file_kind(path) == "pickle"
    with pytest.raises(CheckpointError, match=r"w\.pth") as caught:
        loaded(path)
    assert "--allow-pickle" in caught.value.next and not target.exists()
    module, _ = loaded(path, allow_pickle=True)
    require_state(module, trained())
    assert target.exists()  # so the file is what it claims to be, and the check above can fail


def test_a_bare_pickle_of_code_is_not_given_to_pickle(tmp_path):
    target = tmp_path / "written"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Writes(target)))
    assert torch_file_kind(tmp_path / "w.pth") == "pickle"
    with pytest.raises(InputError):
        loaded(tmp_path / "w.pth")
    assert not target.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 3000),
    legacy=st.booleans(),
)
def test_flipped_and_cut_files_load_or_are_refused(tmp_path, edits, cut, legacy):
    path = saved(tmp_path / "w.pth", {"model": trained(), "epoch": 1}, _use_new_zipfile_serialization=not legacy)
    raw = bytearray(path.read_bytes())
    for place, byte in edits:
        raw[place % len(raw)] = byte
    path.write_bytes(raw[:cut])
    try:
        torch_file_kind(path)
        read_object(path, allow_pickle=False)
        loaded(path)
    except PortingError:
        return
