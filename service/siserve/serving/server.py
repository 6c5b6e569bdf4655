"""The life of a server: bind, load, warm up, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from siserve.bundle.errors import SiserveError, UsageError
from siserve.serving.admin import AdminServicer
from siserve.serving.calls import OpenCalls
from siserve.serving.cores import take_turns
from siserve.serving.dialog_model import DialogModel
from siserve.serving.doors import ADMIN, DIALOG, Hall, Overflow, service_handler
from siserve.serving.gate import (
    Gate,
    ReflectionGuard,
    check_exposure,
    is_loopback,
    reflection_handler,
)
from siserve.serving.health import Health
from siserve.serving.http_door import HttpDoor
from siserve.serving.http_routes import Routes
from siserve.serving.keys import Keyring
from siserve.serving.library import Library, open_library
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models
from siserve.serving.options import ServerOptions
from siserve.serving.scrape import serve_metrics
from siserve.serving.servicer import DialogServicer
from siserve.serving.tls import Certificate, Handshakes, server_credentials
from siserve.serving.tracing import Tracing

__all__ = ["run_server"]

#: Streams that are open when the last call has ended get this long.
STREAM_SECONDS = 0.3

_log = logging.getLogger(__name__)


def run_server(options: ServerOptions, announce: Callable[[str], None]) -> int:
    """Serve until a signal; return the exit code.

    Args:
        options: what to serve, and where.
        announce: takes the one line that says that the server is ready.

    Returns:
        0 after SIGTERM or SIGINT once every call was answered; 1 if a second signal or
        `drain_seconds` cut calls short.

    Raises:
        SiserveError: if the server cannot start.
    """
    take_turns()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options, announce))


async def _serve(options: ServerOptions, announce: Callable[[str], None]) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    metrics = Metrics()
    asks_certificates = options.tls is not None and options.tls.client_ca is not None
    gate = Gate(Keyring(options.keys) if options.keys else None, asks_certificates)
    _check_admin(options)
    tracing = Tracing(options.otlp_endpoint) if options.otlp_endpoint else None
    server = grpc.aio.server(options=_channel_options(options))
    handshakes = Handshakes(metrics.handshake_began, metrics.connection_met)
    # Before the models load: a taken port is told at once.
    port = _bind(server, options, metrics, handshakes)
    meet = handshakes.meet if options.tls else None
    state = Health(server, meet)
    probes = {"/livez": state.is_live, "/readyz": state.is_ready}
    scraped = serve_metrics(metrics.registry, probes, options.metrics_host, options.metrics_port)
    try:
        calls = OpenCalls()
        hall = Hall(metrics, calls, gate, tracing, options.exemplars, meet)
        servicers = _add_services(server, options, hall)
        door = HttpDoor(Routes(servicers, hall), options.connections, options.message_bytes)
        if options.http_port is not None:
            await _open_http(door, options, metrics, handshakes)
        await state.begin()
        await server.start()
        library = await asyncio.to_thread(open_library, options, metrics)
        servicers[DIALOG.full_name] = DialogServicer(library.models, metrics, options)
        servicers[ADMIN.full_name] = AdminServicer(library, options.keys is not None)
        gc.freeze()  # what is loaded stays; to look through it holds all calls up for 30 ms
        watchers = [
            asyncio.create_task(library.watch(options.watch_seconds)),
            asyncio.create_task(state.watch(lambda: _stalled_seconds(library))),
        ]
        calls.open()
        await state.set_ready(True)
        _log.info("metrics on http://%s:%d/metrics", options.metrics_host, scraped.port)
        announce(f"serving {_names(library.models)} on {_join(options.host, port)}")
        await signals.get()
        _log.info("draining; a second signal stops at once")
        await state.set_ready(False)
        drain = asyncio.create_task(_drain(server, calls, options))
        again = asyncio.create_task(signals.get())
        done, _ = await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        in_time = drain in done and drain.result()
        for task in (drain, again, *watchers):
            task.cancel()
        await server.stop(0)
        await door.close()
        await asyncio.to_thread(_stop_all, library.models.all, in_time)
        return 0 if in_time else 1
    finally:
        await server.stop(0)
        scraped.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)


async def _open_http(
    door: HttpDoor, options: ServerOptions, metrics: Metrics, handshakes: Handshakes
) -> None:
    certificate = Certificate(options.tls, metrics.certificate_taken) if options.tls else None
    port = await door.open(options.host, options.http_port or 0, certificate, handshakes)
    scheme = "https" if certificate else "http"
    _log.info("page on %s://%s/", scheme, _join(options.host, port))


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


def _check_admin(options: ServerOptions) -> None:
    if options.admin and options.keys is None and not is_loopback(options.host):
        raise UsageError(
            f"--admin on {options.host} would let anybody change the models; "
            "give --keys-file with a key marked admin"
        )


def _stalled_seconds(library: Library) -> float:
    return max(model.engine.stalled_seconds for model in library.models.all)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
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
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server
    ]


async def _drain(server: grpc.aio.Server, calls: OpenCalls, options: ServerOptions) -> bool:
    """Answer what was taken, refuse what comes; return whether all was answered in time.

    The doors refuse calls before the library does: at its stop() it cancels calls that it has
    received and not handed on yet, which a client would not try again elsewhere.
    """
    await asyncio.sleep(options.notice_seconds)
    calls.close()
    give_up = asyncio.get_running_loop().time() + options.drain_seconds
    idle_looks = 0
    while idle_looks < 5 and asyncio.get_running_loop().time() < give_up:
        await asyncio.sleep(0.02)
        idle_looks = 0 if calls.number else idle_looks + 1
    all_answered = not calls.number
    await server.stop(STREAM_SECONDS)
    return all_answered


def _stop_all(models: tuple[DialogModel, ...], finish: bool) -> None:
    for model in models:
        model.stop(finish)


def _bind(
    server: grpc.aio.Server, options: ServerOptions, metrics: Metrics, handshakes: Handshakes
) -> int:
    check_exposure("--host", options.host, options.tls is not None, options.insecure)
    address = _join(options.host, options.port)
    try:
        if options.tls is None:
            port = server.add_insecure_port(address)
        else:
            certificate = Certificate(options.tls, metrics.certificate_taken)
            port = server.add_secure_port(address, server_credentials(certificate, handshakes))
    except RuntimeError:
        port = 0
    if not port:
        raise SiserveError(
            f"cannot listen on {address}; free the port or choose another with --port (0 = any)"
        )
    return int(port)


def _names(models: Models) -> str:
    return ",".join(model.full_name for model in models.all)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
