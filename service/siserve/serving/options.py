"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from siserve.serving.engine import EngineOptions
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Device

__all__ = ["ServerOptions"]


@dataclass(frozen=True)
class ServerOptions:
    """Options of `siserve serve`; the command line documents them.

    Attributes:
        models: folders of bundles, the default one first; none = the embedded one.
        port: 0 picks a free one; so does `metrics_port`.
        threads: CPU threads of one decoder run; 0 = as many as suit the machine.
        drain_seconds: how long calls in flight may take after SIGTERM.
    """

    models: tuple[Path, ...] = ()
    device: Device = "auto"
    host: str = "127.0.0.1"
    port: int = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    threads: int = 0
    drain_seconds: float = 30.0
    reflection: bool = True
    limits: RequestLimits = field(default_factory=RequestLimits)
    engine: EngineOptions = field(default_factory=EngineOptions)
