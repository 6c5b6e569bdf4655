"""Protobuf messages broken on the level of their fields as well as of their bytes."""

from __future__ import annotations

import random
from functools import cache

from siserve.client.answer import make_request, make_score_request
from siserve.v1 import dialog_pb2

__all__ = ["METHODS", "mutate", "seeds"]

_DIALOG, _ADMIN = "/siserve.v1.DialogService", "/siserve.v1.AdminService"
#: Path of each method, and whether it streams.
METHODS = {
    "generate": (f"{_DIALOG}/GenerateResponses", False),
    "stream": (f"{_DIALOG}/StreamResponses", True),
    "vary": (f"{_DIALOG}/VaryResponse", False),
    "score": (f"{_DIALOG}/ScoreResponses", False),
    "model": (f"{_DIALOG}/GetModel", False),
    "load": (f"{_ADMIN}/LoadModel", False),
}
_NUMBERS = (0, 1, 2, 63, 127, 128, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xc0\x80",
    "\u202e\u0301\U0001f600".encode(),
    b"</s>",
    b"a" * 20_000,
    b"a " * 3000,
    "İ".encode() * 300,
)
_FLOATS = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff" * 4, b"\x01" * 4)
#: (number, wire type, content): content of a length-delimited field is without its length.
Field = tuple[int, int, bytes]


@cache
def seeds() -> list[tuple[str, bytes]]:
    """Messages to begin with, by method."""
    dialog = [("A", "do you have any pets"), ("B", "yes two dogs"), ("A", "oh really")]
    full = make_request(
        dialog, n=2, seed=7, temperature=0.5, top_k=5, top_p=0.9, max_tokens=2, responder="B"
    )
    plain = make_request(dialog[:1], n=1, max_tokens=2)
    stream = dialog_pb2.StreamResponsesRequest(generate=plain)
    vary = dialog_pb2.VaryResponseRequest(generate=plain, response="yes i do", noise_scale=0.5)
    score = make_score_request(dialog, ["yes i do", "no"], num_samples=4)
    model = dialog_pb2.GetModelRequest(model="m")
    messages = {
        "generate": (full, plain, full),
        "stream": (stream,),
        "vary": (vary,),
        "score": (score,),
        "model": (model,),
        "load": (model,),
    }
    return [(name, m.SerializeToString()) for name, group in messages.items() for m in group]


def mutate(dice: random.Random, message: bytes) -> bytes:
    """Break a message, mostly within its structure."""
    broken = message
    for _ in range(dice.randint(1, 3)):
        broken = _fields(dice, broken) if dice.random() < 0.7 else _bytes(dice, broken)
    return broken


def _fields(dice: random.Random, message: bytes, depth: int = 0) -> bytes:
    """Change one field of a message: its number, its type, its content, how often it comes."""
    fields = _parse(message)
    if not fields:
        return message + _write([(dice.randint(1, 20), 0, _varint(dice.choice(_NUMBERS)))])
    at = dice.randrange(len(fields))
    number, kind, content = fields[at]
    what = dice.randrange(7)
    if what == 0:
        del fields[at]
    elif what == 1:
        fields[at:at] = [fields[at]] * dice.choice((1, 2, 70, 300))
    elif what == 2:
        fields[at] = (dice.choice((1, 2, 3, 9, 15, 2**29 - 1)), kind, content)
    elif what == 3:
        fields[at] = (number, dice.choice((0, 1, 2, 5)), content)
    elif what == 4:
        dice.shuffle(fields)
    elif kind == 2 and depth < 3 and dice.random() < 0.6 and _parse(content):
        fields[at] = (number, kind, _fields(dice, content, depth + 1))
    else:
        fields[at] = (number, kind, _content(dice, kind))
    return _write(fields)


def _content(dice: random.Random, kind: int) -> bytes:
    if kind == 0:
        return _varint(dice.choice(_NUMBERS))
    if kind == 5:
        return dice.choice(_FLOATS)
    return dice.choice(_TEXTS) if kind == 2 else dice.randbytes(8)


def _bytes(dice: random.Random, message: bytes) -> bytes:
    broken = bytearray(message)
    place, what = dice.randrange(len(broken) + 1), dice.randrange(4)
    if what == 0 and place < len(broken):
        broken[place] = dice.choice((0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    elif what == 1:
        del broken[place : place + dice.randint(1, 8)]
    elif what == 2:
        broken[place:place] = dice.randbytes(dice.randint(1, 8))
    else:
        broken += broken[place : place + 40]
    return bytes(broken)


def _parse(message: bytes) -> list[Field]:
    """Read the fields of a message; an empty list where it has none or is broken."""
    fields, at = [], 0
    try:
        while at < len(message):
            key, at = _read_varint(message, at)
            kind, begin = key & 7, at
            if kind == 0:
                _, at = _read_varint(message, at)
            elif kind == 2:
                size, begin = _read_varint(message, at)
                at = begin + size
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return []
            if at > len(message):
                return []
            fields.append((key >> 3, kind, message[begin:at]))
    except IndexError:
        return []
    return fields


def _write(fields: list[Field]) -> bytes:
    parts = []
    for number, kind, content in fields:
        size = _varint(len(content)) if kind == 2 else b""
        parts.append(_varint(number << 3 | kind) + size + content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at
