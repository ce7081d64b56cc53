"""Encoders from folders against transformers in float32: canonical graph and ports; what old files hold, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny import MemoryCheckpoint, program_of, scratch
from tiny_encoders import BERT, BOUND, ROBERTA, SHOWS, SIZES, feeds_of, make_encoder, rewrite, upstream

from porting.conversion import canonical_graph, convert
from porting.converters.checkpoints.open import open_checkpoint
from porting.converters.checkpoints.port import PortCheckpoint
from porting.encoder_reference import EncoderReference, encoder_cases
from porting.errors import CheckpointError, InputError, PortingError, UnsupportedModel
from porting.fidelity import float_session
from porting.port_folder import open_port
from porting.session import Session, load, open_session

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (*BERT, *ROBERTA)},
    "BERT, one type of token": ("BertModel", {"type_vocab_size": 1}),
    "BERT, gelu_new": ("BertModel", {"hidden_act": "gelu_new"}),
    "BERT, relu": ("BertForMaskedLM", {"hidden_act": "relu"}),
    "BERT, silu": ("BertModel", {"hidden_act": "silu"}),
    "BERT, head of its own": ("BertForMaskedLM", {"tie_word_embeddings": False}),
    "BERT, one head": ("BertModel", {"num_attention_heads": 1}),
    "RoBERTa, relu everywhere but in its head": ("RobertaForMaskedLM", {"hidden_act": "relu"}),
    "RoBERTa, head of its own": ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
    "RoBERTa, one type of token": ("RobertaModel", {"type_vocab_size": 1, "pad_token_id": 0}),
}
FORMS = ("canonical", "fp32")


@cache
def made(case: str) -> tuple[Path, Any]:
    architecture, changes = CASES[case]
    folder = scratch()
    return folder, make_encoder(folder, architecture, **changes)


@cache
def session(case: str, form: str) -> Session:
    folder, _ = made(case)
    if form == "canonical":
        return _open(open_checkpoint(folder))
    return load(convert(folder, folder / form, precision=form).path)


def _open(checkpoint: Any) -> Session:
    return open_session(program_of(canonical_graph(checkpoint).graph))


def _feeds(case: str) -> dict[str, np.ndarray]:
    return feeds_of(types=CASES[case][1].get("type_vocab_size", 3))


def _memory(folder: Path) -> MemoryCheckpoint:
    return MemoryCheckpoint(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))


def _same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float = BOUND) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_outputs_match_transformers_at_every_position(case: str, form: str) -> None:
    """Padding at the end and between tokens included; padded positions are compared too."""
    feeds = _feeds(case)
    wanted = upstream(made(case)[1], feeds)
    _same(session(case, form).run(feeds), wanted)
    assert np.abs(next(iter(wanted.values()))).max() > 2, "numbers near zero would agree with anything"


@pytest.mark.parametrize("case", ["BertModel", "RobertaForMaskedLM"])
def test_a_row_in_which_nothing_may_be_seen_is_what_upstream_makes_of_it(case: str) -> None:
    feeds = {**_feeds(case), "attention_mask": np.zeros((3, 23), np.int64)}
    _same(session(case, "fp32").run(feeds), upstream(made(case)[1], feeds))


@pytest.mark.parametrize("case", ["BertModel", "XLMRobertaModel"])
def test_mask_and_types_may_be_left_out(case: str) -> None:
    ids = {"input_ids": _feeds(case)["input_ids"]}
    _same(session(case, "fp32").run(ids), upstream(made(case)[1], ids))


def test_ids_masks_and_types_outside_their_range_are_refused() -> None:
    for name, value in (("input_ids", 101), ("attention_mask", 2), ("token_type_ids", 3), ("input_ids", -1)):
        feeds = _feeds("BertModel")
        feeds[name][0, 0] = value
        with pytest.raises(InputError, match=f"{name}.*out of range"):
            session("BertModel", "fp32").run(feeds)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([5, 5, 7, 50]), min_size=1, max_size=12))
def test_positions_of_roberta_count_the_tokens_only(row: list[int]) -> None:
    """Wherever padding stands, also where the mask shows it."""
    feeds = {"input_ids": np.array([row])}
    _same(session("RobertaModel", "fp32").run(feeds), upstream(made("RobertaModel")[1], feeds))


@pytest.mark.parametrize(("case", "limit"), [("BertModel", 40), ("RobertaModel", 34)])
def test_the_whole_context_runs_and_one_more_is_an_error(case: str, limit: int) -> None:
    feeds = {"input_ids": np.random.default_rng(0).integers(6, 101, (1, limit + 1))}
    whole = {"input_ids": feeds["input_ids"][:, :limit]}
    _same(session(case, "fp32").run(whole), upstream(made(case)[1], whole))
    with pytest.raises(InputError, match=f"input_ids.*{limit + 1} along axis 1.*at most {limit} .max_position_embeddings 40"):
        session(case, "fp32").run(feeds)


def test_padding_costs_roberta_no_position() -> None:
    ids = np.full((1, 60), 5)
    ids[0, 10:44] = 7  # 34 tokens, all that there are positions for
    _same(session("RobertaModel", "fp32").run({"input_ids": ids}), upstream(made("RobertaModel")[1], {"input_ids": ids}))


# --- a small mistake would show ---------------------------------------------------------------------------------------

_SWAPS = (("attention.self.query", "attention.self.key"), ("attention.self.key", "attention.self.value"))


@pytest.mark.parametrize(
    ("case", "change"),
    [
        *(("BertModel", swap) for swap in _SWAPS),
        ("BertModel", ("attention.output.LayerNorm", "output.LayerNorm")),
        ("BertModel", {"layer_norm_eps": 1e-4}),
        ("BertModel", {"hidden_act": "gelu_new"}),
        ("BERT, gelu_new", {"hidden_act": "gelu"}),
        ("BertModel", {"num_attention_heads": 4}),
        ("RobertaModel", {"pad_token_id": 4}),
        ("XLMRobertaModel", {"pad_token_id": None}),
    ],
    ids=str,
)
def test_a_small_mistake_would_show(case: str, change: Any) -> None:
    """The bound means something: each of these wrong graphs is far outside of it."""
    checkpoint = _memory(made(case)[0])
    if isinstance(change, dict):
        checkpoint.config.update({k: v for k, v in change.items() if v is not None})
        for key in (k for k, v in change.items() if v is None):
            del checkpoint.config[key]
    else:
        for kind in ("weight", "bias"):
            a, b = (f"encoder.layer.0.{name}.{kind}" for name in change)
            checkpoint.arrays[a], checkpoint.arrays[b] = checkpoint.arrays[b], checkpoint.arrays[a]
    feeds = _feeds(case)
    found = _open(checkpoint).run(feeds)["last_hidden_state"]
    least = SHOWS / 3 if change == {"hidden_act": "gelu_new"} or change == {"hidden_act": "gelu"} else SHOWS
    assert np.abs(found - upstream(made(case)[1], feeds)["last_hidden_state"]).max() > least > 3 * BOUND


def test_mask_types_and_positions_all_matter() -> None:
    feeds = _feeds("BertModel")
    wanted = session("BertModel", "canonical").run(feeds)["last_hidden_state"]
    for name in ("attention_mask", "token_type_ids"):
        rest = {k: v for k, v in feeds.items() if k != name}
        assert np.abs(session("BertModel", "canonical").run(rest)["last_hidden_state"] - wanted).max() > SHOWS
    turned = {k: v[:, ::-1] for k, v in feeds.items()}
    assert np.abs(session("BertModel", "canonical").run(turned)["last_hidden_state"][:, ::-1] - wanted).max() > SHOWS


# --- names of old files -----------------------------------------------------------------------------------------------


@cache
def pretrained() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and config of a BertForPreTraining, which has every head there is."""
    folder = scratch()
    make_encoder(folder, "BertForPreTraining")
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def _old_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): value for name, value in tensors.items()}


