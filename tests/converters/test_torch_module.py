"""Torch modules and factories as graph sources: what is exported equals the module, its inputs and outputs have names."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
nn, F = torch.nn, torch.nn.functional

from porting.converters.graph_builder import MODULE  # noqa: E402
from porting.converters.torch_calls import flat_outputs, parameters_of, plan_call  # noqa: E402
from porting.converters.torch_module import open_factory, open_module  # noqa: E402
from porting.errors import InputError, UsageError  # noqa: E402
from porting.types import TensorSpec, is_graph  # noqa: E402
from tests.torch_sources import ROUNDING, require_same, x  # noqa: E402


@dataclasses.dataclass
class Result:
    y: torch.Tensor
    state: tuple[torch.Tensor, torch.Tensor]
    loss: torch.Tensor | None = None


class Tagger(nn.Module):
    """An LSTM both ways with its state in and out, GroupNorm, tied layers, and layers that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.norm = nn.GroupNorm(3, 12)
        self.out = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12)
        self.tied.weight = self.out.weight
        self.head = nn.Linear(3, 3)

    def forward(self, x, hx: tuple[torch.Tensor, torch.Tensor] | None = None, scale: float = 1.0):
        y, state = self.rnn(x, hx)
        y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        return Result(self.tied(torch.relu(self.out(y))) * scale, state)


@pytest.fixture(scope="module")
def tagger():
    torch.manual_seed(0)
    module = Tagger()
    examples = [
        {"x": x(1, 7, 4), "hx": (x(4, 1, 6), x(4, 1, 6, seed=1)), "scale": 2.0},
        {"x": x(3, 9, 4), "hx": (x(4, 3, 6), x(4, 3, 6, seed=1)), "scale": 2.0},
    ]
    source = open_module(module, examples, {"x": {0: "batch"}}, state={"hx_0": "state_0", "hx_1": "state_1"})
    yield module, source
    source.close()


def test_the_exported_file_gives_what_the_module_gives_at_every_example_and_at_other_sizes(tagger):
    _, source = tagger
    assert is_graph(source) and len(source.examples) == 2
    for feeds in source.examples:
        require_same(source, feeds)
    require_same(source, {"x": x(2, 1, 4), "hx_0": x(4, 2, 6), "hx_1": x(4, 2, 6)})


def test_inputs_and_outputs_are_named_after_arguments_and_fields_and_sizes_that_differ_are_free(tagger):
    _, source = tagger
    assert source.inputs == (
        TensorSpec("x", "float32", ("batch", "x_1", 4)),
        TensorSpec("hx_0", "float32", (4, "batch", 6)),  # differs as the batch does, so it is the batch
        TensorSpec("hx_1", "float32", (4, "batch", 6)),
    )
    assert [o.name for o in source.outputs] == ["y", "state_0", "state_1"]
    assert source.outputs[0].shape == ("batch", "x_1", 12)


def test_recurrent_layers_stay_one_node_and_nodes_know_their_module(tagger):
    _, source = tagger
    nodes = list(ir.load(source.onnx_path).graph)
    assert [n.op_type for n in nodes].count("LSTM") == 2 and len(nodes) < 80
    assert {n.metadata_props.get(MODULE) for n in nodes} >= {"rnn", "norm", "out", "tied"}
    assert not any(re.search(r"site-packages|test_torch_module|pkg\.torch", str(dict(n.metadata_props))) for n in nodes)
    assert source.graph().state.pairs[0].input == "hx_0" and source.graph().state.pairs[0].output == "state_0"


def test_facts_say_how_the_graph_was_made_and_the_accounting_what_it_uses(tagger):
    module, source = tagger
    facts = json.loads(json.dumps(source.facts))
    assert facts["exporter"] == "torch.onnx, dynamo" and facts["constants"] == {"scale": 2.0}
    assert facts["free_sizes"]["x"] == {"0": "batch", "1": "x_1"} and {"batch": 1, "x_1": 9} in facts["sizes_tried"]
    accounting = source.accounting()
    assert {d["name"] for d in accounting["dropped"]} == {"head.weight", "head.bias"}
    assert {"out.weight", "tied.weight", "rnn.weight_hh_l1_reverse"} <= set(accounting["used"])
    assert len(accounting["used"]) + 2 == len(module.state_dict())
    assert accounting["parameters"] == sum(p.numel() for p in module.parameters())


def test_the_module_is_in_eval_mode_until_the_source_is_closed_and_the_file_goes_with_it():
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    module[1].eval()
    source = open_module(module, [(x(2, 3),)])
    assert not module.training and source.onnx_path.is_file()
    source.close()
    source.close()
    assert module.training and module[0].training and not module[1].training
    assert not source.onnx_path.exists()


