"""What the rules say, written down a second time: no effect, code, chip or release of a rule changes unseen. What they match is in rule_table.py."""

EFFECTS: dict[str, str] = {
    "refuses": """
        several-imports local-functions no-inputs external-key duplicate-names io-names no-tensor bf16-precision
        missing-rms-normalization missing-rotary-embedding missing-attention missing-gelu missing-group-normalization
        missing-swish missing-tensor-scatter missing-layer-normalization missing-rnn missing-loop missing-reduce-norms
        missing-quantized missing-scan missing-sequence-map missing-optional missing-strings missing-image-decoder missing-spectra
        missing-deform-conv missing-affine-grid missing-center-crop-pad missing-losses missing-later missing-dynamic-lstm
        contrib-rewritten contrib missing-ml missing-training missing-npu missing-domain opset-too-high opset-too-low
        opset-without-entry no-parser bf16 double-kept double-gather-nd integers-matmul integers-expand integers-div integers-mod
        fp8 fp8-constant unmapped-dtype int4-old strings zero-sized fp32-cube resize-few-inputs pad-wrap gather-nd-batch
        scatter-nd-mul clip-bounds is-inf transpose-perm arg-last selu lrn-size max-pool-indices max-pool-order pool-rank
        conv-bare conv-3d-pad conv-transpose-rank conv-transpose-kernel upsample-mode pow-mixed random-normal-dtype random-uniform-dtype
        dropped-node grid-sample-rank split-uneven if-weights-outside unsized-output
    """,
    "wrong": """
        input-default input-unranked saturation cast-undefined cast-saturate integer-division shape-slice mod-fmod gemm-alpha
        lstm-layout lstm-activations lstm-clip gru-layout gru-activations gru-clip lstm-input-forget gru-reset resize-nearest
        resize-nearest-space resize-cubic-coefficient resize-exclude-outside resize-crop resize-antialias resize-axes
        resize-aspect-ratio pad-axes reduce-axes negative-indices scatter-nd-reduction constant-form batch-norm-epsilon
        dropout-mask dropout-training softmax-axis average-pool-same-lower average-pool-dilations
        average-pool-ceil-window max-pool-ceil-window lp-pool lp-pool-dilations
    """,
    "ai_cpu": """
        double pool-window
    """,
    "slow": """
        sized-by-values
    """,
    "unknown": """
        ir-version output-names input-dtype input-rank opset-of-old-cann bf16-precision-unknown not-published
        layer-normalization-old-cann bf16-unknown double-lowered integers-add integers-sub integers-gemm one-hot-indices
        fp8-unknown int4 complex infinite-constant fp16-constant fp16-constant-negative fp16-documented conv-3d-fp32
        conv-transpose-fp32 bf16-prototype einsum-prototype dtype-softmax dtype-gather dtype-gatherelements dtype-gathernd
        dtype-scatternd dtype-scatterelements dtype-slice dtype-split dtype-transpose dtype-expand dtype-clip dtype-pad
        dtype-resize dtype-averagepool dtype-maxpool dtype-reducemean dtype-reducesum dtype-reducemax dtype-topk dtype-nonzero
        dtype-cumsum dtype-mod dtype-pow dtype-add dtype-sigmoid dtype-tanh dtype-gridsample dtype-instancenormalization
        dtype-batchnormalization dtype-gemm dtype-cast dtype-where cast-target cast-int8 cast-int16 gemm-documents
        gemm-fp32-old-opset resize-cubic resize-sizes resize-3d pad-value indices-unknown scatter-elements-reduction
        batch-norm-rank batch-norm-training max-pool-dilations max-pool-valid max-pool-fp32 average-pool-count-pad
        average-pool-ceil pool-width conv-group conv-limits conv-transpose-pad conv-transpose-old-cann conv-transpose-dilations
        matmul-rank eye-like-dtype constant-of-shape-dtype grid-sample-mode slice-rank slice-last-step split-sizes expand-shape
        top-k-order top-k-unwritten einsum-equation documented-opset grid-sample-opset resize-opset-13 pad-opset-12
        if-returns-outer if-captures-deeper
    """,
}
# rule -> (first, last release); all others hold for every one
RELEASES: dict[str, tuple[str | None, str | None]] = {
    "several-imports": (None, "9.1.0"),
    "opset-of-old-cann": (None, "6.0.1"),
    "not-published": (None, "9.1.0"),
    "layer-normalization-old-cann": (None, "7.0.1"),
    "int4-old": (None, "9.1.0"),
    "int4": ("9.2.0", None),
    "gemm-documents": (None, "9.0.0"),
    "scatter-nd-reduction": (None, "9.1.0"),
    "scatter-nd-mul": ("9.2.0", None),
    "max-pool-fp32": (None, "8.0.0"),
    "conv-transpose-old-cann": (None, "7.0.1"),
    "conv-transpose-dilations": (None, "7.0.1"),
    "dropped-node": (None, "9.1.0"),
}
# rule -> the vendor's code; all others have none
CODES: dict[str, str] = {
    "several-imports": "E16005",
    "local-functions": "E13010",
    "no-inputs": "E16001",
    "duplicate-names": "E13009",
    "io-names": "E10016",
    "bf16-precision": "EZ3002",
    "missing-rms-normalization": "E13010",
    "missing-rotary-embedding": "E13010",
    "missing-attention": "E13010",
    "missing-gelu": "E13010",
    "missing-group-normalization": "E13010",
    "missing-swish": "E13010",
    "missing-tensor-scatter": "E13010",
    "missing-layer-normalization": "E13010",
    "missing-rnn": "E13010",
    "missing-loop": "E13010",
    "missing-reduce-norms": "E13010",
    "missing-quantized": "E13010",
    "missing-scan": "E13010",
    "missing-sequence-map": "E13010",
    "missing-optional": "E13010",
    "missing-strings": "E13010",
    "missing-image-decoder": "E13010",
    "missing-spectra": "E13010",
    "missing-deform-conv": "E13010",
    "missing-affine-grid": "E13010",
    "missing-center-crop-pad": "E13010",
    "missing-losses": "E13010",
    "missing-later": "E13010",
    "missing-dynamic-lstm": "E13010",
    "contrib-rewritten": "E13010",
    "contrib": "E13010",
    "missing-ml": "E13010",
    "missing-training": "E13010",
    "missing-npu": "E13010",
    "missing-domain": "E13010",
    "opset-too-high": "E13010",
    "opset-too-low": "E13010",
    "opset-without-entry": "E13010",
    "no-parser": "E13010",
    "bf16": "EZ3002",
    "fp8": "EZ3002",
    "fp32-cube": "EZ3003",
    "resize-few-inputs": "E11010",
    "gather-nd-batch": "E11010",
    "scatter-nd-mul": "E11010",
    "clip-bounds": "E11010",
    "is-inf": "E11010",
    "transpose-perm": "E11010",
    "arg-last": "E11010",
    "selu": "E11010",
    "lrn-size": "E11010",
    "max-pool-indices": "E11010",
    "max-pool-order": "E11010",
    "pool-rank": "E11010",
    "conv-bare": "E11010",
    "conv-3d-pad": "E11010",
    "conv-transpose-rank": "E11010",
    "conv-transpose-kernel": "E11010",
    "upsample-mode": "E11010",
    "random-normal-dtype": "E11010",
    "random-uniform-dtype": "E11010",
    "split-uneven": "E11010",
}
# rule -> the families of chips; all others hold for all
FAMILIES: dict[str, str] = {
    "bf16-precision": "310 310P 910A",
    "bf16-precision-unknown": "310B other",
    "bf16": "310 310P 910A",
    "bf16-unknown": "310B other",
    "fp8": "310 310P 310B 910A A2 A3 other",
    "fp8-constant": "950",
    "fp8-unknown": "950",
    "infinite-constant": "310 310P 310B 910A",
    "saturation": "310 310P 310B 910A",
    "fp32-cube": "310 310P 910A",
    "fp16-documented": "310B A2 A3 950 other",
    "bf16-prototype": "A2 A3 950",
}