def _checkpoint(architecture: str, tensors: dict[str, np.ndarray], **changes: Any) -> MemoryCheckpoint:
    return MemoryCheckpoint({**pretrained()[1], "architectures": [architecture], **changes}, tensors)


@pytest.mark.parametrize("architecture", BERT)
def test_a_file_with_every_head_gives_either_model_whatever_its_age(architecture: str, tmp_path: Path) -> None:
    """Written with prefix and heads, in today's names and TensorFlow's, as safetensors and as pytorch_model.bin."""
    import torch

    tensors, config = pretrained()
    buffers = {
        "bert.embeddings.position_ids": np.arange(40)[None],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    copies = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    new = canonical_graph(_checkpoint(architecture, tensors))
    feeds = feeds_of()
    wanted = open_session(program_of(new.graph)).run(feeds)
    for number, (held, changes) in enumerate(
        (
            ({**tensors, **buffers, **copies}, {}),
            (_old_names({**tensors, **buffers}), {"position_embedding_type": "absolute", "gradient_checkpointing": False}),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture], **changes}))
        torch.save({name: torch.from_numpy(value.copy()) for name, value in held.items()}, folder / "pytorch_model.bin")
        found = canonical_graph(open_checkpoint(folder))
        dropped = {entry["name"] for entry in found.tensors["dropped"]}
        assert all(entry["reason"] for entry in found.tensors["dropped"])
        assert dropped | set(found.tensors["used"]) == set(held)
        assert dropped >= {"bert.embeddings.position_ids", "cls.seq_relationship.weight", *(buffers.keys())}
        _same(open_session(program_of(found.graph)).run(feeds), wanted, bound=0)
    assert ("logits" in wanted) == (architecture == "BertForMaskedLM")


