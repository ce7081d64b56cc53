"""What is in a checkpoint: architecture, parameters, dtypes, bytes, and what fits where. Headers only; no weight is read."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from porting.conversion import architecture_of, canonical_graph
from porting.errors import PortingError
from porting.forecast import PRECISION_NAMES, weight_bytes
from porting.sources import opened
from porting.targets import all_targets
from porting.types import Checkpoint, GraphSource, is_graph

SCHEMA = "porting.inspect/1"


def inspect(source: Any, **options: Any) -> dict[str, Any]:
    """Describe a model.

    source:  as `porting.convert` takes it
    options: of `open_source`
    returns: a JSON-able object: format, architecture, covered (and why not), parameters, dtypes (tensors, parameters and bytes each), files,
             tokenizer, bytes per precision, and the targets whose one device holds the weights; of a graph also inputs, outputs, operators
    raises:  CheckpointError, InputError for a source that cannot be read
    """
    with opened(source, **options) as found:
        return _of_graph(found) if is_graph(found) else _of_checkpoint(found)


def _of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
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
    return {
        **_description(checkpoint, architecture, covered, reason, count, parameters, size),
        "side_files": sorted(checkpoint.side_files()),
        "config": {k: checkpoint.config[k] for k in _SHOWN if k in checkpoint.config},
        **_fits({p: weight_bytes(checkpoint, p) for p in PRECISION_NAMES}),
    }


def _of_graph(source: GraphSource) -> dict[str, Any]:
    graph = source.graph().model.graph
    count, parameters, size = Counter[str](), Counter[str](), Counter[str]()
    for body in (graph, *graph.subgraphs()):
        for value in body.initializers.values():
            if (tensor := value.const_value) is not None:
                count[dtype := tensor.dtype.short_name().upper()] += 1
                parameters[dtype] += tensor.size
                size[dtype] += tensor.nbytes
    covered, reason = True, ""
    try:
        canonical_graph(source)
    except PortingError as error:
        covered, reason = False, error.what
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.all_nodes())
    return {
        **_description(source, source.name, covered, reason, count, parameters, size),
        "side_files": [],
        "config": {k: v for k, v in source.facts.items() if isinstance(v, (str, int, float))},
        "facts": dict(source.facts),
        "inputs": [str(i) for i in source.inputs],
        "outputs": [str(o) for o in source.outputs],
        "state_candidates": state_candidates(source),
        "operators": dict(sorted(operators.items())),
        **_fits({"source": sum(size.values())}),
    }


def state_candidates(source: GraphSource) -> list[str]:
    """INPUT=OUTPUT pairs that look like state: one dtype, one rank, no fixed size that differs, and a name of the one in the other's.

    A guess for the user to confirm: nothing is kept between runs unless --state says so.
    """
    pairs = []
    for given in source.inputs:
        fits = [
            out.name
            for out in source.outputs
            if out.dtype == given.dtype
            and len(out.shape) == len(given.shape) > 1
            and all(
                not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(out.shape, given.shape, strict=True)
            )
            and given.name.lower().removesuffix("0") in out.name.lower()
        ]
        pairs += [f"{given.name}={fits[0]}"] if len(fits) == 1 else []
    return pairs


def _description(
    source: Checkpoint | GraphSource,
    architecture: str,
    covered: bool,
    reason: str,
    count: Counter[str],
    parameters: Counter[str],
    size: Counter[str],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": source.path.name,
        "format": source.format,
        "architecture": architecture,
        "covered": covered,
        "reason": reason,
        "parameters": sum(parameters.values()),
        "tensors": sum(count.values()),
        "bytes": sum(size.values()),
        "dtypes": {d: {"tensors": count[d], "parameters": parameters[d], "bytes": size[d]} for d in sorted(count)},
        "files": [{"name": p.name, "size": p.stat().st_size} for p in source.files],
    }


def _fits(by_precision: dict[str, int]) -> dict[str, Any]:
    fits = {p: [t.name for t in all_targets() if t.memory is not None and t.memory >= b] for p, b in by_precision.items()}
    return {"weights_bytes": by_precision, "fits": fits}


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
