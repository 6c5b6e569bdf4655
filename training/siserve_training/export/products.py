"""Emitters of a decoder's products with weights: in float32, or in 8-bit integers.

A few rows wait for the weights to come from memory, and a quarter of the bytes takes about a
quarter of that time. Weights get one scale a column and 7 bits, since CPUs without VNNI add pairs
of 8-bit products in 16 bits, which 7 bits cannot overflow: the sums are
exact and the same on every x86 CPU. Activations get 8 bits and a scale that no other row of the
batch can move: a fixed 1/127 where they lie in [-1, 1] by construction, a scale of each row
elsewhere. One scale for the whole batch, as onnxruntime's dynamic quantisation takes, would let
neighbours change a row's answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from siserve_training.export.graph import ABSENT, GraphBuilder, Value

__all__ = ["Affine", "Matrix", "Rows"]

_LEVELS = 63.0  # of a weight, to either side of 0
_ACTIVATION_LEVELS = 127.0
_ZERO_POINT = 128
_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Rows:
    """Activations: floats, and their 8-bit form where products want one.

    Attributes:
        floats: (R, F).
        integers: (R, F) uint8, None for products in float32.
        scales: of each row, (R, 1); None for 1/127 throughout.
    """

    floats: Value
    integers: Value | None = None
    scales: Value | None = None

    @classmethod
    def of(cls, g: GraphBuilder, floats: Value, is_bounded: bool) -> Rows:
        """Give activations the form that the graph's products want.

        Args:
            g: the graph; its precision decides.
            floats: (R, F).
            is_bounded: whether they lie in [-1, 1] by construction.
        """
        if g.precision == "float32":
            return cls(floats)
        if is_bounded:
            scale, zero = g.real(1.0 / _ACTIVATION_LEVELS), g.byte(_ZERO_POINT)
            return cls(floats, g.op("QuantizeLinear", floats, scale, zero))
        largest = g.reduce("ReduceMax", g.op("Abs", floats), 1)  # (R,)
        steps = g.op("Mul", g.op("Max", largest, g.real(1.0)), g.real(1.0 / _ACTIVATION_LEVELS))
        zeros = g.op("Expand", g.byte(_ZERO_POINT), g.op("Shape", largest))  # (R,)
        quantised = g.op("QuantizeLinear", floats, steps, zeros, axis=0)
        return cls(floats, quantised, g.unsqueeze(steps, 1))


@dataclass(frozen=True)
class Matrix:
    """Weights of a product: floats, or 7-bit integers that are made when the graph is loaded.

    Attributes:
        weights: (F, N), float32 or int8.
        scales: of each column, (N,); None for float32.
    """

    weights: Value
    scales: Value | None = None

    @classmethod
    def of(cls, g: GraphBuilder, kernel: Value) -> Matrix:
        """Give weights, (F, N), the form that the graph's products want."""
        if g.precision == "float32":
            return cls(kernel)
        largest = g.reduce("ReduceMax", g.op("Abs", kernel), 0)  # (N,)
        scales = g.op("Mul", g.op("Max", largest, g.real(1e-30)), g.real(1.0 / _LEVELS))
        levels = g.op("Round", g.op("Div", kernel, scales))  # half to even
        return cls(g.cast(levels, "int8"), scales)


@dataclass(frozen=True)
class Affine:
    """A linear layer: rows times a matrix, plus a bias, (N,)."""

    matrix: Matrix
    bias: Value

    @classmethod
    def of(cls, g: GraphBuilder, kernel: Value, bias: Value) -> Affine:
        """Prepare a layer in the outermost graph, where onnxruntime packs its weights once."""
        return cls(Matrix.of(g, kernel), bias)

    def apply(self, b: GraphBuilder, rows: Rows) -> Value:
        """Emit the layer, (R, F) to (R, N)."""
        if rows.integers is None or self.matrix.scales is None:
            return b.op("Add", b.op("MatMul", rows.floats, self.matrix.weights), self.bias)
        fixed = b.real(1.0 / _ACTIVATION_LEVELS if rows.scales is None else 1.0)
        given = [rows.integers, self.matrix.weights, fixed, self.matrix.scales, b.byte(_ZERO_POINT)]
        if rows.scales is None:
            given += [ABSENT, self.bias]
            return b.op("MatMulIntegerToFloat", *given, domain=_CONTRIB)
        product = b.op("MatMulIntegerToFloat", *given, domain=_CONTRIB)
        return b.op("Add", b.op("Mul", product, rows.scales), self.bias)
