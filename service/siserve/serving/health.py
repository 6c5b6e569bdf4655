"""How a server is: standard gRPC health under several names, and the same for HTTP probes.

``liveness`` is NOT_SERVING when a restart would help: the decoder has work and has not moved for
a minute. ``readiness``, "" and the service's own name are SERVING from the moment that the models
answer to the moment that a drain begins. A full queue changes neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from siserve.serving.doors import SERVICE

__all__ = ["LIVENESS", "READINESS", "Health", "Tell", "add_health"]

LIVENESS, READINESS = "liveness", "readiness"
STALL_SECONDS = 60.0
_BEAT_SECONDS = 0.5
_READY_NAMES = ("", SERVICE, READINESS)
_STATUS = health_pb2.HealthCheckResponse.ServingStatus


#: Says of some names whether they are SERVING.
Tell = Callable[[Sequence[str], bool], Awaitable[None]]


def add_health(server: grpc.aio.Server, meet: Callable[[str], None] | None = None) -> Tell:
    """Add the health service; return what changes its answers.

    Args:
        server: where it is added.
        meet: told the peer of each probe; None = nobody is.
    """
    servicer: Any = _Servicer(meet)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    async def tell(names: Sequence[str], is_serving: bool) -> None:
        for name in names:
            await servicer.set(name, _STATUS.SERVING if is_serving else _STATUS.NOT_SERVING)

    return tell


class Health:
    """What probes are told.

    Args:
        tell: takes what gRPC probes are told, in this process or in others.
    """

    def __init__(self, tell: Tell) -> None:
        """Begin neither live nor ready; see begin()."""
        self._tell = tell
        self._is_ready = False
        self._is_live = True
        self._beat = time.monotonic()

    async def begin(self) -> None:
        """Be live, and not ready yet."""
        await self._tell((LIVENESS,), True)
        await self.set_ready(False)

    async def set_ready(self, is_ready: bool) -> None:
        """Tell whether requests should come here."""
        self._is_ready = is_ready
        await self._tell(_READY_NAMES, is_ready)

    async def watch(self, stalled_seconds: Callable[[], float]) -> None:
        """Ask again and again for how long work has stood still, and tell liveness by it."""
        while True:
            self._beat = time.monotonic()
            is_live = stalled_seconds() < STALL_SECONDS
            if is_live is not self._is_live:
                self._is_live = is_live
                await self._tell((LIVENESS,), is_live)
            await asyncio.sleep(_BEAT_SECONDS)

    def is_live(self) -> bool:
        """Answer a probe from another thread, which also sees whether the event loop runs."""
        return self._is_live and time.monotonic() - self._beat < STALL_SECONDS

    def is_ready(self) -> bool:
        """Answer a probe from another thread."""
        return self._is_ready and self.is_live()


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc, name-defined]
    """The standard one, which tells who asks."""

    def __init__(self, meet: Callable[[str], None] | None) -> None:
        super().__init__()
        self._meet = meet

    async def Check(self, request: Any, context: Any) -> Any:
        """Answer a probe."""
        if self._meet is not None:
            self._meet(context.peer())
        return await super().Check(request, context)
