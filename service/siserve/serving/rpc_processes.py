"""Processes that take calls before the one engine of this process: `--rpc-processes N`.

A Python process takes some thousand calls a second, a fast device decodes more. So N children each
listen at the same port (SO_REUSEPORT: the kernel gives every new connection to one of them), read,
check and encode requests and write the answers; this process decodes. It alone holds what there is
one of: models, queue and its bounds, rates of callers, metrics. Between a child and this process is
one pair of sockets (link.py): the child ends when it closes, and when a child is gone the jobs that
it waited for are cancelled, and another takes its place.

Nothing is counted in children: they tell each event, so that one registry has the totals of all and
a child that died takes nothing with it. Prometheus' own mode for several processes keeps files of
each process, knows no exemplars, and would tell gauges of the engine by process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from pydantic import TypeAdapter

from siserve.bundle.errors import SiserveError, UsageError
from siserve.serving.admin import AdminServicer
from siserve.serving.admission import RateLimiter
from siserve.serving.dialog_model import DialogModel
from siserve.serving.front import port_taken
from siserve.serving.keys import Keyring
from siserve.serving.library import Library
from siserve.serving.link import open_link
from siserve.serving.metrics import CallMetrics, Metrics
from siserve.serving.options import ServerOptions, join_address
from siserve.serving.parcels import Parcel, pack_model
from siserve.serving.post import Post
from siserve.serving.rpc_child import Child
from siserve.serving.tls import Certificate

__all__ = ["RpcProcesses"]

#: Between the end of a child and the start of another.
_AGAIN_SECONDS = 0.5
#: For so long children are waited for that are to tell what they have counted.
_SETTLE_SECONDS = 1.0
#: For so long children are waited for beyond the time that their drain may take.
_DRAIN_MARGIN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class RpcProcesses:
    """The doors of a server in processes of their own; used as a Front is.

    Args:
        options: of the server.
        metrics: of all processes.

    Raises:
        SiserveError: if a port cannot be had, or keys or certificate cannot be used.
    """

    def __init__(self, options: ServerOptions, metrics: Metrics) -> None:
        """Take the ports, at which nobody listens before begin()."""
        if sys.platform != "linux":
            raise UsageError(
                "--rpc-processes wants Linux, where a port that is shared is shared evenly; "
                "leave it out"
            )
        if options.keys is not None:
            Keyring(options.keys)  # what is wrong with files is told before any process starts
        if options.tls is not None:
            Certificate(options.tls, metrics.certificate_taken)
        self._taken = [_take_port(options.host, options.port, "--port")]
        self.port, http_port = _port(self._taken[0]), None
        if options.http_port is not None:
            self._taken.append(_take_port(options.host, options.http_port, "--http-port"))
            http_port = _port(self._taken[1])
            _log.info("page on %s", options.page_url(http_port))
        self._options = replace(options, port=self.port, http_port=http_port)
        self.metrics: CallMetrics = metrics
        self.limiter = RateLimiter(options.rate)
        self.post = Post()
        self.models: Mapping[int, DialogModel] = {}
        self.admin: AdminServicer | None = None
        self._library: Library | None = None
        self._parcels: dict[int, Parcel] = {}
        self._numbers = count()
        self._told: dict[str, bool] = {}
        self._children: list[Child] = []
        self._first: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._is_serving = self._is_closing = False

    async def begin(self) -> None:
        """Start the processes; they answer health at once and refuse calls before serve()."""
        self._first = [await self._start() for _ in range(self._options.rpc_processes)]
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self._first]

    async def serve(self, library: Library) -> None:
        """Let calls be answered by the models of this process.

        Raises:
            SiserveError: if a process did not come up.
        """
        self._library = library
        self.admin = AdminServicer(library, self._options.keys is not None)
        library.on_change = self._tell_models
        self._tell_models()
        for child in self._first:
            await child.came_up()
        self._is_serving = True
        await self.settle()

    async def tell(self, names: Sequence[str], is_serving: bool) -> None:
        """Change what gRPC probes are told in every process, and wait until it is."""
        self._told.update(dict.fromkeys(names, is_serving))
        for child in self._children:
            child.link.send("health", names, is_serving)
        await self.settle()

    async def settle(self) -> None:
        """Wait until every process has done and told what came before."""
        pings = [child.ping() for child in self._children]
        if pings:
            await asyncio.wait(pings, timeout=_SETTLE_SECONDS)

    async def drain(self) -> bool:
        """Have every process drain as Front.drain does; say whether all answered in time."""
        self._is_closing = True
        children = tuple(self._children)
        for child in children:
            child.link.send("drain")
        options = self._options
        patience = options.notice_seconds + options.drain_seconds + _DRAIN_MARGIN_SECONDS
        if children:
            drained = [asyncio.create_task(child.drained.wait()) for child in children]
            await asyncio.wait(drained, timeout=patience)
        return all(child.in_time for child in children)

    async def stop(self) -> None:
        """End the processes."""
        self._is_closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in self._children:
            await child.end()
        self._children.clear()
        for each in self._taken:
            each.close()

    async def _start(self) -> Child:
        """Start a process.

        Raises:
            OSError: if the system has no room for one.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "siserve.serving.rpc_process"]
        with theirs:
            try:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except OSError:
                ours.close()
                raise
        child = Child(self, process)
        child.link = await open_link(ours, child.hear, child.is_lost)
        told = TypeAdapter(ServerOptions).dump_python(self._options, mode="json")
        child.link.send("begin", told, self._told, self._packed())
        self._children.append(child)
        return child

    async def _start_again(self) -> Child:
        """Start a process, as soon as the system has room for one."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                return await self._start()
            except OSError as error:
                _log.error("an RPC process cannot be started (%s)", error.strerror)

    async def _keep(self, child: Child) -> None:
        """Let another process take the place of one that ends, or hangs."""
        while True:
            is_lost = await child.until_gone()
            self._children.remove(child)
            code = await child.end()
            if self._is_closing or not self._is_serving:
                return
            why = child.refusal or (f"exit code {code}" if is_lost else "it does not answer")
            _log.error("an RPC process ended (%s); another takes its place", why)
            child = await self._start_again()

    def _tell_models(self) -> None:
        packed = self._packed()
        for child in self._children:
            child.link.send("models", packed)

    def _packed(self) -> list[tuple[int, Parcel]]:
        """Number and write down what is held; a model keeps its number as long as it is."""
        if self._library is None:
            return []
        known = {model: number for number, model in self.models.items()}
        held = self._library.models.all
        self.models = {
            known[model] if model in known else next(self._numbers): model for model in held
        }
        self._parcels = {
            number: self._parcels.get(number) or pack_model(model)
            for number, model in self.models.items()
        }
        return list(self._parcels.items())


def _take_port(host: str, port: int, option: str) -> socket.socket:
    """Hold a port that only processes of this user may listen at too.

    Raises:
        SiserveError: if others have it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as alone:  # what shares it already is another server
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        taken = socket.socket(family, kind)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(address)
        return taken
    except OSError:
        message = port_taken(join_address(host, port))
        raise SiserveError(message.replace("--port", option)) from None


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])
