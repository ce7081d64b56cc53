"""Einsum -> Transpose, Reshape, MatMul, Mul and ReduceSum, two operands at a time from the left.

    bhid,bhjd->bhij     ->   MatMul(q, Transpose(k))
    bhwc,hkc->bhwk      ->   h first in both; rows (b w), columns k:   Reshape, MatMul, Reshape, Transpose
    i,j->ij             ->   Mul(Unsqueeze(x), Unsqueeze(y))

Labels that only one operand has and nobody needs later are summed first, labels that both have and somebody needs are batches of the
product, those that nobody needs are summed by it.

Why: about 20 equations of two operands are documented, and whether the kernel computes others is not.

Left alone: a label twice in one operand (a diagonal), an operand whose rank is not known, a fixed dimension of 0.
Bound: the operator's definition; sums may be in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .making import Maker, Refused, dimension, node_pass, rank_of

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Operand:
    value: ir.Value
    labels: Labels


def _einsum(make: Maker) -> ir.Value:
    values = [make.input(place) for place in range(len(make.node.inputs))]
    terms, result = _parsed(make.text("equation", ""), [rank_of(value) for value in values])
    return _Einsum(make, [Operand(v, t) for v, t in zip(values, terms, strict=True)], result).made()


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """Labels of every operand and of the result; axes of an ellipsis are ".0", ".1" .. counted from the last."""
    written, _, asked = equation.replace(" ", "").partition("->")
    terms = []
    for term, rank in zip(written.split(","), ranks, strict=True):
        before, dots, after = term.partition("...")
        more = rank - len(before) - len(after)
        terms.append((*before, *(f".{n}" for n in reversed(range(more) if dots else ())), *after))
        if len(terms[-1]) != rank or len(set(terms[-1])) != rank:
            raise Refused(f"{term} of rank {rank}")
    most = max((n for term in terms for n in term if n[0] == "."), default=None, key=lambda n: int(n[1:]))
    dotted = tuple(f".{n}" for n in reversed(range(int(most[1:]) + 1))) if most else ()
    if "->" in equation:
        before, dots, after = asked.partition("...")
        return terms, (*before, *(dotted if dots else ()), *after)
    once = sorted(n for term in terms for n in term if n[0] != "." and sum(n in t for t in terms) == 1)
    return terms, (*dotted, *once)


class _Einsum:
    """One equation. Sizes of labels are numbers, or an operand and its axis where they are not fixed."""

    def __init__(self, make: Maker, operands: Sequence[Operand], result: Labels) -> None:
        self.make, self.result = make, result
        self.sizes: dict[str, int | tuple[ir.Value, int]] = {}
        for operand in operands:
            for axis, label in enumerate(operand.labels):
                size = dimension(operand.value, axis)
                if size == 0:
                    raise Refused("a dimension of 0")
                known = self.sizes.get(label)
                if known is None or known == 1 or (size not in (None, 1) and not isinstance(known, int)):
                    self.sizes[label] = (operand.value, axis) if size is None else size
        self.operands = [self._without_ones(operand) for operand in operands]

    def made(self) -> ir.Value:
        whole, *rest = self.operands
        for place, other in enumerate(rest):
            needed = {*self.result, *(label for later in rest[place + 1 :] for label in later.labels)}
            whole = self._contracted(
                self._summed(whole, needed | set(other.labels)), self._summed(other, needed | set(whole.labels)), needed
            )
        whole = self._summed(whole, set(self.result))
        if set(whole.labels) != set(self.result):
            raise Refused("a label of the result that no operand has")
        made = self._ordered(whole, self.result)
        return self.make("Identity", made) if made is self.operands[0].value else made

    def _without_ones(self, operand: Operand) -> Operand:
        """An axis of 1 where others have more broadcasts, which it does as well when it is not there."""
        ones = [a for a, n in enumerate(operand.labels) if dimension(operand.value, a) == 1 and self.sizes[n] != 1]
        if not ones:
            return operand
        return Operand(
            self.make("Squeeze", operand.value, self.make.ints(*ones)),
            tuple(n for a, n in enumerate(operand.labels) if a not in ones),
        )

    def _summed(self, operand: Operand, needed: set[str]) -> Operand:
        axes = [axis for axis, label in enumerate(operand.labels) if label not in needed]
        if not axes:
            return operand
        kept = tuple(label for label in operand.labels if label in needed)
        return Operand(self.make.reduce("ReduceSum", operand.value, axes, keepdims=0), kept)

    def _contracted(self, a: Operand, b: Operand, needed: set[str]) -> Operand:
        both = [label for label in a.labels if label in b.labels]
        batch, summed = tuple(n for n in both if n in needed), tuple(n for n in both if n not in needed)
        left, right = tuple(n for n in a.labels if n not in both), tuple(n for n in b.labels if n not in both)
        made = (*batch, *left, *right)
        if not summed:
            x, y = self._ordered(a, (*batch, *left)), self._ordered(b, (*batch, *right))
            x = self.make.unsqueeze(x, *range(len(batch) + len(left), len(made)))
            y = self.make.unsqueeze(y, *range(len(batch), len(batch) + len(left)))
            return Operand(self.make("Mul", x, y), made)
        x = self._grouped(self._ordered(a, (*batch, *left, *summed)), batch, left, summed)
        y = self._grouped(self._ordered(b, (*batch, *summed, *right)), batch, summed, right)
        product = self.make("MatMul", x, y)
        if len(left) == len(right) == 1:
            return Operand(product, made)
        return Operand(self._reshaped(product, batch, [[label] for label in (*left, *right)]), made)

    def _ordered(self, operand: Operand, labels: Labels) -> ir.Value:
        if operand.labels == labels:
            return operand.value
        return self.make("Transpose", operand.value, perm=[operand.labels.index(label) for label in labels])

    def _grouped(self, value: ir.Value, batch: Labels, rows: Labels, columns: Labels) -> ir.Value:
        """(batch.., rows.., columns..) -> (batch.., one axis, one axis)"""
        if len(rows) == len(columns) == 1:
            return value
        return self._reshaped(value, batch, [list(rows), list(columns)])

    def _reshaped(self, value: ir.Value, batch: Labels, groups: Sequence[Sequence[str]]) -> ir.Value:
        """Leading axes stay; every group of labels becomes an axis."""
        fixed = [self._product(group) for group in groups]
        if fixed.count(None) <= 1:
            return self.make.reshape(value, *[0] * len(batch), *(-1 if size is None else size for size in fixed))
        parts = [self.make.ints(*[0] * len(batch))] if batch else []
        for group, size in zip(groups, fixed, strict=True):
            parts.append(self.make.ints(size) if size is not None else self._computed(group))
        return self.make("Reshape", value, self.make("Concat", *parts, axis=0))

    def _product(self, group: Sequence[str]) -> int | None:
        sizes = [size for label in group if isinstance(size := self.sizes[label], int)]
        return math.prod(sizes) if len(sizes) == len(group) else None

    def _computed(self, group: Sequence[str]) -> ir.Value:
        """(1,) int64"""
        made: ir.Value | None = None
        for label in group:
            size = self.sizes[label]
            if isinstance(size, int):
                part = self.make.ints(size)
            else:
                part = self.make("Gather", self.make("Shape", size[0]), self.make.ints(size[1]), axis=0)
            made = part if made is None else self.make("Mul", made, part)
        assert made is not None
        return made


einsum = node_pass({("", "Einsum"): _einsum}, "Rewrite every one. Count: nodes rewritten. Source: ONNX Einsum-12.")