def test_the_original_refuses_feeds_that_are_not_its_own(tagger):
    _, source = tagger
    with pytest.raises(InputError, match="no input 'y'"):
        source.original().run({"y": x(1)})
    with pytest.raises(InputError, match="no array for hx_0, hx_1"):
        source.original().run({"x": x(1, 7, 4)})


# --- calls --------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def forward(self, a, *more, flag: bool = False, **others):
        return {"a": a, "more": list(more), "others": {"z": others["z"], "none": None}} if flag else a


def call(module, example):
    plan, tensors = plan_call(parameters_of(module.forward), example, "M")
    return plan, tensors, plan.call(module, tensors)


def test_arguments_are_bound_by_position_by_name_and_by_parts():
    a, b = x(2), x(3)
    plan, _, result = call(Odd(), {"a": a, "more_0": b, "more_1": a, "z": b, "flag": np.array(True)})
    assert plan.names == ("a", "more_0", "more_1", "z") and plan.constants == {"flag": True}
    assert [name for name, _ in flat_outputs(result, "M")] == ["a", "more_0", "more_1", "others_z"]
    assert torch.equal(result["more"][0], torch.from_numpy(b))
    assert call(Odd(), (a, b))[0].names == ("a", "more_0")
    assert call(Odd(), a)[0].names == call(Odd(), {"arr_0": a})[0].names == ("a",)
    assert plan_call(parameters_of(Tagger().forward), {"x": a, "hx_0": b, "hx_1": b}, "M")[0].args[1][1].name == "hx_1"


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ({"b": x(2)}, r"has no argument 'b'.*known: hx, scale, x"),
        ({"hx_0": x(2), "hx_1": x(2)}, "needs x; the example gives hx"),
        ({"x": x(2), "hx_1": x(2)}, "not numbered from 0"),
        ((x(2),) * 4, "has 4 arguments, Tagger.forward takes 3: x, hx, scale"),
        ({"x": object()}, "argument 'x' of Tagger is a object"),
        ({"x": None}, "gives Tagger no tensor"),
        ({"x": x(2), "hx": (x(2), x(2)), "hx_0": x(2)}, "given whole and in parts"),
        ({"x": np.array(["text"])}, r"input 'x' is <U4\[1\], which torch does not have"),
    ],
)
def test_examples_that_the_signature_does_not_take_are_refused(example, text):
    with pytest.raises(InputError) as caught:
        plan_call(parameters_of(Tagger().forward), example, "Tagger")
    assert re.search(text, str(caught.value), re.DOTALL)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (torch.zeros(1), ["output"]),
        ((torch.zeros(1),), ["output"]),
        ((torch.zeros(1), None, [torch.zeros(1), torch.zeros(1)]), ["output_0", "output_2_0", "output_2_1"]),
        ({"a": torch.zeros(1), "b": {"c": torch.zeros(1)}}, ["a", "b_c"]),
        (Result(torch.zeros(1), (torch.zeros(1), torch.zeros(1))), ["y", "state_0", "state_1"]),
        (torch.return_types.max((torch.zeros(1), torch.zeros(1))), ["output_0", "output_1"]),
        ({"a_b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, ["a_b", "a_b_2"]),
    ],
)
def test_outputs_are_named_after_their_fields(value, names):
    assert [name for name, _ in flat_outputs(value, "M")] == names


@pytest.mark.parametrize("value", [3, "text", None, {}, torch.zeros(1, dtype=torch.complex64), torch.zeros(2).to_sparse()])
def test_outputs_that_are_no_tensors_are_refused(value):
    with pytest.raises(InputError, match=r"M.* returns"):
        flat_outputs(value, "M")


def test_an_output_with_the_name_of_an_input_gets_another_and_values_come_through():
    class Same(nn.Module):
        def forward(self, x):
            return {"x": x, "again": x, "sum": x.sum(), "count": torch.tensor(3)}

    source = open_module(Same(), [{"x": x(2, 3)}], {"x": {0: "rows"}})
    assert [o.name for o in source.outputs] == ["x_out", "again", "sum", "count"]
    require_same(source, {"x": x(2, 3, seed=1)})
    source.close()


def test_neighbours_by_distance_are_scattered_as_the_module_does():
    class Neighbours(nn.Module):
        def forward(self, points, mask):
            distance = torch.cdist(points, points).masked_fill(~mask[None, :], 1e9)
            near = distance.topk(2, largest=False).indices
            count = torch.zeros(points.shape[0]).index_add(0, near.flatten(), torch.ones(near.numel()))
            return count, near, torch.cdist(points, points[:2], p=1.5)

    source = open_module(Neighbours(), [{"points": x(5, 3), "mask": np.array([1, 1, 0, 1, 1], bool)}])
    require_same(source, {"points": x(5, 3, seed=3), "mask": np.array([0, 1, 1, 1, 1], bool)})
    source.close()


