"""No dtype passes in silence that an operator's prototype does not name: a rule refuses it, or says that sources leave it open."""

from __future__ import annotations

import pytest
from onnx import defs

from porting.ascend.rules import judge
from porting.ascend.soc import find_soc
from tests.ascend.prototype_dtypes import PROTOTYPES
from tests.ascend.rule_cases import One

OPSET = 18
ONNX = {"float": "float32", "double": "float64"}
PLAIN = {"float32", "float64", "float16", "bfloat16", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def allowed(op: str, place: int) -> set[str]:
    """Dtypes that ONNX lets an input have, without texts, complex numbers and what no chip before the 950 has."""
    schema = defs.get_schema(op, OPSET)
    types = schema.inputs[min(place, len(schema.inputs) - 1)].types
    return {ONNX.get(t[7:-1], t[7:-1]) for t in types if t.startswith("tensor(")} & PLAIN


UNNAMED = [(op, dtype) for op, (places, named) in PROTOTYPES.items() for dtype in sorted(allowed(op, places[0]) - named)]


def test_there_is_something_to_look_at() -> None:
    assert len(UNNAMED) > 40 and {("MatMul", "int64"), ("Gemm", "uint32"), ("Expand", "int16")} <= set(UNNAMED)


@pytest.mark.parametrize(("op", "dtype"), UNNAMED)
def test_what_a_prototype_does_not_name_is_told(op: str, dtype: str) -> None:
    places, named = PROTOTYPES[op]
    usual = "float16" if "float16" in named else "int64"

    def speaking(of: str) -> set[str]:
        """Rules that refuse, or leave open. Inputs of one prototype have one dtype in ONNX too."""
        inputs = [f"{of if i in places else 'int64'}[1,2,4,4]" for i in range(len(defs.get_schema(op, OPSET).inputs))]
        found = judge(One(op, inputs, outputs=["float32[1,2,4,4]"]).facts(), find_soc("Ascend910B3"))
        return {f.rule.id for f in found if f.node and f.rule.effect in ("refuses", "wrong", "unknown", "ai_cpu")}

    assert speaking(dtype) - speaking(usual), f"nothing says that {op} may not take {dtype}"
