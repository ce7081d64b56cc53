"""What precision mode a port asks of ATC. Never ATC's silent default, which makes fp16 of fp32 and bf16 on every SoC.

    family            fp32      fp16      bf16              w8a8
    A2, A3            origin    fp16      mixed_bfloat16    fp16
    950               origin    fp16      mixed_bfloat16    fp16      what its matrix unit takes in fp32 is unknown
    310P, 910A, 310   blocked   fp16      blocked           fp16      the matrix unit takes fp16 only
    310B, other       origin    fp16      mixed_bfloat16    fp16      fp32 and bf16 unknown

This is of graphs in float32, which is what ports are. A graph that is in fp16 or bf16 itself keeps that with origin where all dtypes compute.
There is no mode that makes bf16 of all floats: what mixed_bfloat16 lowers, the vendor's lists say.

Sources: ATC's pages on --precision_mode_v2, --keep_dtype, --modify_mixlist, --customize_dtypes and --op_precision_mode (hicann/ge, docs of the
9.2 development state), the SoC files of the runtime. Nothing here was measured on hardware.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from porting.ascend.soc import Soc, release_order
from porting.errors import UsageError, nearest
from porting.targets import PRECISIONS

KEEP_DTYPE, CUSTOMIZE_DTYPES = "keep_dtype", "customize_dtypes"
MODIFY_MIXLIST, OP_PRECISION_MODE = "modify_mixlist", "op_precision_mode"
SIDE_FILES = (KEEP_DTYPE, CUSTOMIZE_DTYPES, MODIFY_MIXLIST, OP_PRECISION_MODE)

OPTION = "precision_mode_v2"
ORIGIN, FP16, MIXED_FP16, MIXED_BF16 = "origin", "fp16", "mixed_float16", "mixed_bfloat16"
# what an atc without the second spelling calls the same; the page on --precision_mode lists both, and says that they exclude each other
OLDER = {
    ORIGIN: "must_keep_origin_dtype",
    FP16: "force_fp16",
    MIXED_FP16: "allow_mix_precision_fp16",
    MIXED_BF16: "allow_mix_precision_bf16",
}
OPTION_SINCE = "6.3.RC2"  # hiascend.com canncommercial/63RC2: atctool, --precision_mode_v2
OLDER_OPTION = "precision_mode"
# hiascend.com canncommercial/601: auxiliarydevtool, --precision_mode: no spelling that ends in fp16 or bf16
OLDEST = {ORIGIN: "must_keep_origin_dtype", FP16: "force_fp16", MIXED_FP16: "allow_mix_precision"}
# keep_dtype says that origin ignores it; modify_mixlist changes lists that only the mixed modes read; the other two name no mode that ignores them
HONOURS = {
    ORIGIN: (CUSTOMIZE_DTYPES, OP_PRECISION_MODE),
    FP16: (KEEP_DTYPE, CUSTOMIZE_DTYPES, OP_PRECISION_MODE),
    MIXED_FP16: SIDE_FILES,
    MIXED_BF16: SIDE_FILES,
}
UNKNOWN = "unknown"
MODE_CONFIDENCES = ("documented", "read in source", "inferred", "probed on hardware", UNKNOWN)  # as of rules, and unknown

# operators that the matrix unit computes
CUBE_OPERATORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
_CUBE_FP16_ONLY = ("310", "310P", "910A")
_CUBE_FP32 = ("A2", "A3")

MODES_PAGE = "ATC, --precision_mode_v2"
SOC_FILES = "the runtime's SoC files: the intrinsics of the matrix unit"
FP32_REASON = (
    "the matrix unit of {soc} takes fp16 only, and so under `origin` an fp32 node whose only AI Core kernel is fp16 goes to the AI CPU, "
    "or fails where that has no kernel either"
)


@dataclass(frozen=True)
class Mode:
    """What is asked of ATC, and what it does to exceptions.

    option, value: `--option=value`
    honours:       which side files it reads, of SIDE_FILES
    notes:         what the user should be told
    source:        where that stands
    confidence:    one of MODE_CONFIDENCES
    blocker:       why a port in this precision should not be compiled for this SoC, "" where nothing is known against it
    next:          what to take instead of what is blocked
    """

    option: str
    value: str
    honours: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    confidence: str
    blocker: str = ""
    next: str = ""

    @property
    def argument(self) -> str:
        """As it is typed."""
        return f"--{self.option}={self.value}"

    @property
    def keeps_graph(self) -> bool:
        """Whether nodes compute in the dtypes that the graph has."""
        return self.value in (ORIGIN, OLDEST[ORIGIN])


def mode_for(soc: Soc, precision: str, mixed: bool = False, stored: str = "fp32") -> Mode:
    """The mode for a port in a precision.

    mixed:  leave it to the vendor's lists which operators are lowered, for a graph in fp32 that is compiled to fp16
    stored: what the graph computes in by itself: "fp32", "fp16" or "bf16"
    raises: UsageError for a precision that is none, and for lists where no operator is lowered
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", where="--precision", next=nearest(precision, PRECISIONS))
    if mixed:
        return _mixed(soc, precision)
    if precision == "fp32":
        return _fp32(soc, stored)
    if precision == "bf16":
        return _bf16(soc) if stored == "bf16" else _mixed(soc, "bf16")
    if precision == "fp16":
        return _fp16(soc, stored)
    if precision == "w8a8":
        note = "layers that are not quantised compute in fp16: what is quantised may not be combined with `origin` or another high precision"
        return _mode(FP16, (note,), "documented")
    return _mode(
        FP16,
        (),
        "read in source",
        blocker=f"no operator with {precision} weights of this form has an entry in Ascend's ONNX parser; its int8 is -p w8a8",
        next="`porting port SOURCE -p w8a8 --calibration x.npz` makes int8 of it for Ascend; or -p fp16",
    )