def test_the_prefix_and_the_pooler_may_be_missing() -> None:
    tensors = {n.removeprefix("bert."): v for n, v in pretrained()[0].items() if not n.startswith("cls.")}
    wanted = _open(_checkpoint("BertModel", tensors)).run(feeds_of())
    with_prefix = _open(_checkpoint("BertModel", {f"bert.{n}": v for n, v in tensors.items()})).run(feeds_of())
    _same(with_prefix, wanted, bound=0)
    bare = {n: v for n, v in tensors.items() if not n.startswith("pooler.")}
    found = _open(_checkpoint("BertModel", bare)).run(feeds_of())
    _same(found, {"last_hidden_state": wanted["last_hidden_state"]}, bound=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(odd=np.ones(3, np.float32)), "1 left over: odd"),
        (lambda t: t.update({"cls.odd.weight": np.ones(3, np.float32)}), "1 left over: cls.odd.weight"),
        (lambda t: t.update({"encoder.layer.0.output.dense.bias": np.ones(48, np.float32)}), "1 left over: encoder.layer.0"),
        (lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"), r"1 missing: bert.encoder.layer.1.attention.self.key.bias \[48\]"),
        (lambda t: t.pop("bert.pooler.dense.bias"), "1 missing: bert.pooler.dense.bias"),
        (
            lambda t: t.update({"bert.embeddings.position_embeddings.weight": np.ones((41, 48), np.float32)}),
            r"of another shape.*asks for \[40, 48\], the file holds \[41, 48\]",
        ),
        (lambda t: t.update({"bert.embeddings.LayerNorm.gamma": np.ones(48, np.float32)}), "1 missing: bert.embeddings.LayerNorm.beta.*2 left over: bert.embeddings.LayerNorm.bias"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_belong_are_refused_by_name(change: Any, said: str) -> None:
    tensors = dict(pretrained()[0])
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        canonical_graph(_checkpoint("BertModel", tensors))


def test_a_tied_head_that_was_trained_apart_is_refused() -> None:
    tensors = dict(pretrained()[0])
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(CheckpointError, match=r"decoder\.weight differs from .*word_embeddings"):
        canonical_graph(_checkpoint("BertForMaskedLM", tensors))
    found = _open(_checkpoint("BertForMaskedLM", tensors, tie_word_embeddings=False)).run(feeds_of())
    tied = dict(pretrained()[0])
    assert np.abs(found["logits"] - _open(_checkpoint("BertForMaskedLM", tied)).run(feeds_of())["logits"]).max() > SHOWS


def test_heads_of_roberta_are_dropped_by_name(tmp_path: Path) -> None:
    make_encoder(tmp_path, "RobertaForMaskedLM")
    tensors = load_file(tmp_path / "model.safetensors")
    rewrite(
        tmp_path, {"architectures": ["RobertaModel"]}, {**tensors, "classifier.out_proj.weight": np.ones((2, 48), np.float32)}
    )
    found = canonical_graph(open_checkpoint(tmp_path)).tensors
    heads = {name for name in tensors if name.startswith("lm_head.")}
    assert {entry["name"] for entry in found["dropped"]} == heads | {"classifier.out_proj.weight"}
    assert set(found["used"]) == set(tensors) - heads


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedModel, "relative_key"),
        ({"is_decoder": True}, UnsupportedModel, "is_decoder"),
        ({"add_cross_attention": True}, UnsupportedModel, "add_cross_attention"),
        ({"hidden_act": "gleu"}, UnsupportedModel, "gleu"),
        ({"embedding_size": 64}, UnsupportedModel, "embedding_size=64"),
        ({"num_attention_heads": 5}, CheckpointError, "not a multiple"),
        ({"num_hidden_layers": 5000}, CheckpointError, "no model is near that"),
        ({"layer_norm_eps": "small"}, CheckpointError, "layer_norm_eps"),
        ({"type_vocab_size": 0}, CheckpointError, "type_vocab_size"),
        ({"sentence_transformers": {"pooling": "mean"}}, CheckpointError, "sentence_transformers"),
        ({"sentence_transformers": {"pooling": "mean", "steps": [3]}}, CheckpointError, "sentence_transformers"),
    ],
    ids=str,
)
def test_a_config_that_changes_the_maths_is_refused(change: dict[str, Any], kind: type[PortingError], said: str) -> None:
    checkpoint = _memory(made("BertModel")[0])
    checkpoint.config.update(change)
    with pytest.raises(kind, match=said):
        canonical_graph(checkpoint)


