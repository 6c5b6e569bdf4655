"""The HTTP port for machines: Prometheus metrics, and probes for who cannot speak gRPC over TLS."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from siserve.bundle.errors import SiserveError

__all__ = ["MetricsServer", "serve_metrics"]

Probe = Callable[[], bool]


class MetricsServer:
    """The HTTP server that Prometheus scrapes, in a thread of its own."""

    def __init__(self, server: WSGIServer) -> None:
        """Start to answer."""
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, daemon=True)
        self._thread.start()
        self.port = int(server.server_port)

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(
    registry: CollectorRegistry,
    probes: Mapping[str, Probe],
    host: str,
    port: int,
    gather: Callable[[], None] | None = None,
) -> MetricsServer:
    """Expose metrics under /metrics and each probe under its path; port 0 picks a free one.

    Args:
        registry: the metrics.
        probes: by their paths.
        host: where to listen.
        port: where to listen.
        gather: sees to it that all is counted before the metrics are told; in a thread.

    Raises:
        SiserveError: if the port cannot be had.
    """
    metrics: Any = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environment["PATH_INFO"]
        if path in ("/metrics", "/"):
            if gather is not None:
                gather()
            page: Iterable[bytes] = metrics(environment, start)
            return page
        probe = probes.get(path)
        status = "404 Not Found" if probe is None else "200 OK" if probe() else _NOT_NOW
        start(status, [("Content-Type", "text/plain")])
        return [status.partition(" ")[2].encode() + b"\n"]

    kind = _ThreadingServer6 if ":" in host else _ThreadingServer
    try:
        return MetricsServer(make_server(host, port, answer, kind, _QuietHandler))
    except OSError as error:
        raise SiserveError(
            f"cannot listen on {host}:{port} for metrics ({os.strerror(error.errno or 0)}); "
            "free the port or choose another with --metrics-port (0 = any)"
        ) from None


_NOT_NOW = "503 Service Unavailable"


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 5.0  # of a connection that sends nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Keep scrapes out of the log."""
