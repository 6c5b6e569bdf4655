"""Calls in an open loop by frames of our own: a tenth of what a call costs by the library.

Whoever makes the load shares the machine with the server; what the load costs is missing there.
"""

from __future__ import annotations

import random
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable

from .http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    call_headers,
    frame,
)
from .load import Outcome, say

__all__ = ["raw_open_loop"]

_WINDOW = 4
_NO_TABLE, _FIRST_WINDOW = (1, 0), (4, 2**31 - 1)
_STATUS = re.compile(rb"grpc-status[\x01\x02]([0-9]{1,2})")
_NAMES = {0: "OK", 3: "INVALID_ARGUMENT", 8: "RESOURCE_EXHAUSTED", 14: "UNAVAILABLE"}
_RESET = 3


class _Connection:
    """One connection and the calls that are open on it."""

    def __init__(self, address: str, ended: Callable[[Outcome], None]) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self._ended, self._headers = ended, call_headers(address)
        self._stream, self._unread = 1, b""
        self.open: dict[int, tuple[float, str]] = {}
        settings = b"".join(struct.pack(">HI", *pair) for pair in (_NO_TABLE, _FIRST_WINDOW))
        window = frame(8, 0, 0, struct.pack(">I", 2**31 - 1 - 65535))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + window)
        self.socket.settimeout(60)

    def begin(self, message: bytes) -> None:
        """Begin a call."""
        stream, self._stream = self._stream, self._stream + 2
        self.open[stream] = (time.monotonic(), "")
        framed = b"\0" + struct.pack(">I", len(message)) + message
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, stream, self._headers)
            + frame(DATA, END_STREAM, stream, framed)
        )

    def read(self) -> None:
        """Take in what has come."""
        self._unread += self.socket.recv(1 << 18)
        at = 0
        while len(self._unread) - at >= 9:
            size = int.from_bytes(self._unread[at : at + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self._unread, at + 3)
            if len(self._unread) - at < 9 + size:
                break
            self._take(kind, flags, stream, self._unread[at + 9 : at + 9 + size])
            at += 9 + size
        self._unread = self._unread[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == _RESET and stream in self.open:
            began, code = self.open.pop(stream)
            self._end(began, code or f"RESET {int.from_bytes(payload, 'big')}")
        elif kind == HEADERS and (found := _STATUS.search(payload)):
            code = _NAMES.get(int(found[1]), f"status {found[1].decode()}")
            began, _ = self.open.pop(stream)
            self._end(began, code)

    def _end(self, began: float, code: str) -> None:
        self._ended(Outcome(began, time.monotonic() - began, code))


def raw_open_loop(
    address: str, per_second: float, seconds: float, n: int, seed: int = 1
) -> list[Outcome]:
    """Begin calls at random moments of a steady rate; see load.open_loop."""
    dice, outcomes = random.Random(seed), list[Outcome]()
    messages = [say(dice, n) for _ in range(256)]
    pool = [_Connection(address, outcomes.append) for _ in range(_WINDOW)]
    watch = selectors.DefaultSelector()
    for connection in pool:
        watch.register(connection.socket, selectors.EVENT_READ, connection)
    began = at = time.monotonic()
    patience = began + seconds + 60
    while (now := time.monotonic()) < patience:
        while at < now and at < began + seconds:
            min(pool, key=lambda each: len(each.open)).begin(dice.choice(messages))
            at += dice.expovariate(per_second)
        if at >= began + seconds and not any(connection.open for connection in pool):
            break
        for key, _ in watch.select(max(0.0, min(at - time.monotonic(), 0.01))):
            key.data.read()
    for connection in pool:
        connection.socket.close()
    return outcomes
