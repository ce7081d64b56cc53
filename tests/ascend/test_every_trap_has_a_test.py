"""What Huawei's stack does in silence, as its documents, sources and users tell, and the test that fails where our guard is taken out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CANN, ATC, SIM, NPU = (
    "ascend_wheels/test_cann_",
    "ascend/test_atc_command.py",
    "cann_simulator/test_arithmetic.py",
    "ascend_wheels/test_npu_",
)
TRAPS: dict[str, tuple[str, str]] = {
    # onnxruntime's CANN provider
    "it reuses the .om of another graph that lies in the current folder": (
        f"{CANN}traps.py",
        "a_compiled_model_of_another_graph_is_not_taken",
    ),
    "dump_om_model=0 stops the writing, and not the reading": (f"{CANN}traps.py", "dump_om_model_0_is_no_protection"),
    "its key is made without the weights": (f"{CANN}traps.py", "weights_count_towards_which_compiled_model_is_taken"),
    "weights in other files are looked for in the current folder": (
        f"{CANN}traps.py",
        "weights_in_other_files_do_not_reach_the_wheel",
    ),
    "it writes into the current folder": (f"{CANN}traps.py", "nothing_is_written_where_the_user_works"),
    "a damaged .om is loaded": (f"{CANN}traps.py", "a_damaged_compiled_model_is_compiled_again"),
    "an .om of another SoC, toolkit or precision is loaded": (
        f"{CANN}traps.py",
        "a_compiled_model_is_for_one_soc_toolkit_and_precision",
    ),
    "fp32 models run in fp16 unless told otherwise": (f"{CANN}traps.py", "precision_has_no_default"),
    "any word is a precision mode": (f"{CANN}traps.py", "the_provider_is_told_the_precision"),
    "the first session's options hold for all of a process": (
        f"{CANN}traps.py",
        "a_second_precision_in_one_process_is_refused",
    ),
    "without its libraries the CPU computes": (f"{CANN}traps.py", "a_missing_library_is_an_error_and_no_run_on_the_cpu"),
    "with an option that it rejects the CPU computes": (
        f"{CANN}traps.py",
        "an_option_that_it_rejects_is_an_error_and_no_run_on_the_cpu",
    ),
    "a session falls back when a run fails": (f"{CANN}traps.py", "a_session_that_fell_back_is_refused"),
    "what it does not know is left to the CPU": (f"{CANN}traps.py", "a_node_left_to_the_cpu_is_refused"),
    "whole graphs are claimed whatever CANN's parser has": (f"{CANN}traps.py", "the_wheel_hands_whole_graphs_to_cann_unread"),
    "every new shape compiles and keeps another model": (f"{CANN}inputs.py", "free_sizes_need_gears"),
    "a scalar input is named without its shape": (f"{CANN}inputs.py", "scalar_inputs_enter_as_one_number"),
    "If and Loop are compiled without their branches": (f"{CANN}inputs.py", "control_flow_is_refused_with_its_reason"),
    "opsets that CANN's parser does not read": (f"{CANN}inputs.py", "an_opset_that_cann_does_not_read_is_refused"),
    "two flavours of onnxruntime overwrite each other": (f"{CANN}setup.py", "two_flavours_of_onnxruntime"),
    "it is built for numpy 1": (f"{CANN}setup.py", "numpy_2"),
    "fused operators of onnxruntime's own never run on CANN": (f"{CANN}traps.py", "every_node_of_the_graph_is_placed"),
    # dtypes and precision
    "atc makes fp16 of everything by default": (ATC, "a_command_without_a_precision_is_refused"),
    "atc chooses more in silence": (ATC, "the_command_says_everything_that_atc_would_choose_in_silence"),
    "the two spellings of the mode exclude each other": (ATC, "contradictions_are_refused"),
    "force_fp32 is no float32 product": (SIM, "a_matrix_unit_reads_fp16_and_stores_float32"),
    "Inf becomes the largest number and NaN 0 on 310, 310P, 310B, 910A": (SIM, "a_graph_in_fp16_saturates_on_310p"),
    "exp(12) is 65504": (SIM, "exp_of_twelve"),
    "weights beyond fp16 are clipped": (SIM, "weights_that_are_too_large"),
    "bf16 becomes fp16 where a mode forces it": (SIM, "bf16_becomes_fp16_where_a_mode_forces_it"),
    "IsNaN and IsInf never find any where numbers saturate": (
        "ascend/test_bad_inputs.py",
        "a_question_that_a_chip_without_nan_cannot_answer",
    ),
    "keep_dtype is ignored under origin": ("ascend/test_side_files.py", "origin_ignores_keep_dtype_and_reads_customize_dtypes"),
    "customize_dtypes wins over keep_dtype": (SIM, "customize_wins_over_keep"),
    "a mix list is read by mixed modes only": ("ascend/test_side_files.py", "only_mixed_modes_read_a_mixlist"),
    "the matrix unit of 310P takes fp16 whatever a file says": (
        SIM,
        "a_vector_operator_can_be_kept_on_310p_and_a_product_cannot",
    ),
    "a quantised graph with a high precision": (ATC, "quantised_graphs_take_neither_gears_nor_high_precision"),
    "an omitted epsilon is another number": ("ascend/test_trap_arithmetic.py", "epsilon_is_written"),
    "Gemm with two inputs ignores alpha": ("ascend/test_trap_arithmetic.py", "gemm_scales_by_a_mul"),
    "integers that no kernel takes": ("ascend/test_prototype_dtypes.py", "what_a_prototype_does_not_name_is_told"),
    "attributes that the device ignores": ("cann_simulator/test_misread.py", "it_computes_what_the_device_is_said_to_compute"),
    "a shape that meets no gear runs in the largest": ("backends/test_ascend_om.py", "inputs_go_by_name_and_gears_by_shape"),
    # torch-npu
    "convolutions in HF32": (f"{NPU}traps.py", "convolutions_are_in_hf32_unless_told_otherwise"),
    "an operator without a kernel runs on the CPU": (
        f"{NPU}traps.py",
        "an_operator_without_a_kernel_runs_on_the_cpu_unless_told_otherwise",
    ),
    "float64 becomes float32": (f"{NPU}traps.py", "float64_is_refused_and_buffers_keep_their_dtype"),
    "float32 products in fp16 on chips of the 310P's kind": (f"{NPU}models.py", "half_floats_are_computed_in_half_floats"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_the_test_is_there(trap: str) -> None:
    file, name = TRAPS[trap]
    functions = {
        node.name: node
        for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert f"test_{name}" in functions, trap
    checks = [n for n in ast.walk(functions[f"test_{name}"]) if isinstance(n, ast.Assert | ast.Call)]
    assert checks, "it looks at nothing"
