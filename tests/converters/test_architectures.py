"""Logits of every architecture against transformers in float32: prefill, chunked prefill, decode; canonical graph and fp32 port."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from tiny import BOUND, OWN, SHOWS, SIZES, Tiny, make, memory_checkpoint, program_of, run_chunks, scratch, serialised, token_ids

from porting.conversion import canonical_graph, convert
from porting.converters.checkpoints.open import open_checkpoint
from porting.errors import RuntimeFailed
from porting.session import Session, load, open_session

LLAMA, MISTRAL, QWEN2, QWEN3 = OWN
SLIDING = {"use_sliding_window": True, "sliding_window": 5}
CASES = {
    "llama": (LLAMA, {}),
    "llama, each head its own keys": (LLAMA, {"num_key_value_heads": 6}),
    "llama, one key head": (LLAMA, {"num_key_value_heads": 1}),
    "llama, tied": (LLAMA, {"tie_word_embeddings": True}),
    "llama, biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim apart": (LLAMA, {"head_dim": 24}),
    "llama, head_dim no multiple of 8": (LLAMA, {"head_dim": 6}),
    "llama, beyond max_position_embeddings": (LLAMA, {"max_position_embeddings": 12}),
    "mistral": (MISTRAL, {}),
    "mistral, no window": (MISTRAL, {"sliding_window": None}),
    "mistral, window of one": (MISTRAL, {"sliding_window": 1}),
    "mistral, tied and head_dim apart": (MISTRAL, {"tie_word_embeddings": True, "head_dim": 16, "num_key_value_heads": 3}),
    "qwen2": (QWEN2, {}),
    "qwen2, tied": (QWEN2, {"tie_word_embeddings": True}),
    "qwen2, second layer slides": (QWEN2, {**SLIDING, "max_window_layers": 1}),
    "qwen2, all layers slide": (QWEN2, {**SLIDING, "max_window_layers": 0}),
    "qwen2, first layer slides": (QWEN2, {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3": (QWEN3, {}),
    "qwen3, tied and biases": (QWEN3, {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3, second layer slides": (QWEN3, {**SLIDING, "max_window_layers": 1, "num_key_value_heads": 6}),
}
LENGTH = 23
MODES = {"chunks": (9, 5, 9), "decode": (4,) + (1,) * 19}  # 9 is wider than every window here
FORMS = ("canonical", "fp32")


@cache
def tiny(case: str) -> Tiny:
    architecture, changes = CASES[case]
    return make(scratch(), architecture, **changes)


@cache
def session(case: str, form: str) -> Session:
    folder = tiny(case).folder
    if form == "canonical":
        return open_session(program_of(canonical_graph(open_checkpoint(folder)).graph))
    return load(convert(folder, folder / "port", precision=form).path)


@cache
def reference(case: str, mode: str) -> np.ndarray:
    if mode != "prefill" and case == "mistral, window of one":  # upstream's cache would keep 1 - 1 positions, and breaks
        return reference(case, "prefill")[:1]
    batch = 2 if mode == "prefill" else 1
    return tiny(case).logits(token_ids(batch, LENGTH), MODES.get(mode))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case, form):
    ids = token_ids(2, LENGTH)
    got = session(case, form).run({"input_ids": ids})["logits"]
    np.testing.assert_allclose(got, reference(case, "prefill"), rtol=0, atol=BOUND)
    assert np.abs(reference(case, "prefill")).max() > 3, "logits near zero would agree with anything"
    for mode, chunks in MODES.items():
        got = run_chunks(session(case, form), ids[:1], chunks)
        np.testing.assert_allclose(got, reference(case, mode), rtol=0, atol=BOUND, err_msg=mode)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("architecture", [QWEN2, QWEN3])
def test_layers_slide_from_max_window_layers_on_where_layer_types_are_not_listed(architecture, first, tmp_path):
    """Configs from before layer_types mean what upstream writes today."""
    new = memory_checkpoint(make(tmp_path, architecture, **SLIDING, max_window_layers=first))
    expected = serialised(canonical_graph(new).graph)
    assert new.config.pop("layer_types") == ["full_attention"] * first + ["sliding_attention"] * (2 - first)
    assert serialised(canonical_graph(new).graph) == expected


def _renamed(checkpoint, one, other):
    """Swap two tensors of layer 0 that have the same shape."""
    a, b = (f"model.layers.0.{name}.weight" for name in (one, other))
    assert checkpoint.arrays[a].shape == checkpoint.arrays[b].shape
    checkpoint.arrays[a], checkpoint.arrays[b] = checkpoint.arrays[b], checkpoint.arrays[a]


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 12000.0}}),
        ("llama", {"rms_norm_eps": 1e-4}),
        ("llama, each head its own keys", ("self_attn.q_proj", "self_attn.k_proj")),
        ("llama, each head its own keys", ("self_attn.k_proj", "self_attn.v_proj")),
        ("llama", ("mlp.gate_proj", "mlp.up_proj")),
        ("llama", ("input_layernorm", "post_attention_layernorm")),
        ("mistral", {"sliding_window": 6}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2, second layer slides", {"sliding_window": 4}),
        ("qwen2, second layer slides", {"sliding_window": 6}),
        ("qwen2, second layer slides", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen3", ("self_attn.q_norm", "self_attn.k_norm")),
        ("qwen3, second layer slides", {"rms_norm_eps": 1e-4}),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, (tuple, dict)) else value,
)
def test_a_small_mistake_would_show(case, change):
    """The bound above means something: each of these wrong graphs is far outside of it."""
    checkpoint = memory_checkpoint(tiny(case))
    if isinstance(change, dict):
        checkpoint.config.update(change)
    else:
        _renamed(checkpoint, *change)
    wrong = open_session(program_of(canonical_graph(checkpoint).graph))
    got = wrong.run({"input_ids": token_ids(2, LENGTH)})["logits"]
    assert np.abs(got - reference(case, "prefill")).max() > SHOWS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2, second layer slides", "qwen3"])
def test_rows_of_a_batch_have_their_own_length(case, form):
    """Two prompts of 9 and 5 in one batch: the second row is rewound over its padding, then both go on."""
    s, ids = session(case, form), token_ids(2, LENGTH)
    state = s.new_state(32, batch=2)
    first = s.run({"input_ids": ids[:, :9]}, state)["logits"]
    state.length = np.array([9, 5])
    steps = [np.stack([ids[0, 9:14], ids[1, 5:10]])[:, i : i + 1] for i in range(5)]
    if form == "canonical":
        steps = [np.concatenate(steps[:3], axis=1), *steps[3:]]  # 3 positions at once, then one by one
    later = np.concatenate([s.run({"input_ids": step}, state)["logits"] for step in steps], axis=1)
    assert state.length.tolist() == [14, 10]
    for row, start in ((0, 9), (1, 5)):
        alone = tiny(case).logits(ids[row : row + 1, : start + 5])[0]
        np.testing.assert_allclose(first[row, :start], alone[:start], rtol=0, atol=BOUND)
        np.testing.assert_allclose(later[row], alone[start:], rtol=0, atol=BOUND)


def test_several_positions_on_a_past_of_a_batch_are_an_error_in_the_fp32_port():
    """onnxruntime's GroupQueryAttention takes them for one row only; it has to say so, and the state has to stay usable."""
    s, ids = session("llama", "fp32"), token_ids(2, LENGTH)
    for lengths in ([9, 9], [9, 5]):
        state = s.new_state(32, batch=2)
        s.run({"input_ids": ids[:, :9]}, state)
        state.length = np.array(lengths)
        with pytest.raises(RuntimeFailed, match="batch"):
            s.run({"input_ids": ids[:, 9:12]}, state)
        assert state.length.tolist() == lengths
        got = s.run({"input_ids": ids[:, 9:10]}, state)["logits"][0]
        np.testing.assert_allclose(got, reference("llama", "prefill")[0, 9:10], rtol=0, atol=BOUND)


