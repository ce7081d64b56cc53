"""The upstream reference: transformers' own class, fp32 on the CPU, loaded strictly with the weights as *we* decoded them.

Nothing is downloaded and no remote code runs: the class comes from the installed package, the config from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import EvidenceUnavailable
from porting.weights import source_stream

if TYPE_CHECKING:
    from porting.types import Checkpoint


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


def load_upstream(checkpoint: Checkpoint, architecture: str) -> Any:
    """transformers' model of this checkpoint, fp32, eval mode, every parameter set from our decoding.

    raises: EvidenceUnavailable when transformers has no such class, or its parameters are not those that we read
    """
    torch, transformers = _import_upstream()
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise EvidenceUnavailable(
            f"transformers {transformers.__version__} has no {architecture}",
            where="reference",
            next="validate --against a golden",
        )
    config = {k: v for k, v in checkpoint.config.items() if k not in ("torch_dtype", "dtype", "quantization_config")}
    factors = config.get("rope_scaling") if (config.get("rope_scaling") or {}).get("rope_type") == "freq_factors" else None
    if factors:
        config.pop("rope_scaling")
    try:
        model = kind._from_config(kind.config_class.from_dict(config), dtype=torch.float32, attn_implementation="eager").eval()
    except Exception as error:  # its checks of a config are its own, and change from version to version
        raise EvidenceUnavailable(
            f"transformers {transformers.__version__} cannot build this {architecture}: {type(error).__name__}: {error}",
            where="reference",
            next="validate --against a golden, or with another version of transformers",
        ) from error
    names = dict(model.named_parameters())
    extra = set(checkpoint.tensors) - set(names) - {"lm_head.weight", "rope_freqs.weight"}
    missing = set(names) - set(checkpoint.tensors)
    left = {n for n in extra if not n.endswith("rotary_emb.inv_freq")}
    misshapen = [n for n in set(names) - missing if tuple(names[n].shape) != checkpoint.tensors[n].shape]
    if missing or left or misshapen:
        raise EvidenceUnavailable(
            f"transformers' {architecture} and the checkpoint disagree about tensors: missing {sorted(missing)[:5]}, "
            f"extra {sorted(left)[:5]}, of another shape {sorted(misshapen)[:5]}",
            where="reference",
            next="validate --against a golden, or with another version of transformers",
        )
    with torch.no_grad():
        for name, parameter in names.items():
            for start, stop, (rows,) in source_stream(checkpoint, name).stripes():
                parameter[start:stop] = torch.from_numpy(np.array(rows))
        if factors:  # GGUF's per-frequency divisors, which transformers' config cannot say
            divisors = source_stream(checkpoint, "rope_freqs.weight").make(0, model.model.rotary_emb.inv_freq.shape[0])[0]
            model.model.rotary_emb.inv_freq /= torch.from_numpy(divisors)
    return model
