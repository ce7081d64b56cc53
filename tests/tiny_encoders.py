"""Tiny seeded encoders for tests: written by transformers' own save_pretrained, run by transformers in float32 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "pad_token_id": 5,  # not upstream's default
    "layer_norm_eps": 1e-3,  # large enough to show when it is wrong
}
BERT = ("BertModel", "BertForMaskedLM")
ROBERTA = ("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM")
# Two float32 computations that sum in another order differ by 1e-6 of what they sum; hidden states are about 3 in size, logits about 10
# (measured: at most 1.3e-5 over all cases here). The smallest mistake that the tests make on purpose moves them by more than 1e-3.
BOUND = 1e-4
SHOWS = 1e-3
OUTPUTS = ("last_hidden_state", "pooler_output", "logits")


def make_encoder(folder: Path, architecture: str, **changes: Any) -> Any:
    """A checkpoint of `architecture` in `folder`; `changes` are keys of upstream's config. Returns the torch model."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    kind = getattr(transformers, architecture)
    config = kind.config_class(**{**SIZES, **changes}, attn_implementation="eager")
    model = kind(config).to(torch.float32).eval()
    randomised(model)
    model.save_pretrained(folder)
    return model


def randomised(model: Any) -> None:
    """Weights so large that a small mistake shows; the padding's rows too, which upstream would leave at zero."""
    import torch

    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if scale else 0.3 * noise)


def upstream(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What transformers computes, by the names of our outputs."""
    import torch

    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return {name: found[name].numpy() for name in OUTPUTS if found.get(name) is not None}


def feeds_of(batch: int = 3, length: int = 23, types: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids; the second row is filled up on the right, the third has padding between tokens. (batch, length) int64."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(6, SIZES["vocab_size"], (batch, length))
    mask = np.ones_like(ids)
    mask[1:2, length * 2 // 3 :] = 0
    mask[2:3, 4:9] = 0
    ids[mask == 0] = SIZES["pad_token_id"]
    feeds = {"input_ids": ids, "attention_mask": mask}
    return {**feeds, "token_type_ids": rng.integers(0, types, ids.shape)} if types > 1 else feeds


def rewrite(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Change keys of config.json (None removes one); replace the tensors."""
    from safetensors.numpy import save_file

    file = folder / "config.json"
    merged = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({k: v for k, v in merged.items() if k not in config or config[k] is not None}))
    if tensors is not None:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")


WORDS = ("a", "boat", "lay", "still", "in", "the", "harbour", "and", "nobody", "saw", "it", "go")


def tokenizer_json() -> str:
    """A tokenizer of a dozen words: [CLS] text [SEP], everything else [UNK]; it asks for padding and truncation, as some files do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": SIZES["pad_token_id"]}
    vocabulary = {**special, **{word: 10 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(list(special))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=7, pad_id=9)
    return tokenizer.to_str()


def make_sentence_folder(
    folder: Path,
    pooling: str = "pooling_mode_mean_tokens",
    steps: tuple[str, ...] = ("Normalize",),
    *,
    architecture: str = "BertModel",
    inside: str = "",
    tokenizer: bool = True,
    **changes: Any,
) -> Any:
    """A sentence-transformers folder, in today's layout or with the encoder in a folder of its own. Returns the torch model."""
    place = folder / inside
    place.mkdir(parents=True, exist_ok=True)
    model = make_encoder(place, architecture, **changes)
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    if tokenizer:
        (place / "tokenizer.json").write_text(tokenizer_json())
    modules = [("Transformer", inside), ("Pooling", "1_Pooling"), *((kind, f"{n}_{kind}") for n, kind in enumerate(steps, 2))]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    flags = {
        f"pooling_mode_{k}": f"pooling_mode_{k}" == pooling
        for k in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": SIZES["hidden_size"], **flags}))
    size = SIZES["hidden_size"]
    for kind, path in modules[2:]:
        (folder / path).mkdir()
        if kind == "Dense":
            size = _make_dense(folder / path, size)
    return model


def _make_dense(folder: Path, n_in: int) -> int:
    from safetensors.numpy import save_file

    n_out = n_in - 7
    tanh = "torch.nn.modules.activation.Tanh"
    config = {"in_features": n_in, "out_features": n_out, "bias": True, "activation_function": tanh}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(n_in)
    tensors = {"linear.weight": rng.normal(size=(n_out, n_in)) / 5, "linear.bias": rng.normal(size=n_out)}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    return n_out
