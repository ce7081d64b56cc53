"""torch's fast path of attention, which no graph has: what it gives otherwise is named, and what it gives alike is ported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import porting
from porting.errors import InputError

FREE = {"x": {0: "batch", 1: "time"}, "padding": {0: "batch", 1: "time"}}


class Encoder(torch.nn.Module):
    """x (batch, time, 16), padding (batch, time), True where nothing is."""

    def __init__(self, nested: bool = True, end: str = "") -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.end = end

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        y = self.encoder(x, src_key_padding_mask=padding)
        if self.end == "zeros":
            return y.masked_fill(padding[:, :, None], 0.0)
        if self.end == "mean":
            there = (~padding)[:, :, None].to(y.dtype)
            return (y * there).sum(1) / there.sum(1)
        return y


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = padding[2, 2:] = True
    return torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0)), padding


@pytest.mark.parametrize("dynamic", [None, FREE], ids=["fixed", "free"])
def test_zeros_at_padded_positions_are_named(dynamic: Any, example: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zeros in output at positions that the padding mask leaves out") as caught:
        porting.port(Encoder().eval(), tmp_path / "port", example_inputs=example, dynamic=dynamic)
    assert "self.encoder(x, src_key_padding_mask=padding)" in caught.value.where
    assert "enable_nested_tensor=False" in caught.value.next
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_example_without_padding_shows_nothing_of_it(example: Any, tmp_path: Path) -> None:
    x, padding = example
    with pytest.raises(InputError, match="no example has anything padded"):
        porting.port(Encoder().eval(), tmp_path / "port", example_inputs=(x, torch.zeros_like(padding)))


@pytest.mark.parametrize(
    "module", [Encoder(nested=False), Encoder(end="zeros"), Encoder(end="mean")], ids=["not nested", "zeros", "mean"]
)
def test_a_transformer_encoder_with_padding_and_free_sizes(module: Encoder, example: Any, tmp_path: Path) -> None:
    verdict = porting.port(module.eval(), tmp_path / "port", example_inputs=example, dynamic=FREE)
    assert verdict.ok
    x, padding = torch.randn(2, 9, 16), torch.arange(9) >= torch.tensor([[9], [5]])
    with torch.inference_mode():
        expected = module(x, padding)
    with porting.load(tmp_path / "port") as session:
        got = session.run({"x": x.numpy(), "padding": padding.numpy()})["output"]
    assert torch.allclose(torch.from_numpy(got), expected, atol=2e-6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_values_that_only_the_fast_path_gives_are_named(tmp_path: Path) -> None:
    class Asks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.attention(x, x, x, need_weights=False)[0]
            return y * 2 if torch.backends.mha.get_fastpath_enabled() else y

    with pytest.raises(InputError, match="other values in output with the fast path"):
        porting.port(Asks().eval(), tmp_path / "port", example_inputs=(torch.randn(2, 3, 16),))
