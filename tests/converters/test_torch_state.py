"""Whatever a torch module remembers between calls is named and refused: TorchScript attributes, buffers, globals, closures, objects."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import porting
from porting.errors import InputError

LATE = 100  # calls after which the output changes: what is remembered shows in no output of a test
SEEN = {"calls": 0}
CALLS = 0


class Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2 if self.calls < 100 else x * 3


class Sets(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = x * 2 + torch.relu(self.last - 100.0)
        self.last = self.last + 1
        return result


class Appends(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = [torch.zeros(1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x * 2 + (1.0 if len(self.seen) > 100 else 0.0)


class InDict(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {"last": torch.zeros(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept["last"].add_(1)
        return x * 2 + torch.relu(self.kept["last"] - 100.0)


class Buffer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = x * 2 + torch.relu(self.cache - 100.0)
        self.cache = self.cache + 1
        return result


class InPlace(Buffer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache += 1
        return x * 2 + torch.relu(self.cache - 100.0)


class RunningStatistics(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)


class Holds(torch.nn.Module):
    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) + 1


REMEMBERING = {Counts: "calls", Sets: "last", Appends: "seen", InDict: "kept", Buffer: "cache", InPlace: "cache"}
FORMS: dict[str, Any] = {
    "eager": lambda m: m,
    "scripted": torch.jit.script,
    "frozen": lambda m: torch.jit.freeze(torch.jit.script(m)),
    "scripted within eager": lambda m: Holds(torch.jit.script(m)).eval(),
    "within scripted": lambda m: torch.jit.script(Holds(m).eval()),
}


def refused(module: Any, tmp_path: Path) -> str:
    """What is named."""
    with pytest.raises(InputError, match=r"changes (attributes of its own|its own buffers) when it runs") as caught:
        porting.convert(module, tmp_path / "port", example_inputs=(torch.randn(2, 4),), allow_pickle=True)
    return caught.value.what.partition("which a graph cannot: ")[2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", REMEMBERING)
def test_what_changes_is_named(kind: type[torch.nn.Module], form: str, tmp_path: Path) -> None:
    if kind is InDict and form == "frozen":
        pytest.skip("freezing makes a constant of the dict, which no exporter takes")
    module = FORMS[form](kind().eval())
    assert refused(module, tmp_path) == ("part." if "within" in form else "") + REMEMBERING[kind]


def test_a_saved_torchscript_counter_is_named(tmp_path: Path) -> None:
    torch.jit.script(Counts().eval()).save(str(tmp_path / "counts.pt"))
    assert refused(tmp_path / "counts.pt", tmp_path) == "calls"


def test_statistics_that_eval_mode_does_not_stop_are_named(tmp_path: Path) -> None:
    assert refused(RunningStatistics().eval(), tmp_path) == "norm.running_mean, norm.running_var"
    assert refused(torch.jit.script(RunningStatistics().eval()), tmp_path) == "norm.running_mean, norm.running_var"


@pytest.mark.parametrize("kind", [Buffer, InPlace])
def test_a_refused_module_keeps_its_buffers(kind: type[Buffer], tmp_path: Path) -> None:
    module = kind().eval()
    tensor = module.cache
    refused(module, tmp_path)
    assert module.cache is tensor and tensor.item() == 0 and not tensor.is_inference()


def step() -> int:
    SEEN["calls"] += 1
    return SEEN["calls"]


class Global(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global CALLS
        CALLS += 1
        return x * 2 if CALLS < LATE else x * 3


class GlobalInAFunction(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if step() < LATE else x * 3


class OfItsClass(torch.nn.Module):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        OfItsClass.calls += 1
        return x * 2 if self.calls < LATE else x * 3


class DefaultValue(torch.nn.Module):
    def forward(self, x: torch.Tensor, kept: list[int] = []) -> torch.Tensor:  # noqa: B006
        kept.append(1)
        return x * 2 if len(kept) < LATE else x * 3


class Object:
    def __init__(self) -> None:
        self.calls = 0


class InAnObject(torch.nn.Module):
    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.kept, deque):
            self.kept.append(1)
        else:
            self.kept.calls += 1
        return x * 2


def closure() -> torch.nn.Module:
    seen: list[int] = []

    class Closes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return x * 2 if len(seen) < LATE else x * 3

    return Closes()


def hooked() -> torch.nn.Module:
    seen: list[int] = []
    module = torch.nn.Linear(4, 4)
    module.register_forward_hook(lambda m, inputs, output: seen.append(1) or output)
    return module


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Global(), r"\.CALLS$"),
        (GlobalInAFunction(), r"\.SEEN$"),
        (OfItsClass(), r"^OfItsClass\.calls$"),
        (DefaultValue(), r"DefaultValue\.forward: kept$"),
        (InAnObject(Object()), "^kept$"),
        (InAnObject(SimpleNamespace(calls=0)), "^kept$"),
        (InAnObject(deque()), "^kept$"),
        (closure(), r"forward: seen$"),
        (hooked(), r"lambda>: seen$"),
    ],
    ids=["global", "function", "class", "default", "object", "namespace", "deque", "closure", "hook"],
)
def test_what_lies_outside_of_the_module_is_named(module: torch.nn.Module, name: str, tmp_path: Path) -> None:
    assert re.search(name, refused(module.eval(), tmp_path))


class Reads(torch.nn.Module):
    """Holds and names all kinds of things, and changes none."""

    table: ClassVar[dict[str, float]] = {"scale": 2.0}

    def __init__(self) -> None:
        super().__init__()
        self.object, self.kept, self.me = Object(), deque([1]), [self]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.table["scale"] + len(self.kept) + self.object.calls + len(SEEN)


def test_what_is_only_read_is_no_memory(tmp_path: Path) -> None:
    assert porting.port(Reads().eval(), tmp_path / "port", example_inputs=(torch.randn(2, 4),)).ok


class DrawsElsewhere(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(np.random.default_rng().random())


def test_random_numbers_that_are_not_torchs_are_seen_in_the_outputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"other outputs .* when it runs again .* takes random numbers from elsewhere"):
        porting.convert(DrawsElsewhere().eval(), tmp_path / "port", example_inputs=(torch.randn(2, 4),))
