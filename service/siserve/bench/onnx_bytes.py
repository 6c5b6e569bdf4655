"""Write an ONNX model of one product of matrices, without the onnx package, which only trains have.

Field numbers are those of onnx/onnx.proto. The second factor is a constant, as weights are, so that
onnxruntime packs it when it loads the model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["product_model"]

_OPSET = 17
_IR_VERSION = 8
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def product_model(weights: NDArray[np.float32] | NDArray[np.int8]) -> bytes:
    """Return the model y = x @ weights.

    Args:
        weights: float32 makes a MatMul of float32; int8 makes a MatMulInteger, x in uint8.
    """
    inner, columns = weights.shape
    is_float = weights.dtype == np.float32
    x_type, y_type = ("float32", "float32") if is_float else ("uint8", "int32")
    kind = "MatMul" if is_float else "MatMulInteger"
    node = _text(1, "x") + _text(1, "weights") + _text(2, "y") + _text(4, kind)
    constant = (
        b"".join(_number(1, size) for size in weights.shape)
        + _number(2, _TYPES[weights.dtype.name])
        + _text(8, "weights")
        + _bytes(9, weights.tobytes())
    )
    graph = (
        _bytes(1, node)
        + _text(2, "product")
        + _bytes(5, constant)
        + _bytes(11, _value("x", x_type, inner))
        + _bytes(12, _value("y", y_type, columns))
    )
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET))


def _value(name: str, dtype: str, columns: int) -> bytes:
    """A ValueInfoProto of shape (rows, columns), rows left open."""
    shape = _bytes(1, _text(2, "rows")) + _bytes(1, _number(1, columns))
    tensor = _number(1, _TYPES[dtype]) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