@pytest.mark.parametrize("padding", [None, "1", -1, 101, 39, True])
def test_a_padding_that_roberta_cannot_count_from_is_refused(padding: Any) -> None:
    checkpoint = _memory(made("RobertaModel")[0])
    checkpoint.config["pad_token_id"] = padding
    with pytest.raises(CheckpointError, match="pad_token_id"):
        canonical_graph(checkpoint)


def test_keys_that_change_nothing_are_taken() -> None:
    checkpoint = _memory(made("BertModel")[0])
    harmless = {"chunk_size_feed_forward": 16, "classifier_dropout": 0.3, "directionality": "bidi", "pooler_fc_size": 768}
    checkpoint.config.update({**harmless, "position_embedding_type": "absolute", "pad_token_id": 0, "use_cache": True})
    _same(_open(checkpoint).run(_feeds("BertModel")), upstream(made("BertModel")[1], _feeds("BertModel")))


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("case", ["BertModel", "BertForMaskedLM", "RobertaForMaskedLM"])
def test_quantised_ports_hold_codes_and_can_be_read_back(case: str, precision: str, tmp_path: Path) -> None:
    """Every linear layer holds codes. What lies in the port, read back as a checkpoint, computes what the port does with float activations:
    the same float32 weights, summed in another order."""
    folder, model = made(case)
    path = convert(folder, tmp_path / "port", precision=precision).path
    feeds = _feeds(case)
    with float_session(open_port(path)) as opened:
        _same(opened.run(feeds), _open(PortCheckpoint(open_port(path))).run(feeds))
    with load(path) as opened:
        got, wanted = opened.run(feeds), upstream(model, feeds)
    assert got.keys() == wanted.keys()
    if precision == "int8":  # 4 bits of random weights, which average nothing out, say little
        for name, value in wanted.items():
            assert np.linalg.norm(got[name] - value) < 0.1 * np.linalg.norm(value), name
    held = {n.removesuffix(".codes") for n in _initializers(path) if n.endswith(".codes")}
    assert len(held) == 2 * 6 + 1 + (case.endswith("LM"))  # per layer, and pooler or transform, and the head


