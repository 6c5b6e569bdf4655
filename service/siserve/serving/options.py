"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from siserve.serving.admission import RateLimit
from siserve.serving.engine import EngineOptions
from siserve.serving.logs import Format
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement
from siserve.serving.tls import CertificateFiles

__all__ = ["ConnectionLimits", "ServerOptions", "join_address"]


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take of the server.

    Attributes:
        max_message_bytes: the library refuses a larger message unread.
        max_metadata_bytes: of the headers of a call.
        max_streams: calls at a time.
        idle_seconds: a connection without a call is closed after this time.
        handshake_seconds: one that has not said what it wants is closed after this time.
        seconds: any is told to end after this time, a tenth more or less, and its calls have
            `drain_seconds` to; one whose calls never come to an end, or never began, ends too.
    """

    max_message_bytes: int = 2 << 20
    max_metadata_bytes: int = 16 << 10
    max_streams: int = 256
    idle_seconds: float = 300.0
    handshake_seconds: float = 5.0
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse limits under which no connection could live."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be more than 0, got {value}")


@dataclass(frozen=True)
class ServerOptions:
    """Options of `siserve serve`; the command line documents them.

    Attributes:
        models: folders of bundles, the default one first; none = the embedded one.
        model_dir: folder of bundles that is watched; None = there is none.
        watch_seconds: between two looks at it; 0 = only at the start and when told.
        admin: whether models can be changed by a call.
        port: 0 picks a free one; so do `http_port` and `metrics_port`.
        rpc_processes: how many take the calls and hand them to the engine; 0 = the engine's own.
        http_port: of the HTTP door, on the same host; None = there is none.
        notice_seconds: between NOT_SERVING and the first refusal, so that balancers look away.
        drain_seconds: how long calls in flight may take after SIGTERM.
        reflection: None = on unless keys are asked for.
        tls: None = in the open.
        insecure: whether others than this machine may be served in the open.
        otlp_endpoint: where traces are sent; "" = nowhere.
        exemplars: whether the times of calls in the metrics name a trace each, where there is one;
            scrapers see it who ask for OpenMetrics.
        keys: file of the keys that are asked for; None = everybody may call.
        log_format: of each process that the server is made of.
    """

    models: tuple[Path, ...] = ()
    model_dir: Path | None = None
    watch_seconds: float = 2.0
    admin: bool = False
    placement: Placement = field(default_factory=Placement)
    host: str = "127.0.0.1"
    port: int = 50051
    rpc_processes: int = 0
    http_port: int | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    drain_seconds: float = 30.0
    notice_seconds: float = 0.2
    reflection: bool | None = None
    tls: CertificateFiles | None = None
    insecure: bool = False
    otlp_endpoint: str = ""
    exemplars: bool = False
    keys: Path | None = None
    log_format: Format = "text"
    limits: RequestLimits = field(default_factory=RequestLimits)
    engine: EngineOptions = field(default_factory=EngineOptions)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    rate: RateLimit = field(default_factory=RateLimit)

    @property
    def tells_api(self) -> bool:
        """Whether the server tells its API by reflection."""
        return self.keys is None if self.reflection is None else self.reflection

    @property
    def message_bytes(self) -> int:
        """Largest message: a request whose text is too long is still read, to say what is wrong."""
        return max(self.connections.max_message_bytes, 4 * self.limits.max_text_bytes)

    def page_url(self, port: int) -> str:
        """Where the page is, if the HTTP door is at a port."""
        return f"{'https' if self.tls else 'http'}://{join_address(self.host, port)}/"


def join_address(host: str, port: int) -> str:
    """Write a host, which may be an IPv6 address, and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
