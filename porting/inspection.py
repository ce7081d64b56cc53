"""What is in a checkpoint: architecture, parameters, dtypes, bytes, and what fits where. Headers only; no weight is read."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from porting.conversion import architecture_of, canonical_graph
from porting.errors import PortingError
from porting.forecast import PRECISION_NAMES, weight_bytes
from porting.targets import all_targets

SCHEMA = "porting.inspect/1"


def inspect(source: str | Path) -> dict[str, Any]:
    """Describe a checkpoint.

    returns: a JSON-able object: format, architecture, covered (and why not), parameters, dtypes (tensors, parameters and bytes each), files,
             tokenizer, bytes per precision, and the targets whose one device holds the weights
    raises:  CheckpointError, InputError for a source that cannot be read
    """
    from porting.converters.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(source)
    tensors = checkpoint.tensors.values()
    count, parameters, size = Counter[str](), Counter[str](), Counter[str]()
    for t in tensors:
        count[t.dtype] += 1
        parameters[t.dtype] += math.prod(t.shape)
        size[t.dtype] += t.nbytes
    covered, reason = True, ""
    try:
        architecture = architecture_of(checkpoint)
        canonical_graph(checkpoint)
    except PortingError as error:
        architecture, covered, reason = str(checkpoint.config.get("architectures")), False, error.what
    by_precision = {p: weight_bytes(checkpoint, p) for p in PRECISION_NAMES}
    return {
        "schema": SCHEMA,
        "source": Path(source).name,
        "format": checkpoint.format,
        "architecture": architecture,
        "covered": covered,
        "reason": reason,
        "parameters": sum(parameters.values()),
        "tensors": len(checkpoint.tensors),
        "bytes": sum(size.values()),
        "dtypes": {d: {"tensors": count[d], "parameters": parameters[d], "bytes": size[d]} for d in sorted(count)},
        "files": [{"name": p.name, "size": p.stat().st_size} for p in checkpoint.files],
        "side_files": sorted(checkpoint.side_files()),
        "config": {k: checkpoint.config[k] for k in _SHOWN if k in checkpoint.config},
        "weights_bytes": by_precision,
        "fits": {
            p: [t.name for t in all_targets() if t.memory is not None and t.memory >= by_precision[p]] for p in PRECISION_NAMES
        },
    }


_SHOWN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
)
