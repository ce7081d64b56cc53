"""The upstream reference: transformers' own class, fp32 on the CPU, loaded strictly with the weights as *we* decoded them.

Nothing is downloaded and no remote code runs: the class comes from the installed package, the config from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import EvidenceUnavailable
from porting.weights import source_stream

if TYPE_CHECKING:
    from porting.types import Checkpoint

NOT_MATHS = ("torch_dtype", "dtype", "quantization_config")  # how weights were stored; ours are decoded


def upstream_version() -> str | None:
    """transformers' version when it and torch are installed, else None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("torch")
        return version("transformers")
    except PackageNotFoundError:
        return None


def upstream_logits(checkpoint: Checkpoint, architecture: str, cases: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits of the upstream implementation.

    cases:   name -> (batch, sequence) int64 token ids
    returns: name -> (batch, sequence, vocab) float32
    raises:  EvidenceUnavailable when torch, transformers or the class is missing
    """
    if upstream_version() is None:
        raise EvidenceUnavailable(
            "the upstream implementation is not installed, and no golden was given",
            where="reference",
            next='pip install "porting[torch]", or validate --against a golden',
        )
    model = load_upstream(checkpoint, architecture)
    import torch

    with torch.inference_mode():
        return {name: model(torch.from_numpy(ids), use_cache=False).logits.float().numpy() for name, ids in cases.items()}


def _import_upstream() -> tuple[Any, Any]:
    """torch and transformers. raises: EvidenceUnavailable when they are there and cannot be imported"""
    try:
        import torch
        import transformers
    except Exception as error:  # a broken native library, or two versions that do not fit: whatever their imports raise
        raise EvidenceUnavailable(
            f"the upstream implementation is installed and cannot be imported: {type(error).__name__}: {error}",
            where="reference",
            next='pip install --force-reinstall "porting[torch]", or validate --against a golden',
        ) from error
    return torch, transformers


def build_upstream(architecture: str, config: Mapping[str, Any], **options: Any) -> Any:
    """transformers' model of a config, fp32, eval mode, its weights as it makes them up.

    options: further arguments of upstream's constructor
    raises:  EvidenceUnavailable when transformers has no such class, or refuses the config
    """
    torch, transformers = _import_upstream()
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise EvidenceUnavailable(
            f"transformers {transformers.__version__} has no {architecture}",
            where="reference",
            next="validate --against a golden",
        )
    own = kind.config_class
    try:
        return kind._from_config(own.from_dict(config), dtype=torch.float32, attn_implementation="eager", **options).eval()
    except Exception as error:  # its checks of a config are its own, and change from version to version
        raise EvidenceUnavailable(
            f"transformers {transformers.__version__} cannot build this {architecture}: {type(error).__name__}: {error}",
            where="reference",
            next="validate --against a golden, or with another version of transformers",
        ) from error


def fill_upstream(model: Any, architecture: str, checkpoint: Checkpoint, names: Mapping[str, str], harmless: Set[str]) -> None:
    """Set every parameter of a torch module from our decoding.

    names:    parameter -> tensor of the checkpoint
    harmless: tensors that no parameter needs
    raises:   EvidenceUnavailable when the module's parameters are not the tensors that we read
    """
    torch, _ = _import_upstream()
    parameters = dict(model.named_parameters())
    missing = sorted(p for p in parameters if names.get(p) not in checkpoint.tensors)
    held = {p: checkpoint.tensors[names[p]] for p in parameters if p not in missing}
    misshapen = sorted(p for p, tensor in held.items() if tuple(parameters[p].shape) != tuple(tensor.shape))
    left = sorted(set(checkpoint.tensors) - {tensor.name for tensor in held.values()} - harmless)
    if missing or left or misshapen:
        raise EvidenceUnavailable(
            f"transformers' {architecture} and the checkpoint disagree about tensors: missing {missing[:5]}, "
            f"extra {left[:5]}, of another shape {misshapen[:5]}",
            where="reference",
            next="validate --against a golden, or with another version of transformers",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            for start, stop, (rows,) in source_stream(checkpoint, names[name]).stripes():
                parameter[start:stop] = torch.from_numpy(np.array(rows))


def load_upstream(checkpoint: Checkpoint, architecture: str) -> Any:
    """transformers' language model of this checkpoint, fp32, eval mode, every parameter set from our decoding.

    raises: EvidenceUnavailable when transformers has no such class, or its parameters are not those that we read
    """
    config = {k: v for k, v in checkpoint.config.items() if k not in NOT_MATHS}
    factors = config.get("rope_scaling") if (config.get("rope_scaling") or {}).get("rope_type") == "freq_factors" else None
    if factors:
        config.pop("rope_scaling")
    model = build_upstream(architecture, config)
    buffers = {n for n in checkpoint.tensors if n.endswith("rotary_emb.inv_freq")}
    names = {name: name for name, _ in model.named_parameters()}
    fill_upstream(model, architecture, checkpoint, names, buffers | {"lm_head.weight", "rope_freqs.weight"})
    if factors:  # GGUF's per-frequency divisors, which transformers' config cannot say
        torch, _ = _import_upstream()
        divisors = source_stream(checkpoint, "rope_freqs.weight").make(0, model.model.rotary_emb.inv_freq.shape[0])[0]
        with torch.no_grad():
            model.model.rotary_emb.inv_freq /= torch.from_numpy(divisors)
    return model
