"""What torch-npu does unasked, and that the route keeps it from doing it: each once without our guard and once with it. Over a simulated CANN."""

from __future__ import annotations

from pathlib import Path

import pytest

from porting.backends.ascend import npu_setup
from porting.backends.cann_simulator.machine import Machine
from porting.types import Availability
from tests.ascend_wheels.npu_children import told
from tests.backends.ascend_programs import NOTHING, left_behind

pytestmark = pytest.mark.npu_wheel

OPEN = """
from porting.backends.ascend.npu_setup import open_device
device = open_device({"index": "0"}, "fp32")
torch = device.torch
"""
RAW = """
import torch, torch_npu
"""
CONVOLVED = """
torch.manual_seed(0)
x, w = torch.randn(1, 8, 9, 9), torch.randn(4, 8, 3, 3)
exact = torch.nn.functional.conv2d(x.double(), w.double())
found = torch.nn.functional.conv2d(x.npu(), w.npu()).cpu().double()
tell(float((found - exact).norm() / exact.norm()))
"""
WITHOUT_KERNEL = """
tell(error(lambda: torch.linalg.eigvals(torch.eye(3).npu())))
"""
MISTAKE = """
from porting.backends.ascend.npu_errors import npu_errors
def late():
    with npu_errors(torch, "ascend:0", "run the model"):
        torch.ones(2).npu() @ torch.ones(3).npu()
        torch.npu.synchronize()
tell(error(late))
"""


def test_convolutions_are_in_hf32_unless_told_otherwise() -> None:
    """HF32 keeps 11 bits: 1e-4 of the result, where float32 is off by 1e-7."""
    assert 1e-5 < told(RAW + CONVOLVED) < 1e-2
    assert told(OPEN + CONVOLVED) < 1e-6


def test_an_operator_without_a_kernel_runs_on_the_cpu_unless_told_otherwise() -> None:
    assert told(RAW + WITHOUT_KERNEL) is None
    kind, text = told(OPEN + WITHOUT_KERNEL)
    assert kind == "RuntimeError" and "CPU fallback is disabled" in text


def test_what_the_vendor_raises_is_explained() -> None:
    kind, text = told(OPEN + MISTAKE)
    assert kind == "RuntimeFailed" and "161002" in text and "cannot run the model" in text
    kind, text = told(
        OPEN + MISTAKE.replace("torch.ones(2).npu() @ torch.ones(3).npu()", "torch.linalg.eigvals(torch.eye(3).npu())")
    )
    assert kind == "RuntimeFailed" and "_linalg_eigvals has no kernel in torch_npu" in text
    kind, text = told(OPEN + MISTAKE.replace("torch.ones(2).npu() @ torch.ones(3).npu()", "torch.empty(1 << 40, device='npu')"))
    assert kind == "OutOfResources"


def test_float64_is_refused_and_buffers_keep_their_dtype() -> None:
    """torch_npu makes float32 of .double() with a warning; and .half() would narrow the frequencies of rotary positions."""
    moved = (
        OPEN.replace("fp32", "fp16")
        + """
from porting.backends.ascend.npu_module import moved
class Turned(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.register_buffer("frequencies", torch.full((3,), 1 / 3))
module = moved(Turned(), device)
wide = torch.nn.Linear(2, 2).to(torch.float64)
tell([str(module.weight.dtype), str(module.frequencies.dtype), str(module.weight.device), error(moved, wide, device)])
"""
    )
    weight, buffer, place, refused = told(moved)
    assert (weight, buffer, place) == ("torch.float16", "torch.float32", "npu:0")
    assert refused[0] == "RuntimeFailed" and "float64" in refused[1]


def test_graph_modes_are_not_simulated() -> None:
    captured = """
def capture():
    with torch.npu.graph(torch.npu.NPUGraph()):
        torch.ones(2, device="npu") + 1
tell(error(capture))
"""
    kind, text = told(OPEN + captured)
    assert kind == "RuntimeError" and "207000" in text, "feature not supported"


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"torch": "2.13.0", "torch-npu": "", "transformers": "5.23.0"}, "torch-npu is not installed"),
        ({"torch": "", "torch-npu": "2.13.0", "transformers": "5.23.0"}, "torch is not installed"),
        ({"torch": "2.12.1", "torch-npu": "2.13.0", "transformers": "5.23.0"}, "of different versions"),
        ({"torch": "2.13.0", "torch-npu": "2.13.0", "transformers": ""}, "transformers is not installed"),
    ],
)
def test_what_the_route_needs_is_named(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], reason: str) -> None:
    monkeypatch.setattr(npu_setup, "installed_versions", lambda names: {name: versions[name] or None for name in names})
    found = npu_setup.installation()
    assert not found.usable and reason in found.reason and found.next


def test_without_cann_it_is_told_before_torch_npu_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    found: Availability = npu_setup.installation()
    assert not found.usable and "libascendcl" in found.reason + str(found.next)


def test_a_process_that_ends_leaves_nothing_on_the_device(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    more = "x = torch.ones(1000, device='npu')\ny = (x + 1).cpu()\ndel x\ntorch.npu.empty_cache()\ntell(1)"
    told(OPEN + more, Machine(report=str(report)))
    assert left_behind(report) == NOTHING
