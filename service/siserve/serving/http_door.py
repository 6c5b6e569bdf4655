"""HTTP/1.1 for the routes: connections, limits and time-outs, on h11."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable

import h11

from siserve.bundle.errors import SiserveError
from siserve.serving.http_routes import Reply, Request, Routes
from siserve.serving.options import ConnectionLimits
from siserve.serving.tls import Certificate, Handshakes

__all__ = ["HttpDoor"]

MAX_CONNECTIONS = 512
_READ_BYTES = 8 << 10  # small, so that headers are seen to be too long while they come
_CERTIFICATE_SECONDS = 1.0
_log = logging.getLogger(__name__)


class HttpDoor:
    """A port that speaks HTTP/1.1.

    Args:
        routes: what is answered.
        limits: what a connection may take.
        message_bytes: largest body.
    """

    def __init__(self, routes: Routes, limits: ConnectionLimits, message_bytes: int) -> None:
        """Listen nowhere before open()."""
        self._routes, self._limits, self._message_bytes = routes, limits, message_bytes
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._is_closing = False
        self._met: Callable[[], None] | None = None

    async def open(
        self,
        host: str,
        port: int,
        certificate: Certificate | None,
        handshakes: Handshakes | None = None,
        shares_port: bool = False,
    ) -> int:
        """Listen, beside others if the port is shared with them; return the port.

        Raises:
            SiserveError: if the port cannot be had.
        """
        context = certificate.context() if certificate else None
        if context is not None and handshakes is not None:
            context.sni_callback = lambda *_: handshakes.begin()
            self._met = handshakes.met
        try:
            self._server = await asyncio.start_server(
                self._serve,
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=self._limits.handshake_seconds if context else None,
                limit=_READ_BYTES,
                reuse_port=shares_port or None,
            )
        except OSError:
            raise SiserveError(
                f"cannot listen on {host}:{port} for HTTP; free the port or choose another with "
                "--http-port (0 = any)"
            ) from None
        if certificate is not None and context is not None:
            self._refresher = asyncio.create_task(_refresh(certificate, context))
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more connections, and end those that are open."""
        self._is_closing = True
        if self._refresher is not None:
            self._refresher.cancel()
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._met is not None:
            self._met()
        if task is None or self._is_closing or len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await _Connection(reader, writer, self._routes, self._limits, self._message_bytes).run()
        except (OSError, asyncio.CancelledError, TimeoutError, h11.RemoteProtocolError):
            pass  # the other end is gone, or says nothing, or we close
        except Exception:
            _log.exception("a connection failed")
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), 1)


class _Connection:
    """One connection: requests one after another until either end has enough."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        routes: Routes,
        limits: ConnectionLimits,
        message_bytes: int,
    ) -> None:
        self._reader, self._writer, self._routes = reader, writer, routes
        self._limits, self._message_bytes = limits, message_bytes
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_metadata_bytes)

    async def run(self) -> None:
        patience = self._limits.handshake_seconds
        while True:
            try:
                request = await self._receive(patience)
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint, "this is not HTTP/1.1 as it should be")
                return
            except _TooLarge:
                await self._refuse(413, f"at most {self._message_bytes} bytes are taken")
                return
            if request is None:
                return
            reply = await self._answer(request)
            if reply is None:
                return
            await self._send(reply, request.method == "HEAD")
            if self._wire.our_state is h11.MUST_CLOSE:
                return
            self._wire.start_next_cycle()
            patience = self._limits.idle_seconds

    async def _receive(self, patience: float) -> Request | None:
        """Read a request: its first bytes within `patience`, more within the handshake's time."""
        head, body = None, bytearray()
        while True:
            event = self._wire.next_event()
            if event is h11.NEED_DATA:
                if self._wire.they_are_waiting_for_100_continue:
                    told = h11.InformationalResponse(status_code=100, headers=[])
                    self._writer.write(self._wire.send(told) or b"")
                data = await asyncio.wait_for(self._reader.read(_READ_BYTES), patience)
                self._wire.receive_data(data)
                patience = self._limits.handshake_seconds
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._message_bytes:
                    raise _TooLarge
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in head.headers}
                method, path = head.method.decode(), head.target.decode("latin-1")
                return Request(method, path, headers, bytes(body))
            else:
                return None

    async def _answer(self, request: Request) -> Reply | None:
        """Answer a request; if the other end goes away meanwhile, stop its work: None."""
        answering = asyncio.create_task(self._routes.answer(request))
        try:
            while not answering.done():
                more = asyncio.create_task(self._reader.read(_READ_BYTES))
                await asyncio.wait({answering, more}, return_when=asyncio.FIRST_COMPLETED)
                if not more.done():
                    more.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await more
                elif data := more.result():
                    self._wire.receive_data(data)
                    if len(self._wire.trailing_data[0]) > self._message_bytes:
                        return None
                else:
                    return None
            return answering.result()
        finally:
            if not answering.done():
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answering

    async def _refuse(self, status: int, text: str) -> None:
        if self._wire.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send(Reply.of_error(status, "INVALID_ARGUMENT", text), False)

    async def _send(self, reply: Reply, without_body: bool) -> None:
        headers = [*reply.headers.items(), ("Content-Length", str(len(reply.body)))]
        head = h11.Response(status_code=reply.status, headers=headers)
        parts = [self._wire.send(head)]
        if not without_body:
            parts.append(self._wire.send(h11.Data(data=reply.body)))
        parts.append(self._wire.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part or b"" for part in parts))
        await asyncio.wait_for(self._writer.drain(), self._limits.idle_seconds)


class _TooLarge(Exception):
    """A body beyond the limit."""


async def _refresh(certificate: Certificate, context: ssl.SSLContext) -> None:
    """Let a context follow its files; handshakes to come take what it holds then."""
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        if await asyncio.to_thread(certificate.refresh):
            certificate.load_into(context)
