"""Read protobuf's wire form without a schema: enough to look at a message before trusting it."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["WireError", "as_message", "as_text", "fields"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field in order; values of fixed size come as bytes.

    Raises:
        WireError: where the bytes stop being protobuf.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise WireError(f"holds wire type {wire}")
        if position + size > end:
            raise WireError("ends within a field")
        yield number, message[position : position + size]
        position += size


def as_message(value: int | memoryview) -> memoryview:
    """Take a field's value as bytes."""
    if isinstance(value, int):
        raise WireError("holds a number where a message belongs")
    return value


def as_text(value: int | memoryview) -> str:
    """Take a field's value as UTF-8."""
    try:
        return bytes(as_message(value)).decode()
    except UnicodeDecodeError:
        raise WireError("holds text that is not UTF-8") from None


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError("holds a number of more than 10 bytes")
