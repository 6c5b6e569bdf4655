"""The doors of one process, from the bound port to the drain: gRPC, HTTP, health, reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from siserve.bundle.errors import SiserveError
from siserve.serving.admin import AdminServicer
from siserve.serving.admission import RateLimiter
from siserve.serving.calls import OpenCalls
from siserve.serving.doors import ADMIN, DIALOG, Hall, Overflow, service_handler
from siserve.serving.gate import Gate, ReflectionGuard, reflection_handler
from siserve.serving.health import add_health
from siserve.serving.keys import Keyring
from siserve.serving.library import Library
from siserve.serving.metrics import CallMetrics
from siserve.serving.options import ServerOptions, join_address
from siserve.serving.servicer import DialogServicer
from siserve.serving.tls import Certificate, Handshakes, server_credentials
from siserve.serving.tracing import Tracing

if TYPE_CHECKING:
    from siserve.serving.http_door import HttpDoor

__all__ = ["Front"]

#: Streams that are open when the last call has ended get this long.
STREAM_SECONDS = 0.3

_log = logging.getLogger(__name__)


class Front:
    """Takes calls and has servicers answer them.

    Args:
        options: of the server.
        metrics: told of calls and connections.
        shares_port: whether other processes listen at the same port.

    Raises:
        SiserveError: if the port cannot be had, or keys or certificate cannot be used.
    """

    def __init__(
        self, options: ServerOptions, metrics: CallMetrics, shares_port: bool = False
    ) -> None:
        """Bind the port; nobody is answered before begin()."""
        self._options, self._metrics, self._shares_port = options, metrics, shares_port
        asks_certificates = options.tls is not None and options.tls.client_ca is not None
        gate = Gate(Keyring(options.keys) if options.keys else None, asks_certificates)
        self._tracing = Tracing(options.otlp_endpoint) if options.otlp_endpoint else None
        self._handshakes = Handshakes(metrics.handshake_began, metrics.connection_met)
        self._server = grpc.aio.server(options=_channel_options(options, shares_port))
        self.port = self._bind()
        meet = self._handshakes.meet if options.tls else None
        self.tell = add_health(self._server, meet)
        self._calls = OpenCalls()
        self._hall = Hall(
            metrics, self._calls, gate, options.limits, self._tracing, options.exemplars, meet
        )
        self._servicers = _add_services(self._server, options, self._hall)
        self._door: HttpDoor | None = None

    async def begin(self) -> None:
        """Answer: health at once, calls by a refusal before there are servicers."""
        if self._options.http_port is not None:
            await self._open_http(self._options.http_port)
        await self._server.start()

    async def serve(self, library: Library) -> None:
        """Let calls be answered by the models of this process."""
        limiter = RateLimiter(self._options.rate)

        async def take(caller: str, responses: int) -> None:
            limiter.take(caller, responses)

        dialogs = DialogServicer(library.models, self._metrics, self._options, take)
        self.answer_by(dialogs, AdminServicer(library, self._options.keys is not None))

    def answer_by(self, dialogs: DialogServicer, admin: object) -> None:
        """Let calls be answered from now on by servicers, which may take the place of others."""
        self._servicers.update({DIALOG.full_name: dialogs, ADMIN.full_name: admin})
        self._calls.open()

    async def drain(self) -> bool:
        """Answer what was taken, refuse what comes; return whether all was answered in time.

        The doors refuse calls before the library does: at its stop() it cancels calls that it has
        received and not handed on yet, which a client would not try again elsewhere.
        """
        calls, clock = self._calls, asyncio.get_running_loop().time
        await asyncio.sleep(self._options.notice_seconds)
        calls.close()
        give_up = clock() + self._options.drain_seconds
        idle_looks = 0
        while idle_looks < 5 and clock() < give_up:
            await asyncio.sleep(0.02)
            idle_looks = 0 if calls.number else idle_looks + 1
        all_answered = not calls.number
        await self._server.stop(STREAM_SECONDS)
        return all_answered

    async def stop(self) -> None:
        """End what is still open."""
        await self._server.stop(0)
        if self._door is not None:
            await self._door.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
            self._tracing = None

    async def _open_http(self, port: int) -> None:
        from siserve.serving.http_door import HttpDoor  # late: most servers have none
        from siserve.serving.http_routes import Routes

        options = self._options
        routes = Routes(self._servicers, self._hall)
        self._door = HttpDoor(routes, options.connections, options.message_bytes)
        certificate = self._certificate()
        port = await self._door.open(
            options.host, port, certificate, self._handshakes, self._shares_port
        )
        if not self._shares_port:
            _log.info("page on %s", options.page_url(port))

    def _bind(self) -> int:
        address = join_address(self._options.host, self._options.port)
        certificate = self._certificate()
        try:
            if certificate is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = server_credentials(certificate, self._handshakes)
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise SiserveError(port_taken(address))
        return int(port)

    def _certificate(self) -> Certificate | None:
        files = self._options.tls
        return Certificate(files, self._metrics.certificate_taken) if files else None


def port_taken(address: str) -> str:
    """Say that the gRPC port cannot be had."""
    return f"cannot listen on {address}; free the port or choose another with --port (0 = any)"


def _add_services(server: grpc.aio.Server, options: ServerOptions, hall: Hall) -> dict[str, object]:
    """Add the services; return where their servicers belong once there are models."""
    services = [DIALOG, ADMIN] if options.admin else [DIALOG]
    servicers: dict[str, object] = {}
    handlers = [service_handler(each, servicers, hall) for each in services]
    # They are asked in this order: who refuses stands first.
    guards = (Overflow(servicers, hall), ReflectionGuard(hall.gate))
    server.add_generic_rpc_handlers((*guards, *handlers))
    if options.tells_api:
        names = [each.full_name for each in services]
        told = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        server.add_generic_rpc_handlers((reflection_handler(told),))
    return servicers


def _channel_options(options: ServerOptions, shares_port: bool) -> Sequence[tuple[str, int]]:
    limits = options.connections
    return [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.max_connection_idle_ms", round(1000 * limits.idle_seconds)),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.handshake_seconds)),
        ("grpc.max_connection_age_ms", round(1000 * limits.seconds)),
        ("grpc.max_connection_age_grace_ms", round(1000 * options.drain_seconds)),
        # A peer that vanished in the middle of a call is found out; clients may look as often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Else a port that is taken is an error, not a second server.
        ("grpc.so_reuseport", int(shares_port)),
    ]