@pytest.mark.parametrize("form", FORMS)
def test_a_rewound_state_forgets_what_came_later(form):
    s, ids = session("llama", form), token_ids(1, LENGTH)
    state = s.new_state(32)
    s.run({"input_ids": token_ids(1, 20, seed=1)}, state)
    state.length = np.array([0])
    np.testing.assert_allclose(run_chunks(s, ids, (9, 5, 9), state), reference("llama", "chunks"), rtol=0, atol=BOUND)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["llama", "mistral"])
def test_capacity_grows_on_the_way(case, form):
    s, ids = session(case, form), token_ids(1, LENGTH)
    state = s.new_state(11)
    got = run_chunks(s, ids, (9, 5, 9), state)
    assert state.capacity >= LENGTH > 11
    np.testing.assert_allclose(got, reference(case, "chunks"), rtol=0, atol=BOUND)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("keep", "kept"), [(0, 9), (1, 1), (4, 4), (9, 9), (50, 9)])
def test_logits_to_keep(form, keep, kept):
    got = session("llama", form).run({"input_ids": token_ids(2, 9), "logits_to_keep": np.array(keep)})["logits"]
    everything = tiny("llama").logits(token_ids(2, 9))
    assert got.shape == (2, kept, SIZES["vocab_size"])
    np.testing.assert_allclose(got, everything[:, -kept:], rtol=0, atol=BOUND)


@pytest.mark.parametrize("case", CASES)
def test_every_node_says_which_module_it_computes(case):
    """Names of the torch modules, or of the three places that upstream has no module for."""
    ours = {"model.positions", "model.mask", *(f"model.layers.{i}.mlp.act_fn" for i in range(2))}
    modules = {name for name, _ in tiny(case).model.named_modules() if name}
    nodes = list(canonical_graph(open_checkpoint(tiny(case).folder)).graph.model.graph)
    names = {node.metadata_props["porting.module"] for node in nodes}
    assert names <= modules | ours
    leaves = {n for n, m in tiny(case).model.named_modules() if n and not list(m.children())}
    assert leaves <= names, "a module that computes something has no node"
    assert len({node.name for node in nodes}) == len(nodes)
