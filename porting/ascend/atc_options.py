"""The options of ATC for an ONNX model, one line each: what they take, and on which families of SoCs.

Sources: hicann/ge, ATC's flags and pages on them, of the 9.2 development state. What a page leaves open is taken as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from porting.ascend.soc import Soc
from porting.errors import PortError, UsageError, nearest
from porting.port_folder import require_inside
from porting.verdict import printable

MAX_VALUE = 1 << 17  # characters: what Linux takes as one argument of a command
FRAMEWORK_ONNX = "5"
BF16_FAMILIES = ("A2", "A3", "950", "310B")  # that the pages list for precision modes with bf16
HIF8_FAMILIES = ("950",)
DETERMINISTIC_FAMILIES = ("310P", "910A", "A2", "A3", "950")  # the page refuses 310B and does not list 310

# a file or folder: letters, digits, _ - . and Chinese; that is what the pages print
_PATH = re.compile(r"[A-Za-z0-9_./\-\u4e00-\u9fff]{1,4096}")


@dataclass(frozen=True)
class Option:
    """
    kind:     "choice", "file" (must be there), "place" (is written), "number" or "text"
    values:   of a choice; a value may be for some families only
    lowest:   of a number
    families: that the option is documented for; () for all
    """

    kind: str
    values: Mapping[str, tuple[str, ...]]
    lowest: int = 0
    families: tuple[str, ...] = ()


def _choice(*values: str, families: tuple[str, ...] = (), **some: tuple[str, ...]) -> Option:
    return Option("choice", {**dict.fromkeys(values, ()), **some}, families=families)


_FILE, _PLACE, _TEXT = Option("file", {}), Option("place", {}), Option("text", {})
_SWITCH, _BOOLEAN = _choice("0", "1"), _choice("false", "true")
_FLOAT8 = HIF8_FAMILIES
OUTPUT_TYPES = ("FP32", "FP16", "INT8", "INT16", "UINT16", "UINT8", "INT32", "INT64", "UINT32", "UINT64", "DOUBLE")

OPTIONS: Mapping[str, Option] = {
    "framework": _choice(FRAMEWORK_ONNX),
    "mode": _choice("0", "3"),  # 3: the check before a build alone
    "model": _FILE,
    "output": _PLACE,
    "check_report": _PLACE,
    "soc_version": _TEXT,
    "input_shape": _TEXT,
    "input_format": _choice("NCHW", "NCDHW", "ND"),
    "dynamic_batch_size": _TEXT,
    "dynamic_image_size": _TEXT,
    "dynamic_dims": _TEXT,
    "out_nodes": _TEXT,
    "output_type": _TEXT,  # one for all, or node:0:FP16;... with out_nodes: see `_problem`
    "input_fp16_nodes": _TEXT,
    "is_input_adjust_hw_layout": _TEXT,
    "is_output_adjust_hw_layout": _TEXT,
    "insert_op_conf": _FILE,
    "op_name_map": _FILE,
    "external_weight": _choice("0", "1", "2"),
    "host_env_os": _choice("linux"),
    "host_env_cpu": _choice("x86_64", "aarch64"),
    "aicore_num": Option("text", {}),
    "core_type": _choice("AiCore", "VectorCore"),
    "virtual_type": _SWITCH,
    "precision_mode": _choice(
        "force_fp16",
        "force_fp32",
        "cube_fp16in_fp32out",
        "must_keep_origin_dtype",
        "allow_fp32_to_fp16",
        "allow_mix_precision",
        "allow_mix_precision_fp16",
        allow_mix_precision_bf16=BF16_FAMILIES,
        allow_fp32_to_bf16=BF16_FAMILIES,
    ),
    "precision_mode_v2": _choice(
        "fp16",
        "origin",
        "cube_fp16in_fp32out",
        "mixed_float16",
        mixed_bfloat16=BF16_FAMILIES,
        mixed_hif8=HIF8_FAMILIES,
        cube_hif8=HIF8_FAMILIES,
    ),
    "keep_dtype": _FILE,
    "customize_dtypes": _FILE,
    "modify_mixlist": _FILE,
    "op_precision_mode": _FILE,
    "op_select_implmode": _choice("high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all"),
    "optypelist_for_implmode": _TEXT,
    "allow_hf32": _choice("false", "true", families=("A2", "A3", "950")),
    "is_weight_clip": _SWITCH,
    "compression_optimize_conf": _FILE,
    "compress_weight_conf": _FILE,
    "enable_compress_weight": _BOOLEAN,
    "sparsity": _choice("0", "1", families=("A2", "A3", "310B")),
    "deterministic": _choice("0", "1", families=DETERMINISTIC_FAMILIES),
    "deterministic_level": _choice("0", "1", "2", "3", families=DETERMINISTIC_FAMILIES),
    "log": _choice("debug", "info", "warning", "error", "null"),
    "op_debug_level": _choice("0", "1", "2", "3", "4"),
    "op_debug_config": _FILE,
    "debug_dir": _PLACE,
    "op_compiler_cache_mode": _choice("enable", "disable", "force"),
    "op_compiler_cache_dir": _PLACE,
    "mdl_bank_path": _FILE,
    "op_bank_path": _FILE,
    "buffer_optimize": _choice("l1_optimize", "l2_optimize", "off_optimize"),
    "fusion_switch_file": _FILE,
    "optimization_switch": _TEXT,
    "enable_scope_fusion_passes": _TEXT,
    "disable_reuse_memory": _SWITCH,
    "oo_level": _choice("O1", "O3"),
    "jit_compile": _choice("0", "1", "2"),
    "static_model_ops_lower_limit": Option("number", {}, lowest=-1),
    "enable_small_channel": _SWITCH,
    "enable_single_stream": _BOOLEAN,
    "enable_attr_compression": _BOOLEAN,
    "ac_parallel_enable": _SWITCH,
    "tiling_schedule_optimize": _choice("0", "1", families=("310P", "A2", "A3", "950")),
    "atomic_clean_policy": _SWITCH,
    "quant_dumpable": _SWITCH,
    "status_check": _SWITCH,
    "display_model_info": _SWITCH,
    "dump_mode": _SWITCH,
}
# options that ATC has, and why a hand-off never gives them
NOT_HERE: Mapping[str, str] = {
    "weight": "it is of Caffe models",
    "om": "it reads a compiled model",
    "json": "it writes a model as text",
    "singleop": "it compiles a single operator",
    "target": "it is of the first generation, and soc_version says more",
    "cal_conf": "compression_optimize_conf took its place",
    "auto_tune_mode": "it was taken out of the compiler",
    "input_shape_range": "it is deprecated; and a range means execution with dynamic shapes, which no run here is checked for",
    "input_hint_shape": "it means execution with dynamic shapes, which no run here is checked for",
    "shape_generalized_build_mode": "it is deprecated",
    "raw_ge_options": "it hands options over that nothing here could check",
    "raw_ge_options_ignore_unsupported": "it ignores what is not supported, in silence",
    "cluster_config": "it is of models over several devices",
    "hccl_sub_comm_config": "it is of models over several devices",
    "save_original_model": "it is a debugging aid",
    "device_id": "nothing is run while compiling",
    "build_config": "it hands a build command over",
    "help": "it compiles nothing",
}


def require_option(name: str, value: str, soc: Soc) -> None:
    """One option, on its own. raises: UsageError for one that is unknown, is not for a hand-off, or does not take the value here"""
    where = f"--{printable(name, 60)}"
    if name in NOT_HERE:
        raise UsageError(f"{where} has no place in a hand-off: {NOT_HERE[name]}", where=where, next="leave it out")
    option = OPTIONS.get(name)
    if option is None:
        raise UsageError(f"atc has no option {printable(name, 60)!r}", where="atc", next=nearest(name, list(OPTIONS)))
    if option.families and soc.family not in option.families:
        listed = ", ".join(option.families)
        raise UsageError(
            f"{where} is documented for {listed}, and {soc.name} is {soc.family}", where=where, next="leave it out"
        )
    problem, code = _problem(name, option, value, soc)
    if problem:
        shown = printable(value, 80)
        raise UsageError(f"{where}={shown}: {problem} (ATC: {code})", where=where, next=_choices(option) or "write it as said")


def _problem(name: str, option: Option, value: str, soc: Soc) -> tuple[str, str]:
    """What is wrong with a value, and the code that ATC has for it; ("", "") when nothing is."""
    if not value:
        return "the value is empty", "E10004"
    if len(value) > MAX_VALUE or not value.isprintable():
        return "the value is too long, or holds what is not printable", "E10003"
    if name == "output_type" and value not in OUTPUT_TYPES:
        return _output_type_problem(value, soc), "E10001"
    if option.kind == "choice":
        if value not in option.values:
            return "no such value", "E10010" if name == "log" else "E10003"
        families = option.values[value]
        if families and soc.family not in families:
            return f"documented for {', '.join(families)}, and {soc.name} is {soc.family}", "E10001"
    if option.kind == "number" and not (re.fullmatch(r"-?[0-9]{1,9}", value) and int(value) >= option.lowest):
        return f"expected a whole number from {option.lowest}", "E10003"
    if option.kind in ("file", "place"):
        return _path_problem(value), "E13026"
    return "", ""


def _output_type_problem(value: str, soc: Soc) -> str:
    types = [part.rpartition(":")[2] for part in value.split(";")]
    known = (*OUTPUT_TYPES, *(("HIF8", "FP8E5M2", "FP8E4M3FN") if soc.family in _FLOAT8 else ()))
    wrong = [t for t in types if t not in known]
    if wrong:
        return f"{printable(wrong[0], 40)!r} is no type of an output here"
    named = [re.fullmatch(r"[^;]+:[0-9]+:[A-Z0-9]+", part) for part in value.split(";")]
    return "" if (len(types) == 1 and ":" not in value) or all(named) else "one type, or node:0:FP16;node:1:FP32"


def _path_problem(value: str) -> str:
    try:
        require_inside(value, "atc")
    except PortError as error:
        return error.what
    return "" if _PATH.fullmatch(value) else "a path is letters, digits, _ - . / and Chinese"


def _choices(option: Option) -> str:
    return f"known: {', '.join(option.values)}" if option.values else ""
