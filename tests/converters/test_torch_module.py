"""Torch modules as graph sources: what is exported equals the module, what cannot be exported is refused with the line that is at fault."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
nn, F = torch.nn, torch.nn.functional

from porting.converters.graph_builder import MODULE  # noqa: E402
from porting.converters.torch_calls import flat_outputs, parameters_of, plan_call  # noqa: E402
from porting.converters.torch_module import open_factory, open_module  # noqa: E402
from porting.errors import InputError, UnsupportedModel, UsageError  # noqa: E402
from porting.types import TensorSpec, is_graph  # noqa: E402

ROUNDING = 1e-5  # float32 sums of at most some hundred terms of size 1 in another order


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def require_same(source, feeds) -> None:
    """The exported file in plain onnxruntime gives what the module gives, under the same names."""
    session = ort.InferenceSession(str(source.onnx_path), providers=["CPUExecutionProvider"])
    expected = source.original().run(feeds)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))
    assert list(got) == list(expected) == [o.name for o in source.outputs]
    for name, reference in expected.items():
        assert got[name].shape == reference.shape and got[name].dtype == reference.dtype
        np.testing.assert_allclose(got[name], reference, atol=ROUNDING, rtol=ROUNDING)


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


def test_a_refused_module_is_left_as_it_came():
    module = Values()
    with pytest.raises(UnsupportedModel):
        open_module(module, [(x(2, 3),)])
    assert module.training


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


# --- what cannot be a graph -------------------------------------------------------------------------------------------


class Values(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class Numbers(nn.Module):
    def forward(self, x):
        for _ in range(int(x.max().item())):
            x = x + 1
        return x


class Numpy(nn.Module):
    def forward(self, x):
        return x + torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("module", "line"),
    [(Values(), "if x.sum() > 0:"), (Numbers(), "for _ in range(int(x.max().item())):"), (Numpy(), "x.numpy() * 2")],
)
def test_code_that_depends_on_values_is_refused_with_its_line(module, line):
    with pytest.raises(UnsupportedModel, match="decides by the values of a tensor") as caught:
        open_module(module, [(np.full((2, 4), 1.5, np.float32),)])
    assert re.search(rf"test_torch_module\.py:\d+: .*{re.escape(line)}", caught.value.where)
    assert "torch.where or torch.cond" in caught.value.next


class Parity(nn.Module):
    def forward(self, x):
        if x.shape[1] % 2 == 1:
            x = F.pad(x, (0, 1))
        return x * 2


class Threshold(nn.Module):
    def forward(self, x):
        if x.shape[1] > 5:
            return x * 2
        return x


class Unrolled(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, t] * t for t in range(x.shape[1])], 1)


@pytest.mark.parametrize(
    ("module", "text", "line"),
    [
        (
            Parity(),
            r"does not hold at T = 9: output has shape \[2, 9\] there, the module's has \[2, 10\]",
            "if x.shape[1] % 2 == 1:",
        ),
        (Threshold(), r"does not hold at T = 1: output differs .*it assumes T > 5", "if x.shape[1] > 5:"),
        (Unrolled(), r"cannot keep T free: .*TorchScript: at T = 9, output has shape \[2, 8\]", "for t in range(x.shape[1])"),
    ],
)
def test_a_size_that_is_only_free_on_paper_is_refused_with_the_line(module, text, line):
    with pytest.raises(UnsupportedModel, match=text) as caught:
        open_module(module, [(x(2, 8),)], {"x": {1: "T"}})
    assert re.search(rf"test_torch_module\.py:\d+: .*{re.escape(line)}", caught.value.where)


def test_the_same_code_with_a_fixed_size_is_exported():
    source = open_module(Unrolled(), [(x(2, 5),)])
    require_same(source, {"x": x(2, 5, seed=1)})
    assert source.inputs[0].shape == (2, 5) and "sizes_tried" not in source.facts
    source.close()


def test_the_second_exporter_makes_what_the_first_cannot_and_is_named():
    source = open_module(nn.RNN(3, 4, batch_first=True), [(x(2, 6, 3),)], {"input": {1: "T"}})
    assert source.facts["exporter"] == "torch.onnx, TorchScript" and source.facts["first_exporter_failed"]
    assert source.inputs[0].shape == (2, "T", 3) and {"T": 1} in source.facts["sizes_tried"]
    require_same(source, {"input": x(2, 11, 3)})
    source.close()


class Picky(nn.Module):
    """Takes no tensors without values, which torch.export brings."""

    def __init__(self, by_value: bool) -> None:
        super().__init__()
        self.by_value = by_value

    def forward(self, x):
        if type(x) is not torch.Tensor:
            raise TypeError("only tensors")
        if self.by_value and x.sum() > 0:
            return x * 2
        return x * 3


def test_the_second_exporter_is_not_believed_where_it_warns_of_the_users_code():
    with pytest.raises(UnsupportedModel, match=r"TypeError: only tensors.*it would fix what Python decided") as caught:
        open_module(Picky(True), [(x(2, 3),)])
    assert re.search(
        r"test_torch_module\.py:\d+: if self\.by_value and x\.sum\(\) > 0: \(Converting a tensor", caught.value.what
    )
    source = open_module(Picky(False), [(x(2, 3),)])
    assert source.facts["exporter"] == "torch.onnx, TorchScript" and "only tensors" in source.facts["first_exporter_failed"]
    require_same(source, {"x": x(2, 3, seed=1)})
    source.close()


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class Seeds(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        return x + torch.rand(x.shape)


class Remembers(nn.Module):
    def forward(self, x):
        self.seen = getattr(self, "seen", 0) + x
        return self.seen


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize(
    ("module", "text", "where"),
    [
        (Draws(), "draws random numbers: aten.randn_like", "torch.randn_like"),
        (AlwaysDrops(), "draws random numbers: aten.dropout.*training=self.training", "F.dropout"),
        (Seeds(), "the graph of Seeds draws random numbers: RandomUniform", "torch.rand"),
        (Remembers(), "changes attributes of its own when it runs.*: seen", "forward"),
        (Counts(), "changes its own buffers .*: calls", "forward"),
    ],
)
def test_modules_that_give_something_else_each_time_are_refused(module, text, where):
    with pytest.raises(InputError) as caught:
        open_module(module.eval(), [(x(4, 5),)])
    assert re.search(text, str(caught.value), re.DOTALL) and where in caught.value.where


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Dropout(0.1), "1 (Dropout)"),
        (nn.BatchNorm1d(3), "1 (BatchNorm1d)"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "1 (InstanceNorm1d)"),
        (nn.RReLU(), "1 (RReLU)"),
        (nn.TransformerEncoderLayer(3, 1, 4), "1.self_attn (MultiheadAttention), 1.dropout (Dropout)"),
        (nn.LSTM(3, 3, 2, dropout=0.1), "1 (LSTM)"),
    ],
)
def test_a_module_that_trains_by_default_is_refused_with_its_layers(layer, name):
    with pytest.raises(InputError, match="is in training mode") as caught:
        open_module(nn.Sequential(nn.Linear(3, 3), layer), [(x(4, 3),)])
    assert name in caught.value.what and ".eval()" in caught.value.next


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.BatchNorm1d(3, track_running_stats=False), nn.GroupNorm(1, 3)])
def test_layers_that_train_as_they_infer_are_taken_in_training_mode(layer):
    from porting.converters.torch_checks import require_eval

    require_eval(nn.Sequential(layer), "M")


def test_tensors_without_values_are_refused():
    with torch.device("meta"):
        module = nn.Linear(3, 3)
    with pytest.raises(InputError, match="2 tensors on the meta device"):
        open_module(module, [(x(4, 3),)])


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ([(x(2, 5),)], "does not take these inputs .input: float32.2, 5..: RuntimeError: .*shapes cannot be multiplied"),
        ([(x(2, 3).astype(np.float64),)], "input is float64, numpy's default: give float32"),
        ([(x(2, 3).astype(np.int64),)], "does not take these inputs"),
        ([(x(2, 3),), (x(3),)], "example 2"),
        ([(x(2, 3),), {"input": x(2, 3).astype(np.float16)}], "input is torch.float16.*in example 1 torch.float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_the_modules_own_message(examples, text):
    with pytest.raises(InputError) as caught:
        open_module(nn.Linear(3, 3), examples)
    assert re.search(text, str(caught.value), re.DOTALL)


def test_an_error_of_the_users_own_code_comes_with_its_line():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("no such thing")

    with pytest.raises(InputError, match="KeyError: 'no such thing'") as caught:
        open_module(Fails(), [(x(1),)])
    assert re.search(r'test_torch_module\.py:\d+: raise KeyError\("no such thing"\)', caught.value.where)


@pytest.mark.parametrize(
    ("dynamic", "text"),
    [
        ({"inptu": {0: "batch"}}, "no input 'inptu'.*did you mean 'input'"),
        ({"input": {2: "batch"}}, "has no axis 2: it has 2"),
        ({"input": {0: "two words"}}, "'two words' is no name"),
        ({"input": {0: "n", 1: "n"}}, "'n' is 2 as axis 0 of input and 3 as axis 1 of input"),
    ],
)
def test_names_of_free_sizes_are_checked(dynamic, text):
    with pytest.raises((UsageError, InputError)) as caught:
        open_module(nn.Linear(3, 3), [(x(2, 3),)], dynamic)
    assert re.search(text, str(caught.value), re.DOTALL)


def test_state_names_are_checked_and_no_inputs_at_all_is_a_usage_error():
    with pytest.raises(UsageError, match="there is no output 'hn'"):
        open_module(nn.Linear(3, 3), [(x(2, 3),)], state={"input": "hn"})
    with pytest.raises(UsageError, match="nothing says what Linear takes"):
        open_module(nn.Linear(3, 3), [])


def test_inputs_are_generated_from_declared_ones():
    specs = [TensorSpec("input", "float32", ("batch", 3))]
    source = open_module(nn.Linear(3, 2), [], input_specs=specs)
    assert source.inputs == tuple(specs) and source.examples[0]["input"].shape[1] == 3
    require_same(source, {"input": x(5, 3)})
    source.close()


def test_the_original_refuses_feeds_that_are_not_its_own(tagger):
    _, source = tagger
    with pytest.raises(InputError, match="no input 'y'"):
        source.original().run({"y": x(1)})
    with pytest.raises(InputError, match="no array for hx_0, hx_1"):
        source.original().run({"x": x(1, 7, 4)})


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
