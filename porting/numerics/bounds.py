"""How far two correct computations of one network may differ: bounds from an error analysis, in relative L2 of the output.

The model, first order, each step with its source:

1. One rounding to nearest changes a number by at most the unit roundoff u, relatively (Higham 2002, section 2.2).
2. An inner product of length n accumulates n roundings whose signs are as good as random: with probability at least
   1 - 2 exp(-lambda^2 / 2) the error stays below lambda sqrt(n) u (Higham & Mary 2019, SIAM J. Sci. Comput. 41(5), sections 2 and 3), where the
   worst case has n u. Blocked or tree sums, as every BLAS uses them, stay further below.
3. What is stored between operators is rounded once more, to the unit roundoff of the storage.
4. In a chain of operators relative errors add in quadrature: independent, and a linear map has no preferred direction for
   noise.
5. With a residual stream, block l of B adds to a stream that holds l blocks already, so its error weighs 1 / (l + 1) of the
   square: B blocks of mean square error e^2 give e^2 H(B) with the harmonic number H(B) = ln B + 0.58, not e^2 B. That takes
   the blocks to be of about equal size.
6. Both sides of a comparison round: the squares of both are added.

The bound says nothing about a network that amplifies noise (a router that flips, a softmax over near ties): there the
measured sensitivity has to be given as `amplification`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from porting.errors import InputError, UsageError, nearest

# N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. (2002), section 2.1: u = 2^-p for p significand bits,
# round to nearest. Formats: IEEE 754-2019 table 3.5 (p = 11, 24, 53); bfloat16 p = 8; TF32 p = 11 (NVIDIA A100 white paper);
# float8 e4m3 p = 4, e5m2 p = 3 (OCP 8-bit floating point specification, 2023).
UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tfloat32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4,
    "float8_e5m2": 2.0**-3,
}

# Largest code of a symmetric integer format: the step is amax / levels.
INTEGER_LEVELS = {"int8": 127, "int4": 7}

# Probability that the model gives to exceeding the bound: lambda = sqrt(2 ln(2 / FAILURE)) = 3.26 (point 2).
FAILURE = 0.01
LAMBDA = math.sqrt(2 * math.log(2 / FAILURE))

# Activations of language models are not Gaussian: a few channels stand out (Dettmers et al. 2022, LLM.int8(), section 4, up to
# 20 times the rest). Their share of a block's root mean square grows with them, so the crest factor does not grow as fast;
# whatever the values, it cannot exceed sqrt(block). 3 admits a block whose largest value is three times the Gaussian's.
OUTLIER_ALLOWANCE = 3.0


@dataclass(frozen=True)
class Bound:
    """A relative L2 error that two correct computations stay under, and the text by which it was derived."""

    value: float
    derivation: str


def unit_roundoff(dtype: str) -> float:
    """u of a floating-point format, by numpy's or ml_dtypes' name, or "tfloat32".

    raises: UsageError for any other
    """
    if dtype not in UNIT_ROUNDOFF:
        raise UsageError(f"no unit roundoff for {dtype!r}", where="bounds", next=nearest(dtype, list(UNIT_ROUNDOFF)))
    return UNIT_ROUNDOFF[dtype]


def rounding_bound(
    accumulations: Sequence[int],
    unit_roundoff: float,
    *,
    storage_roundoff: float | None = None,
    reference_roundoff: float | None = None,
    residual_blocks: int = 0,
    final: Sequence[int] = (),
    amplification: float = 1.0,
) -> Bound:
    """Rounding error of a network's output, as relative L2 error.

    accumulations:      length of every matrix product's inner products, one entry per product, in any order
    unit_roundoff:      of the accumulator; 2**-24 for fp32 sums
    storage_roundoff:   of what is stored between operators, where it is coarser than the accumulator (fp16, bf16)
    reference_roundoff: of the other side's accumulator and storage; the same as this side's when left out, 0 for an exact one
    residual_blocks:    additions to the residual stream that `accumulations` are spread over (2 per decoder layer);
                        0 for a plain chain
    final:              lengths of the products after the last residual addition (the head)
    amplification:      measured growth of a relative error between input and output, where it is known to exceed 1
    raises: InputError for no products, a length below 1, or a factor that is no positive number
    """
    lengths = [*accumulations, *final]
    if not lengths or min(lengths) < 1 or residual_blocks < 0:
        raise InputError(f"cannot bound {len(lengths)} products in {residual_blocks} blocks", where="rounding bound")
    storage = unit_roundoff if storage_roundoff is None else storage_roundoff
    for name, value in (("unit roundoff", unit_roundoff), ("storage roundoff", storage), ("amplification", amplification)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}", where="rounding bound")

    def square(of: Sequence[int], u: float, stored: float) -> float:
        return sum(n * u * u + stored * stored for n in of)

    weight = _residual_weight(residual_blocks)
    own = weight * square(accumulations, unit_roundoff, storage) + square(final, unit_roundoff, storage)
    other = own
    if reference_roundoff is not None:
        u = reference_roundoff
        other = weight * square(accumulations, u, u) + square(final, u, u)
    value = LAMBDA * amplification * math.sqrt(own + other)
    derivation = (
        f"rounding: {len(lengths)} matrix products of length {min(lengths)} to {max(lengths)}, accumulated with u = {unit_roundoff:.2g}, "
        f"stored with u = {storage:.2g}; lambda sqrt(n) u each with lambda = {LAMBDA:.3g} for probability {1 - FAILURE:.0%} "
        f"(Higham & Mary 2019); {_composition(residual_blocks)}; other side "
        + ("the same" if reference_roundoff is None else f"with u = {reference_roundoff:.2g}")
        + (f"; amplification {amplification:.3g}, as measured" if amplification != 1 else "")
        + f"; relative L2 error {value:.2e}"
    )
    return Bound(value, derivation)


def activation_quantisation_bound(
    products: int,
    block: int,
    *,
    levels: int = INTEGER_LEVELS["int8"],
    residual_blocks: int = 0,
    final: int = 0,
    outlier_allowance: float = OUTLIER_ALLOWANCE,
    amplification: float = 1.0,
) -> Bound:
    """Error of quantising every matrix product's activations per block, as relative L2 error of the output.

    For onnxruntime's MatMulNBits at accuracy_level 4, which rounds activations to symmetric int8 per block of `block` values
    before the product. Step = amax / levels; error uniform in +-step / 2, so of root mean square step / sqrt(12) (Bennett
    1948); relative to the block that is crest / (levels sqrt(12)) with the crest factor amax / rms. Gaussian values have
    about sqrt(2 ln block); times `outlier_allowance`, and never above sqrt(block), which holds for any values at all.

    products:        matrix products with quantised activations, the head not counted
    block:           values per scale, 16 to 256
    levels:          largest integer code
    residual_blocks: as in `rounding_bound`
    final:           products after the last residual addition
    raises: InputError for a block below 2, no products, or a factor that is no positive number
    """
    if block < 2 or products + final < 1 or products < 0 or final < 0 or residual_blocks < 0 or levels < 1:
        raise InputError(f"cannot bound {products} + {final} products with blocks of {block}", where="quantisation bound")
    for name, value in (("outlier allowance", outlier_allowance), ("amplification", amplification)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}", where="quantisation bound")
    gaussian = math.sqrt(2 * math.log(block))
    crest = min(math.sqrt(block), outlier_allowance * gaussian)
    each = crest / (levels * math.sqrt(12))
    value = amplification * each * math.sqrt(_residual_weight(residual_blocks) * products + final)
    derivation = (
        f"activation quantisation: {products + final} products, blocks of {block}, {levels} levels; uniform error step / sqrt(12), "
        f"crest factor {crest:.3g} (Gaussian sqrt(2 ln {block}) = {gaussian:.3g}, outlier allowance {outlier_allowance:.3g}, "
        f"never above sqrt({block})), so {each:.2e} per product; {_composition(residual_blocks)}"
        + (f"; amplification {amplification:.3g}, as measured" if amplification != 1 else "")
        + f"; relative L2 error {value:.2e}"
    )
    return Bound(value, derivation)


def combined(*bounds: Bound) -> Bound:
    """Independent sources of error together: the root of the sum of their squares."""
    if not bounds:
        raise InputError("no bounds to combine", where="bounds")
    value = math.sqrt(sum(b.value**2 for b in bounds))
    return Bound(value, "; ".join(b.derivation for b in bounds) + f"; in quadrature {value:.2e}")


def _residual_weight(blocks: int) -> float:
    """What the squares of products inside residual blocks count in the output: H(B) / B, 1 for a plain chain (point 5)."""
    return sum(1 / k for k in range(1, blocks + 1)) / blocks if blocks else 1.0


def _composition(blocks: int) -> str:
    if not blocks:
        return "in quadrature along the chain"
    return f"in quadrature over {blocks} blocks of a residual stream, weight H({blocks}) / {blocks} = {_residual_weight(blocks):.3g}"