def in_release(mode: Mode, release: str | None) -> Mode:
    """The mode as a release of CANN spells it: in one that no document gives the newer option, by the older one. None: any release."""
    if release is None:
        return mode
    notes = tuple(note for note in mode.notes if note != _older(mode.value))
    if release_order(release) >= release_order(OPTION_SINCE):
        return replace(mode, notes=notes)
    if mode.value not in OLDEST:
        blocker = f"no document of CANN before {OPTION_SINCE} names a mode that makes bf16 of fp32"
        return replace(mode, notes=notes, blocker=mode.blocker or blocker, next=mode.next or "-p fp16, or a newer CANN")
    note = f"spelt as the documents of CANN 6.0.1 have it; --{OPTION} stands in those of {OPTION_SINCE} and later"
    return replace(mode, option=OLDER_OPTION, value=OLDEST[mode.value], notes=(*notes, note))


def cube_takes_fp32(soc: Soc) -> bool | None:
    """Whether the matrix unit multiplies fp32; None where the sources do not say: their lists of intrinsics are not complete."""
    if soc.family in _CUBE_FP16_ONLY:
        return False
    return True if soc.family in _CUBE_FP32 else None


def cannot_keep(soc: Soc, op: str) -> str:
    """Why an operator cannot be kept in fp32 on a SoC: "" where nothing is known against it."""
    if op in CUBE_OPERATORS and cube_takes_fp32(soc) is False:
        return f"the matrix unit of {soc.name} takes fp16 only: {op} cannot be kept in fp32"
    return ""


def _mode(value: str, notes: tuple[str, ...], confidence: str, **more: str) -> Mode:
    source = more.pop("source", MODES_PAGE)
    return Mode(OPTION, value, HONOURS[value], (*notes, _older(value)), source, confidence, **more)


def _older(value: str) -> str:
    return (
        f"an atc that has no --{OPTION} spells it --precision_mode={OLDER[value]}; never give both "
        f"(the oldest page that was read and has --{OPTION} is of CANN {OPTION_SINCE})"
    )


def _fp32(soc: Soc, stored: str) -> Mode:
    own = (
        ()
        if stored == "fp32"
        else (
            f"the graph itself computes in {stored}, and `origin` keeps that, but for nodes whose only kernel is fp32: -p fp32 widens nothing",
        )
    )
    if soc.family in _CUBE_FP16_ONLY:
        return _mode(
            ORIGIN,
            (),
            "documented",
            source=f"{MODES_PAGE}; {SOC_FILES}",
            blocker=FP32_REASON.format(soc=soc.name),
            next="-p fp16, with exceptions for what overflows",
        )
    if soc.family in _CUBE_FP32:
        hf32 = "convolutions may run in HF32, with 11 bits of mantissa: the sources name that as the default, and say it is not in effect yet"
        return _mode(ORIGIN, (*own, hf32), "documented")
    return _mode(ORIGIN, (*own, _unknown(soc, "fp32")), UNKNOWN, source=f"{MODES_PAGE}; {SOC_FILES}")


def _bf16(soc: Soc) -> Mode:
    if soc.bf16 is False:
        return _mode(
            ORIGIN,
            (),
            "documented",
            source=f"{MODES_PAGE}; {SOC_FILES}",
            blocker=f"{soc.name} does not compute in bf16",
            next="-p fp16, whose range is smaller: see the forecast of overflows",
        )
    if soc.bf16 is None:
        return _mode(ORIGIN, (_unknown(soc, "bf16"),), UNKNOWN, source=f"{MODES_PAGE}; {SOC_FILES}")
    return _mode(ORIGIN, (), "documented")


def _fp16(soc: Soc, stored: str) -> Mode:
    """Where all dtypes compute, a graph in fp16 keeps what it says; elsewhere fp16 is said, so that nobody has to know the default."""
    if stored == "fp16" and soc.family in (*_CUBE_FP32, "950"):
        note = "a node that has to stay in fp32 stays so in the graph, between Casts: `origin` ignores --keep_dtype"
        return _mode(ORIGIN, (note,), "documented")
    says = "fp16 is ATC's default too; it is written out, so that what was asked for can be seen"
    if soc.family in (*_CUBE_FP16_ONLY, *_CUBE_FP32):
        return _mode(FP16, (says,), "documented")
    return _mode(FP16, (says, _unknown(soc, "fp32")), "documented" if soc.family in ("310B", "950") else UNKNOWN)


def _mixed(soc: Soc, precision: str) -> Mode:
    note = "the vendor's lists say which operators are lowered; they lie in the toolkit, and nothing here has read them"
    if precision == "fp16":
        return _mode(MIXED_FP16, (note,), "documented" if soc.family != "other" else UNKNOWN)
    if precision != "bf16":
        raise UsageError(f"no mixed mode lowers to {precision}", where="precision mode", next="known: fp16, bf16")
    plain = _bf16(soc)
    notes = (note, *(n for n in plain.notes if soc.bf16 is None and n == _unknown(soc, "bf16")))
    return _mode(MIXED_BF16, notes, plain.confidence, source=plain.source, blocker=plain.blocker, next=plain.next)


def _unknown(soc: Soc, dtype: str) -> str:
    if soc.family == "other":
        return f"{soc.name}: no document was read that says what it computes in {dtype}: unknown"
    if dtype == "bf16":
        return f"{soc.name}: ATC's documents name bf16 for it, its SoC file has no flag for it: unknown"
    return f"{soc.name}: the list of its matrix unit has no fp32 product, and the list is not complete: whether fp32 matrix operators have an AI Core kernel is unknown"
