"""Torch modules that cannot be a graph, or not with these inputs: refused with the line that is at fault."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
nn, F = torch.nn, torch.nn.functional

from porting.converters.torch_module import open_module  # noqa: E402
from porting.errors import InputError, UnsupportedModel, UsageError  # noqa: E402
from porting.types import TensorSpec  # noqa: E402
from tests.torch_sources import require_same, x  # noqa: E402


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
    assert re.search(rf"test_torch_refusals\.py:\d+: .*{re.escape(line)}", caught.value.where)
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
    assert re.search(rf"test_torch_refusals\.py:\d+: .*{re.escape(line)}", caught.value.where)


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
        r"test_torch_refusals\.py:\d+: if self\.by_value and x\.sum\(\) > 0: \(Converting a tensor", caught.value.what
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
    assert re.search(r'test_torch_refusals\.py:\d+: raise KeyError\("no such thing"\)', caught.value.where)


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


def test_a_refused_module_is_left_as_it_came():
    module = Values()
    with pytest.raises(UnsupportedModel):
        open_module(module, [(x(2, 3),)])
    assert module.training