def _initializers(path: Path) -> list[str]:
    import onnx

    return [i.name for i in onnx.load(path / "model.onnx", load_external_data=False).graph.initializer]


@pytest.mark.parametrize("case", CASES)
def test_every_node_says_which_module_it_computes(case: str) -> None:
    modules = {name for name, _ in made(case)[1].named_modules() if name}
    nodes = list(canonical_graph(open_checkpoint(made(case)[0])).graph.model.graph)
    names = {node.metadata_props["porting.module"] for node in nodes}
    assert names <= modules | {"mask"} | {n for n in names if n.endswith("transform_act_fn")}
    computing = ("Linear", "LayerNorm", "Embedding", "GELUActivation", "ReLU", "SiLUActivation")
    leaves = {n for n, m in made(case)[1].named_modules() if type(m).__name__ in computing}
    assert leaves - {n for n in leaves if n.endswith("transform_act_fn")} <= names, (
        "a module that computes something has no node"
    )
    assert len({node.name for node in nodes}) == len(nodes)


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*BERT, *ROBERTA, "BERT, head of its own"])
def test_the_reference_is_the_model_that_transformers_saved(case: str) -> None:
    folder, model = made(case)
    checkpoint = open_checkpoint(folder)
    reference = EncoderReference(checkpoint)
    _same(reference.run(_feeds(case)), upstream(model, _feeds(case)), bound=1e-5)
    cases = encoder_cases(checkpoint.config, checkpoint.side_files())
    assert {"seeded", "longest"} <= cases.keys()
    assert cases["longest"]["input_ids"].shape == (1, 40 if case.startswith("B") else 34)
    assert not cases["seeded"]["attention_mask"].all()
    for feeds in cases.values():
        _same(session(case, "fp32").run(feeds), reference.run(feeds))
    reference.close()


@pytest.mark.parametrize("architecture", BERT)
def test_the_reference_reads_old_names_by_itself(architecture: str) -> None:
    tensors, _ = pretrained()
    new, old = (EncoderReference(_checkpoint(architecture, t)) for t in (tensors, _old_names(tensors)))
    _same(old.run(feeds_of()), new.run(feeds_of()), bound=0)
    _same(_open(_checkpoint(architecture, _old_names(tensors))).run(feeds_of()), new.run(feeds_of()))


def test_the_reference_says_when_upstream_does_not_take_the_feeds() -> None:
    with pytest.raises(InputError, match="upstream does not take"):
        EncoderReference(open_checkpoint(made("BertModel")[0])).run({"input_ids": np.full((1, 41), 7)})


def test_cases_of_the_user(tmp_path: Path) -> None:
    config = {**SIZES, "architectures": ["BertModel"]}
    np.savez(tmp_path / "a.npz", input_ids=np.array([[7, 8]], np.int32), attention_mask=np.array([[1, 1]]))
    (found,) = encoder_cases(config, {}, [tmp_path / "a.npz"]).values()
    assert found["input_ids"].dtype == np.int64 and found["input_ids"].tolist() == [[7, 8]]
    for arrays in (
        {"attention_mask": np.ones((1, 2), np.int64)},
        {"input_ids": np.ones((1, 2))},
        {"input_ids": np.ones(2, np.int64)},
    ):
        np.savez(tmp_path / "b.npz", **arrays)
        with pytest.raises(InputError, match="input_ids"):
            encoder_cases(config, {}, [tmp_path / "b.npz"])
