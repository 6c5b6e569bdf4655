"""Frames between two processes of one server: lines of JSON over a pair of sockets.

The pair has no name that others could open, and JSON holds numbers and text alone: whoever takes
over a process that reads the network can say nothing here that would run as code. A number comes
out as it went in, to the last bit.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, cast

__all__ = ["Hear", "Link", "open_link"]

#: Takes the kind of a frame and what belongs to it.
Hear = Callable[..., None]


class Link(asyncio.Protocol):
    """One end; for the thread of its event loop alone.

    Args:
        hear: told each frame, in the order of sending.
        lost: told once that the other end is gone, or said what is no frame.
    """

    def __init__(self, hear: Hear, lost: Callable[[], None]) -> None:
        """Be told by open_link() where to write."""
        self._hear, self._tell_lost = hear, lost
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def send(self, kind: str, *values: Any) -> None:
        """Send a frame; nothing happens where the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps((kind, *values), separators=(",", ":")).encode())
            self._transport.write(b"\n")

    def close(self) -> None:
        """Let go of the other end, once it has been sent what was to be."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes; called by the event loop, which closes the link if this fails."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, *values = json.loads(line)
            self._hear(kind, *values)

    def connection_lost(self, error: Exception | None) -> None:
        """End; called by the event loop."""
        self._transport = None
        self._tell_lost()


async def open_link(end: socket.socket, hear: Hear, lost: Callable[[], None]) -> Link:
    """Make a link of one end of a pair of sockets; see Link."""
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: Link(hear, lost), sock=end)
    return link
