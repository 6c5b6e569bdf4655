"""The life of a server: bind, load, warm up, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from siserve.bundle.errors import SiserveError
from siserve.serving.calls import OpenCalls
from siserve.serving.dialog_model import DialogModel, load_model
from siserve.serving.doors import SERVICE, dialog_handler
from siserve.serving.gate import Gate, ReflectionGuard, check_exposure
from siserve.serving.keys import Keyring
from siserve.serving.metrics import Metrics, serve_metrics
from siserve.serving.models import Models, embedded_bundle
from siserve.serving.options import ServerOptions
from siserve.serving.servicer import DialogServicer
from siserve.serving.sessions import default_threads
from siserve.serving.tls import Certificate, server_credentials

__all__ = ["load_models", "run_server"]

#: Health is NOT_SERVING for this long before calls are refused, so that balancers can look away.
NOTICE_SECONDS = 0.2

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
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options, announce))


def load_models(options: ServerOptions, metrics: Metrics) -> Models:
    """Check and load every bundle, and warm each model up."""
    paths = options.models or (embedded_bundle(),)
    models = Models(
        [
            load_model(
                path,
                options.device,
                options.threads or default_threads(),
                options.limits,
                options.engine,
                metrics.engine_observer(),
            )
            for path in paths
        ]
    )
    for model in models.all:
        model.start()
        metrics.model_loaded(model)
    return models


async def _serve(options: ServerOptions, announce: Callable[[str], None]) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    metrics = Metrics()
    gate = Gate(Keyring(options.keys) if options.keys else None)
    server = grpc.aio.server(
        interceptors=(ReflectionGuard(gate),), options=_channel_options(options)
    )
    port = _bind(server, options, metrics)  # before the models load: a taken port is told at once
    scraped = serve_metrics(metrics, options.metrics_host, options.metrics_port)
    try:
        models = await asyncio.to_thread(load_models, options, metrics)
        calls = OpenCalls()
        servicer = DialogServicer(models, metrics, options)
        server.add_generic_rpc_handlers((dialog_handler(servicer, metrics, calls, gate),))
        health_service = _add_standard_services(server, options.tells_api)
        await server.start()
        await _set_health(health_service, health_pb2.HealthCheckResponse.SERVING)
        _log.info("metrics on http://%s:%d/metrics", options.metrics_host, scraped.port)
        announce(f"serving {_names(models)} on {_join(options.host, port)}")
        await signals.get()
        _log.info("draining; a second signal stops at once")
        await _set_health(health_service, health_pb2.HealthCheckResponse.NOT_SERVING)
        drain = asyncio.create_task(_drain(server, calls, options.drain_seconds))
        again = asyncio.create_task(signals.get())
        done, _ = await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        in_time = drain in done and drain.result()
        drain.cancel()
        again.cancel()
        await server.stop(0)
        await asyncio.to_thread(_stop_all, models.all, in_time)
        return 0 if in_time else 1
    finally:
        scraped.stop()


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    limits = options.connections
    return [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.max_connection_idle_ms", round(1000 * limits.idle_seconds)),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.handshake_seconds)),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second server
    ]


async def _drain(server: grpc.aio.Server, calls: OpenCalls, seconds: float) -> bool:
    """Answer what was taken, refuse what comes; return whether all was answered in time.

    The doors refuse calls before the library does: at its stop() it cancels calls that it has
    received and not handed on yet, which a client would not try again elsewhere.
    """
    await asyncio.sleep(NOTICE_SECONDS)
    calls.close()
    give_up = asyncio.get_running_loop().time() + seconds
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


def _bind(server: grpc.aio.Server, options: ServerOptions, metrics: Metrics) -> int:
    check_exposure("--host", options.host, options.tls is not None, options.insecure)
    address = _join(options.host, options.port)
    try:
        if options.tls is None:
            port = server.add_insecure_port(address)
        else:
            certificate = Certificate(options.tls, metrics.certificate_taken)
            port = server.add_secure_port(address, server_credentials(certificate))
    except RuntimeError:
        port = 0
    if not port:
        raise SiserveError(
            f"cannot listen on {address}; free the port or choose another with --port (0 = any)"
        )
    return int(port)


def _add_standard_services(server: grpc.aio.Server, with_reflection: bool) -> Any:
    health_service = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    if with_reflection:
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return health_service


async def _set_health(service: Any, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
    for name in ("", SERVICE):
        await service.set(name, status)


def _names(models: Models) -> str:
    return ",".join(model.bundle.manifest.full_name for model in models.all)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