def test_bfloat16_goes_through_torch_and_back_bit_for_bit():
    import ml_dtypes

    from porting.converters.torch_calls import array_from_tensor, tensor_from_array

    array = x(3, 4).astype(ml_dtypes.bfloat16)
    assert array_from_tensor(tensor_from_array(array, "a")).tobytes() == array.tobytes()


# --- factories ----------------------------------------------------------------------------------------------------

FACTORY = """
import torch
from helper_of_the_factory import WIDTH
class Net(torch.nn.Linear):
    def __init__(self): super().__init__(WIDTH, 2)
ready = Net().eval()
number = 3
def make(): print("noise"); return Net().eval()
def with_default(width=3): return Net().eval()
def needs(width, depth=2): return Net()
def raises(): raise OSError("no disk")
def exits(): raise SystemExit(3)
def gives_dict(): return {}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a package of the user's, which is the current one."""
    import sys

    (tmp_path / "users_own").mkdir()
    (tmp_path / "users_own" / "__init__.py").touch()
    (tmp_path / "users_own" / "nets.py").write_text(FACTORY)
    (tmp_path / "users_own" / "broken.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "users_own" / "wrong.py").write_text("1 / 0\n")
    (tmp_path / "helper_of_the_factory.py").write_text("WIDTH = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("users_own", "helper_of")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "spec", ["users_own.nets:make", "users_own/nets.py:make", "users_own.nets:Net", "users_own.nets:ready"]
)
def test_a_factory_is_found_from_the_current_folder_by_name_and_by_file(project, spec, capsys):
    from porting.converters.torch_factory import module_from_factory

    module, name, files = module_from_factory(spec)
    assert type(module).__name__ == "Net" and name == spec.partition(":")[2]
    assert [file.name for file in files] == ["nets.py"]
    assert "noise" not in capsys.readouterr().out  # stdout is the result


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ("users_own.nets", UsageError, "names no factory.*package.module:factory"),
        ("users_own.nets:", UsageError, "names no factory"),
        ("users own:make", UsageError, "is no name of a Python module"),
        ("no_such:make", UsageError, "no Python module 'no_such'"),
        ("users_own.nope:make", UsageError, "no Python module 'users_own.nope'"),
        ("nope.py:make", UsageError, "no such file: nope.py"),
        ("users_own.nets:mkae", UsageError, "has no 'mkae'.*did you mean 'make'"),
        ("users_own.nets:number", UsageError, "is a int, which cannot be called"),
        ("users_own.nets:needs", UsageError, r"needs arguments: width\n.*def make\(\): return needs\(width=\.\.\.\)"),
        ("users_own.nets:raises", InputError, r"raised OSError: no disk\n.*nets\.py:11: def raises"),
        ("users_own.nets:exits", InputError, "raised SystemExit: 3"),
        ("users_own.nets:gives_dict", InputError, "gave a dict: expected a torch.nn.Module"),
        ("users_own.broken:make", InputError, r"needs 'no_such_package_at_all', which is not installed\n.*broken\.py:1"),
        ("users_own.wrong:make", InputError, r"raised ZeroDivisionError.*\n.*wrong\.py:1: 1 / 0"),
    ],
)
def test_factories_that_cannot_be_used_are_refused(project, spec, kind, text):
    with pytest.raises(kind) as caught:
        open_factory(spec, None, [(x(1, 3),)])
    assert re.search(text, str(caught.value), re.DOTALL)


def test_a_factory_with_weights_becomes_a_source(project):
    torch.manual_seed(1)
    state = {"module." + k: v.half() for k, v in nn.Linear(3, 2).state_dict().items()}
    torch.save({"net": state, "epoch": 3}, "w.pth")
    source = open_factory("users_own.nets:make", project / "w.pth", [{"input": x(2, 3)}], (), {"input": ["n", None]})
    assert source.name == "Net" and [f.name for f in source.files] == ["w.pth", "nets.py"]
    assert source.facts["weights"] == {"file": "w.pth", "entry": "net", "prefix": "module.", "cast": {"float16 -> float32": 2}}
    assert source.accounting()["used"] == ["module.bias", "module.weight"]
    assert [d["name"] for d in source.accounting()["dropped"]] == ["epoch"]
    require_same(source, {"input": x(4, 3)})
    expected = x(4, 3) @ state["module.weight"].float().numpy().T + state["module.bias"].float().numpy()
    np.testing.assert_allclose(source.original().run({"input": x(4, 3)})["output"], expected, atol=ROUNDING)
    source.close()
