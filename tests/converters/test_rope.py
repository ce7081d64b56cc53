"""Every rope scaling against transformers: frequencies, logits in each mode, both spellings of the config, and what is refused."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BOUND, OWN, SHOWS, Tiny, make, memory_checkpoint, program_of, run_chunks, scratch, serialised, token_ids

from porting.conversion import canonical_graph, convert
from porting.converters.architectures.rope import inverse_frequencies, read_rope
from porting.converters.checkpoints.open import open_checkpoint
from porting.errors import CheckpointError, PortingError, UnsupportedModel
from porting.session import Session, load, open_session

HEAD_DIM = 16  # 8 frequencies: some on each side of every threshold below
MAX_POSITIONS = 16  # fewer than LENGTH, so that dynamic scaling sets in
LENGTH = 40
MODES = {"prefill": None, "chunks": (20, 12, 8), "decode": (10,) + (1,) * 30}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS = {
    "default": {"rope_type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn, original length from max_position_embeddings": {"rope_type": "yarn", "factor": 4.0},
    "yarn, mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, mscale alone": {**YARN, "mscale": 0.7},
    "yarn, attention_factor": {**YARN, "attention_factor": 1.25},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, betas": {**YARN, "beta_fast": 1, "beta_slow": 0.1},
    "yarn, theta": {**YARN, "rope_theta": 700.0},
    "yarn, factor below one": {**YARN, "factor": 0.5},
}
LLAMA = "LlamaForCausalLM"
ALIKE = {"yarn", "yarn, mscale alone"}  # upstream looks at mscale together with mscale_all_dim only
BASIC = ("default", "linear", "dynamic", "llama3", "yarn")


@cache
def tiny(architecture: str, scaling: str) -> Tiny:
    parameters = {"rope_theta": 10000.0, **SCALINGS[scaling]}
    changes = {"head_dim": HEAD_DIM, "max_position_embeddings": MAX_POSITIONS, "rope_parameters": parameters}
    return make(scratch(), architecture, **changes)


@cache
def reference(architecture: str, scaling: str, mode: str) -> np.ndarray:
    return tiny(architecture, scaling).logits(token_ids(1, LENGTH), MODES[mode])


def canonical_session(checkpoint) -> Session:
    return open_session(program_of(canonical_graph(checkpoint).graph))


def require_same_in_every_mode(session: Session, architecture: str, scaling: str) -> None:
    for mode, chunks in MODES.items():
        got = run_chunks(session, token_ids(1, LENGTH), chunks or (LENGTH,))
        np.testing.assert_allclose(got, reference(architecture, scaling, mode), rtol=0, atol=BOUND, err_msg=mode)


def old_spelling(config: dict) -> dict:
    """rope_parameters of transformers 5 as transformers 4 wrote it: rope_theta apart, and `type` for rope_type."""
    scaling = dict(config["rope_parameters"])
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    old["rope_theta"], kind = scaling.pop("rope_theta"), scaling.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **scaling}
    return old


@pytest.mark.parametrize("form", ["canonical", "fp32"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_logits_match_transformers(scaling, form):
    folder = tiny(LLAMA, scaling).folder
    if form == "canonical":
        session = canonical_session(open_checkpoint(folder))
    else:
        session = load(convert(folder, folder / "port", precision="fp32").path)
    require_same_in_every_mode(session, LLAMA, scaling)


@pytest.mark.parametrize("scaling", [*BASIC, *(pytest.param(s, marks=pytest.mark.slow) for s in SCALINGS if s not in BASIC)])
@pytest.mark.parametrize("architecture", [a for a in OWN if a != LLAMA])
def test_logits_match_transformers_in_every_architecture(architecture, scaling):
    folder = tiny(architecture, scaling).folder
    session = load(convert(folder, folder / "port", precision="fp32").path)
    require_same_in_every_mode(session, architecture, scaling)


@pytest.mark.parametrize("scaling", [s for s in SCALINGS if s != "default"])
def test_scalings_are_not_alike(scaling):
    """Else the tests above would pass with the scaling left out."""
    others = {s: reference(LLAMA, s, "prefill") for s in SCALINGS if s != scaling}
    same = {s for s, logits in others.items() if np.abs(logits - reference(LLAMA, scaling, "prefill")).max() < SHOWS}
    assert same == ALIKE - {scaling} if scaling in ALIKE else not same


def test_dynamic_scaling_differs_between_modes():
    """Cached keys keep the rotation that they were given when the sequence was shorter; upstream does the same."""
    whole, chunks, decode = (reference(LLAMA, "dynamic", mode) for mode in MODES)
    assert np.abs(whole - chunks).max() > SHOWS
    assert np.abs(whole - decode).max() > SHOWS
    assert np.abs(chunks - decode).max() > SHOWS
    whole, chunks, decode = (reference(LLAMA, "yarn", mode) for mode in MODES)
    assert max(np.abs(whole - chunks).max(), np.abs(whole - decode).max()) < BOUND


@pytest.mark.parametrize("scaling", SCALINGS)
def test_both_spellings_give_the_same_graph(scaling):
    import transformers

    new = memory_checkpoint(tiny(LLAMA, scaling))
    old = memory_checkpoint(tiny(LLAMA, scaling))
    old.config = old_spelling(new.config)
    upstream = transformers.LlamaConfig.from_dict(old.config).rope_parameters
    assert upstream == {**upstream, **new.config["rope_parameters"]}, "the old spelling should mean the same upstream"
    assert serialised(canonical_graph(old).graph) == serialised(canonical_graph(new).graph)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_frequencies_match_transformers_for_any_parameters(data):
    from transformers import LlamaConfig, logging
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    logging.set_verbosity_error()
    kind = data.draw(st.sampled_from(["linear", "llama3", "yarn"]))
    positive = st.floats(0.25, 64, width=32)
    scaling = {"rope_type": kind, "rope_theta": data.draw(st.floats(10, 1e7)), "factor": data.draw(positive)}
    if kind == "llama3":
        low = data.draw(st.floats(0.25, 4))
        scaling |= {"low_freq_factor": low, "high_freq_factor": low * data.draw(st.floats(1.25, 8))}
    if kind != "linear":
        scaling["original_max_position_embeddings"] = data.draw(st.integers(16, 100_000))
    if kind == "yarn":
        for key in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if data.draw(st.booleans()):
                scaling[key] = data.draw(positive)
        scaling["truncate"] = data.draw(st.booleans())
    dim, most = data.draw(st.sampled_from([2, 8, 64, 128, 256])), data.draw(st.integers(16, 100_000))
    upstream = LlamaConfig(
        hidden_size=4 * dim, num_attention_heads=4, max_position_embeddings=most, rope_parameters=dict(scaling)
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](upstream, "cpu")

    got, got_factor = inverse_frequencies(read_rope({"rope_parameters": scaling, "max_position_embeddings": most}, dim))
    assert got.dtype == np.float32
    assert got_factor == pytest.approx(factor, rel=1e-12)
    # float32 throughout, as upstream: the pow of torch and of numpy may differ in the last bits, and llama3 and yarn cancel some
    np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=1e-12)


REFUSED = [
    ({"rope_type": "longrope", "factor": 2.0}, UnsupportedModel, "'longrope' is not covered"),
    ({"type": "mrope", "rope_type": "default"}, CheckpointError, "'default' by rope_type and 'mrope' by type"),
    ({"rope_type": ["yarn"]}, UnsupportedModel, "not covered"),
    ({"rope_type": None}, UnsupportedModel, "None is not covered"),
    ({"rope_type": "linear"}, CheckpointError, "lacks factor"),
    ({"rope_type": "linear", "factor": None}, CheckpointError, "lacks factor"),
    ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, UnsupportedModel, "mscale"),
    ({"rope_type": "default", "factor": 8.0}, UnsupportedModel, "factor"),
    ({"full_attention": {"rope_type": "default"}}, UnsupportedModel, "full_attention"),
    ({"rope_type": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, UnsupportedModel, "partial_rotary_factor"),
    ({"rope_type": "llama3", "factor": 8.0}, CheckpointError, "lacks low_freq_factor, high_freq_factor, original_max"),
    ({**SCALINGS["llama3"], "high_freq_factor": 1.0}, CheckpointError, "must exceed"),
    ({"rope_type": "linear", "factor": "2"}, CheckpointError, "'factor' should be a number, got '2'"),
    ({"rope_type": "linear", "factor": True}, CheckpointError, "'factor' should be a number"),
    ({"rope_type": "linear", "factor": float("nan")}, CheckpointError, "'factor' should be positive"),
    ({"rope_type": "linear", "factor": float("inf")}, CheckpointError, "'factor' should be positive"),
    ({"rope_type": "linear", "factor": -2.0}, CheckpointError, "'factor' should be positive"),
    ({"rope_type": "linear", "factor": 1e-300}, CheckpointError, "senselessly small"),
    ({**YARN, "truncate": "no"}, CheckpointError, "'truncate' should be a bool"),
    ({**YARN, "beta_fast": 0}, CheckpointError, "'beta_fast' should be positive"),
    ({"rope_theta": 1.0}, CheckpointError, "rope_theta should be above 1"),
    ({"rope_theta": 0}, CheckpointError, "'rope_theta' should be positive"),
    ({"rope_theta": 1e300}, CheckpointError, "'rope_theta' should be positive and below"),
    ({"rope_theta": 500.0}, CheckpointError, "rope_theta is given twice and differs: 500.0, 10000.0"),
    ([1], CheckpointError, "should be an object"),
    (False, CheckpointError, "should be an object"),
]


@pytest.mark.parametrize(("scaling", "error", "text"), REFUSED, ids=[json.dumps(r[0]) for r in REFUSED])
def test_what_cannot_be_meant_is_refused(scaling, error, text):
    config = {"rope_scaling": scaling, "max_position_embeddings": 64}
    if text.startswith("rope_theta is given"):
        config["rope_theta"] = 10000.0
    with pytest.raises(error) as caught:
        read_rope(config, HEAD_DIM)
    assert text in str(caught.value)
    assert "config.json" in caught.value.where


def test_two_scalings_that_differ_are_refused():
    config = {"rope_scaling": YARN, "rope_parameters": {**YARN, "factor": 2.0}, "max_position_embeddings": 64}
    with pytest.raises(CheckpointError, match="both given and differ"):
        read_rope(config, HEAD_DIM)
    assert read_rope({**config, "rope_parameters": YARN}, HEAD_DIM).kind == "yarn"
    assert read_rope({**config, "rope_parameters": {}}, HEAD_DIM).kind == "yarn"


@pytest.mark.parametrize(("kind", "dim"), [("default", 15), ("dynamic", 2)])
def test_a_head_dim_that_cannot_be_rotated_is_refused(kind, dim):
    config = {"rope_scaling": {"rope_type": kind, "factor": 1.0}, "max_position_embeddings": 64}
    with pytest.raises(CheckpointError, match="head_dim"):
        read_rope(config, dim)


def test_neutral_keys_are_taken():
    neutral = {"rope_type": "default", "factor": 1.0, "partial_rotary_factor": 1.0, "rope_theta": 1e6}
    assert read_rope({"rope_parameters": neutral, "max_position_embeddings": 64}, HEAD_DIM).theta == 1e6
    for nothing in ({}, {"rope_scaling": None}, {"rope_scaling": {}, "rope_parameters": None}):
        rope = read_rope({**nothing, "max_position_embeddings": 64}, HEAD_DIM)
        assert (rope.kind, rope.theta) == ("default", 10000.0)


def test_frequency_divisors_of_gguf_do_what_llama3_does():
    """A GGUF file carries llama3's scaling as one divisor per frequency; the logits are the same."""
    t = tiny(LLAMA, "llama3")
    checkpoint = memory_checkpoint(t)
    plain = 1 / 10000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    scaled = t.model.model.rotary_emb.inv_freq.numpy()
    checkpoint.config["rope_parameters"] = {"rope_type": "freq_factors", "rope_theta": 10000.0}
    divisors = {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    with_divisors = type(checkpoint)(checkpoint.config, {**checkpoint.arrays, **divisors})
    require_same_in_every_mode(canonical_session(with_divisors), LLAMA, "llama3")
    assert "rope_freqs.weight" in canonical_graph(with_divisors).tensors["used"]

    for wrong in (0.0, -1.0):
        divisors["rope_freqs.weight"][3] = wrong
        with pytest.raises(CheckpointError, match="positive divisors"):
            canonical_graph(type(checkpoint)(checkpoint.config, {**checkpoint.arrays, **divisors}))
    with pytest.raises(CheckpointError, match=r"1 missing: rope_freqs\.weight \[8\]"):
        canonical_graph(checkpoint)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
rope_keys = st.sampled_from(sorted({key for scaling in SCALINGS.values() for key in scaling} | {"type", "rope_theta", "x"}))
kinds = st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"])
scalings = st.builds(
    lambda keys, kind: {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **kind, **keys},
    st.dictionaries(rope_keys, json_values | st.floats(0, 1e12), max_size=4),
    st.builds(lambda kind: {"rope_type": kind}, kinds) | st.just({}),
)


@settings(max_examples=200, deadline=None)
@given(scaling=scalings | json_values, theta=json_values | st.floats(0, 1e6), dim=st.integers(1, 40))
def test_any_json_is_read_or_refused(scaling, theta, dim):
    """Refused by name, or frequencies that are numbers: never another exception."""
    try:
        rope = read_rope({"rope_scaling": scaling, "rope_theta": theta, "max_position_embeddings": 64}, dim)
    except PortingError:
        return
    frequencies, factor = inverse_frequencies(rope)
    assert np.isfinite(frequencies).all()
    assert np.isfinite(factor)
