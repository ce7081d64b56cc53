"""Which passes bring a canonical graph to what Ascend's ONNX parser takes: one table, in order.

The parser (CANN 9.2 sources) looks every node up as "domain::opset::operator" with the opset that the model imports, has nothing of the
standard above 18 but Constant, no com.microsoft, no functions and no Loop; and it reads some attributes that a node has and not others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import onnx_ir as ir

from porting.ascend.rules import rules
from porting.types import Graph

from ..drop_identities import drop_identities
from ..fold_constants import fold_sizes
from ..infer_shapes import infer_shapes
from ..remove_unused import remove_unused
from ..rewriting import ModelPass, bodies_of, copied
from .arg_max_last import NOTE as NAN_IS_ANOTHER_PLACE
from .arg_max_last import arg_max_last
from .attention import attention
from .avg_pool import avg_pool
from .batch_norm_epsilon import batch_norm_epsilon
from .branch_weights import branch_weights
from .cast_saturate import cast_saturate
from .clean_imports import clean_imports
from .clip_bounds import clip_bounds
from .constant_forms import constant_forms
from .conv_kernel_shape import conv_kernel_shape
from .conv_transpose import conv_transpose
from .dequantize import dequantize
from .dynamic_quantize_lstm import dynamic_quantize_lstm
from .einsum import einsum
from .empty_parts import empty_parts
from .expand_constant import expand_constant
from .gather_nd_batch import gather_nd_batch
from .gelu import gelu
from .gemm_bias import gemm_bias
from .group_normalization import group_normalization
from .gru_reset import gru_reset
from .if_captures import if_captures
from .int_div import int_div
from .is_inf import is_inf
from .layer_normalization import layer_normalization
from .legal_names import legal_names
from .linear_contrib import linear_contrib
from .lower_opset import HIGHEST_OPSET as HIGHEST_OPSET
from .lower_opset import lower_opset
from .lstm_layout import lstm_layout
from .max_pool_indices import max_pool_indices
from .mod_fmod import mod_fmod
from .negative_indices import negative_indices
from .pad_axes import pad_axes
from .pad_value import pad_value
from .pool_windows import pool_windows
from .pow_exponent import pow_exponent
from .reduce_axes import reduce_axes
from .reduce_norms import reduce_norms
from .resize_rounding import resize_rounding
from .rms_normalization import rms_normalization
from .rnn import rnn
from .rotary_embedding import rotary_embedding
from .scatter_reduction import scatter_reduction
from .selu import selu
from .shape_slice import shape_slice
from .share_integers import share_integers
from .sizes_of_inputs import sizes_of_inputs
from .slice_steps import slice_steps
from .softmax_axis import softmax_axis
from .split_sizes import split_sizes
from .swish import swish
from .tensor_scatter import tensor_scatter
from .top_k import top_k
from .transpose_perm import transpose_perm
from .unroll_loop import unroll_loop
from .where_int64 import where_int64


class Compare(Protocol):
    """Holds a graph after a pass against what it was before."""

    def begin(self, graph: Graph) -> None:
        """What the passes start from; the graph is changed in place after that."""

    def __call__(self, name: str, graph: Graph) -> Mapping[str, object]:
        """After a pass that changed something: what is to be recorded of it. raises: UnsupportedModel where a result is another"""


# Operators that are not registered, of a graph at the opset that it came in.
EXPAND: Sequence[tuple[str, ModelPass]] = (
    ("fold_constants", fold_sizes),  # of what our builders make, whose sizes may have been fixed: shapes follow from it
    ("unroll_loop", unroll_loop),  # first: what is in the body is rewritten with all else
    ("linear_contrib", linear_contrib),
    ("dequantize", dequantize),
    ("dynamic_quantize_lstm", dynamic_quantize_lstm),
    ("rnn", rnn),
    ("rms_normalization", rms_normalization),
    ("rotary_embedding", rotary_embedding),
    ("attention", attention),  # before tensor_scatter: inference knows the shape of that one, not of what takes its place
    ("tensor_scatter", tensor_scatter),
    ("gelu", gelu),
    ("swish", swish),
    ("layer_normalization", layer_normalization),
    ("group_normalization", group_normalization),  # before the opset is lowered, which changes what it means
    ("cast_saturate", cast_saturate),  # before the opset is lowered, which knows no such attribute
    ("lower_opset", lower_opset),
    ("reduce_norms", reduce_norms),  # at 18 only
)
# At opset 18 or below: attributes and forms that the parser reads otherwise than ONNX means them. Add new ones here, one a line.
REWRITE: Sequence[tuple[str, ModelPass]] = (
    ("lstm_layout", lstm_layout),  # what they make is rewritten too
    ("gru_reset", gru_reset),
    ("empty_parts", empty_parts),
    ("einsum", einsum),
    ("resize_rounding", resize_rounding),
    ("pad_axes", pad_axes),
    ("pad_value", pad_value),  # after pad_axes, which gives it pads of all axes
    ("shape_slice", shape_slice),
    ("split_sizes", split_sizes),
    ("reduce_axes", reduce_axes),
    ("softmax_axis", softmax_axis),
    ("transpose_perm", transpose_perm),
    ("batch_norm_epsilon", batch_norm_epsilon),
    ("top_k", top_k),
    ("arg_max_last", arg_max_last),
    ("mod_fmod", mod_fmod),
    ("int_div", int_div),
    ("pow_exponent", pow_exponent),
    ("gemm_bias", gemm_bias),
    ("clip_bounds", clip_bounds),
    ("is_inf", is_inf),
    ("selu", selu),
    ("gather_nd_batch", gather_nd_batch),
    ("scatter_reduction", scatter_reduction),
    ("negative_indices", negative_indices),  # after scatter_reduction, which reads indices as they stand
    ("conv_kernel_shape", conv_kernel_shape),
    ("conv_transpose", conv_transpose),
    ("max_pool_indices", max_pool_indices),
    ("pool_windows", pool_windows),  # before avg_pool, which pads apart where there is no ceil_mode
    ("avg_pool", avg_pool),
    ("where_int64", where_int64),  # after what makes a Where
    ("expand_constant", expand_constant),
    ("slice_steps", slice_steps),  # last: others make slices
    ("constant_forms", constant_forms),
)
FINISH: Sequence[tuple[str, ModelPass]] = (
    ("fold_constants", fold_sizes),  # what the passes compute from fixed sizes
    ("drop_identities", drop_identities),
    ("sizes_of_inputs", sizes_of_inputs),  # so that more of what follows from a size is the same
    ("share_integers", share_integers),  # what the passes wrote anew for every layer
    ("remove_unused", remove_unused),
    ("branch_weights", branch_weights),
    ("if_captures", if_captures),  # after drop_identities, which would take them away again
    ("legal_names", legal_names),
    ("clean_imports", clean_imports),  # last: what is imported depends on the nodes that are left
)
PASSES: Sequence[tuple[str, ModelPass]] = (*EXPAND, *REWRITE, *FINISH)
# To work types and shapes out anew is most of the time that lowering takes, so it is left out where a pass made no value. What this one makes
# constant says sizes of values that were there before.
SAYS_SIZES = "fold_constants"

NOTES: Mapping[str, str] = {"arg_max_last": NAN_IS_ANOTHER_PLACE}  # what is to be told of a port where a pass changed something


def lower_for_ascend(graph: Graph, compare: Compare | None = None) -> tuple[Graph, list[dict[str, object]]]:
    """Run the passes, and work types and shapes out anew after each that made values.

    compare: told of every pass that changed something; see porting/ascend/pass_comparison.py
    returns: the lowered graph, and [{"name", "changes", "rules"}] with what `compare` records, as port.json lists them: rules are the ids of
             those that a pass mends. Some have a "note", see NOTES
    raises:  what `compare` raises
    """
    applied: list[dict[str, object]] = []
    graph = copied(graph)
    infer_shapes.change(graph.model)  # what builders make has no shapes yet
    unknown = _undescribed(graph.model)
    if compare is not None:
        compare.begin(graph)
    for name, run in PASSES:
        changes = run.change(graph.model)
        found: Mapping[str, object] = {}
        if changes:
            if name == SAYS_SIZES or not _undescribed(graph.model) <= unknown:
                infer_shapes.change(graph.model)
                unknown = _undescribed(graph.model)
            found = compare(name, graph) if compare is not None else {}
            found = {**found, "note": NOTES[name]} if name in NOTES else found
        applied.append({"name": name, "changes": changes, "rules": _mended_by(name), **found})
    return graph, applied


def _undescribed(model: ir.Model) -> set[ir.Value]:
    """Results of nodes whose type or shape is not known."""
    nodes = (node for body in bodies_of(model) for node in body)
    return {v for node in nodes for v in node.outputs if v.name and (v.type is None or v.shape is None)}


def _mended_by(name: str) -> list[str]:
    return [rule.id for rule in rules() if rule.rewrite == name]
