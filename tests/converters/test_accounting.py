"""Every tensor is used, or dropped with a reason; what is wrong with any of them is named in one error."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OWN, MemoryCheckpoint, make, memory_checkpoint, scratch

from porting.conversion import canonical_graph
from porting.converters.accounting import CODES, SHOWN, Weights, same_values
from porting.errors import CheckpointError

LLAMA = "LlamaForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@cache
def base(architecture: str = LLAMA) -> MemoryCheckpoint:
    return memory_checkpoint(make(scratch(), architecture))


def changed(add=None, remove=(), config=None, dtype="F32") -> MemoryCheckpoint:
    arrays = {name: a for name, a in {**base().arrays, **(add or {})}.items() if name not in remove}
    return MemoryCheckpoint({**base().config, **(config or {})}, arrays, dtype)


@pytest.mark.parametrize("architecture", OWN)
def test_all_tensors_are_used(architecture):
    tensors = canonical_graph(base(architecture)).tensors
    assert tensors["used"] == sorted(base(architecture).arrays)
    assert tensors["dropped"] == []
    assert tensors["parameters"] == sum(a.size for a in base(architecture).arrays.values())


def test_all_that_is_wrong_is_named_in_one_error():
    checkpoint = changed(
        add={
            "model.norm.weight": np.ones(47, np.float32),
            "model.layers.1.mlp.gate_proj.weight": np.ones((48, 80), np.float32),  # turned
            "model.layers.2.mlp.up_proj.weight": np.ones((80, 48), np.float32),
            "model.layers.0.self_attn.q_proj.bias": np.ones(48, np.float32),
        },
        remove=("model.layers.0.mlp.down_proj.weight", HEAD),
    )
    with pytest.raises(CheckpointError) as caught:
        canonical_graph(checkpoint)
    assert caught.value.what == (
        "the tensors do not fit the config. "
        "2 missing: model.layers.0.mlp.down_proj.weight [48, 80]; lm_head.weight [101, 48]. "
        "2 of another shape: model.layers.1.mlp.gate_proj.weight: the config asks for [80, 48], the file holds [48, 80]; "
        "model.norm.weight: the config asks for [48], the file holds [47]. "
        "2 left over: model.layers.0.self_attn.q_proj.bias; model.layers.2.mlp.up_proj.weight"
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whichever_tensor_is_wrong_is_named(data):
    names = sorted(base().arrays)
    removed = data.draw(st.sets(st.sampled_from(names), max_size=SHOWN))
    added = {f"model.extra.{i}": np.ones(1, np.float32) for i in range(data.draw(st.integers(0, SHOWN)))}
    turned = {n: base().arrays[n][..., :-1] for n in data.draw(st.sets(st.sampled_from(names), max_size=SHOWN)) - removed}
    if not (removed or added or turned):
        return
    with pytest.raises(CheckpointError) as caught:
        canonical_graph(changed(add={**added, **turned}, remove=removed))
    for name in (*removed, *added, *turned):
        assert re.search(rf"{re.escape(name)}( |:|;|\.|$)", caught.value.what)


def test_long_lists_are_cut_and_counted():
    with pytest.raises(CheckpointError, match=rf"{SHOWN + 5} left over: .*; and 5 more"):
        canonical_graph(changed(add={f"extra.{i}": np.ones(1, np.float32) for i in range(SHOWN + 5)}))


@pytest.mark.parametrize(("layers", "words"), [(1, "9 left over"), (3, "9 missing")])
def test_layers_are_counted_against_the_config(layers, words):
    with pytest.raises(CheckpointError, match=f"{words}: model.layers.{min(layers, 2)}"):
        canonical_graph(changed(config={"num_hidden_layers": layers, "layer_types": None}))


@pytest.mark.parametrize("dtype", sorted(CODES))
def test_codes_without_their_scales_are_no_weights(dtype):
    with pytest.raises(CheckpointError, match=f"21 of a dtype that means nothing without scales: .*: {dtype}"):
        canonical_graph(changed(dtype=dtype))


def test_a_buffer_that_upstream_recomputes_is_dropped_with_a_reason():
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    tensors = canonical_graph(changed(add={name: np.ones(4, np.float32)})).tensors
    assert tensors["dropped"] == [{"name": name, "reason": "a buffer that follows from rope_theta"}]
    assert name not in tensors["used"]


# --- a tied head ----------------------------------------------------------------------------------------------------


def test_an_equal_copy_of_a_tied_head_is_dropped_with_a_reason():
    copy = changed(add={HEAD: base().arrays[EMBEDDING].copy()}, config={"tie_word_embeddings": True})
    assert canonical_graph(copy).tensors["dropped"] == [{"name": HEAD, "reason": f"tied: the same values as {EMBEDDING}"}]


@pytest.mark.parametrize("where", [(0, 0), (100, 47)])
def test_another_head_than_the_tied_one_is_refused(where):
    other = base().arrays[EMBEDDING].copy()
    other[where] += 1e-6
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        canonical_graph(changed(add={HEAD: other}, config={"tie_word_embeddings": True}))


def test_a_tied_head_of_another_shape_is_refused():
    other = np.ones((101, 47), np.float32)
    with pytest.raises(CheckpointError, match="differs"):
        canonical_graph(changed(add={HEAD: other}, config={"tie_word_embeddings": True}))


def test_an_untied_checkpoint_without_a_head_is_refused():
    with pytest.raises(CheckpointError) as caught:
        canonical_graph(changed(remove=(HEAD,)))
    assert caught.value.what.endswith("1 missing: lm_head.weight [101, 48]")


def test_same_values_looks_at_every_stripe(monkeypatch):
    monkeypatch.setattr("porting.weights.STRIPE_BYTES", 64)
    a = np.arange(60, dtype=np.float32).reshape(20, 3)
    for row in (0, 10, 19):
        b = a.copy()
        b[row, 2] += 1
        checkpoint = MemoryCheckpoint({}, {"a": a, "b": b, "copy": a.copy()})
        assert not same_values(checkpoint, "a", "b")
        assert same_values(checkpoint, "a", "copy")


def test_a_stand_in_for_a_wrong_tensor_gives_no_values():
    """A graph built around a missing tensor cannot be written, even by a caller that forgets `finish`."""
    stream = Weights(MemoryCheckpoint({}, {})).take("missing", (4, 3))
    with pytest.raises(CheckpointError, match="'missing' cannot be used"):
        stream.make(0, 4)


@pytest.mark.parametrize(("prefix", "wrapper"), [("module.", "DataParallel"), ("_orig_mod.", "torch.compile")])
def test_a_prefix_of_all_names_is_said(prefix, wrapper):
    arrays = {prefix + name: array for name, array in base().arrays.items()}
    with pytest.raises(CheckpointError, match="do not fit the config") as caught:
        canonical_graph(MemoryCheckpoint(base().config, arrays, "F32"))
    assert f"every name begins with {prefix!r}, which {wrapper} puts there" in caught.value.next
