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
import base64
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from google.protobuf import message_factory
from pydantic import TypeAdapter

from siserve.bundle.errors import SiserveError, UsageError
from siserve.serving.admin import AdminServicer
from siserve.serving.admission import RateLimiter
from siserve.serving.calls import Call
from siserve.serving.dialog_model import DialogModel
from siserve.serving.doors import ADMIN
from siserve.serving.errors import QueueFull, RequestError, ShuttingDown
from siserve.serving.flight import Job, Row
from siserve.serving.front import port_taken
from siserve.serving.jobs import AnyJob
from siserve.serving.keys import Caller, Keyring
from siserve.serving.library import Library
from siserve.serving.link import Link, open_link
from siserve.serving.metrics import CallMetrics, Metrics
from siserve.serving.options import ServerOptions, join_address
from siserve.serving.parcels import Parcel, pack_error, pack_model, pack_result, unpack_job
from siserve.serving.post import Post
from siserve.serving.tls import Certificate

__all__ = ["RpcProcesses"]

#: Between the end of a child and the start of another.
_AGAIN_SECONDS = 0.5
#: A child that has not answered for so long is ended; it is asked some times meanwhile.
_STALL_SECONDS = 60.0
#: For so long children are waited for that are to tell what they have counted.
_SETTLE_SECONDS = 1.0
#: For so long children are waited for beyond the time that their drain may take.
_DRAIN_MARGIN_SECONDS = 5.0
_COUNTED = frozenset(name for name in vars(CallMetrics) if not name.startswith("_"))

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
        self.port = http_port = _port(self._taken[0])
        if options.http_port is not None:
            self._taken.append(_take_port(options.host, options.http_port, "--http-port"))
            http_port = _port(self._taken[1])
            _log.info("page on %s", options.page_url(http_port))
        fixed = options.http_port is not None and http_port
        self._options = replace(options, port=self.port, http_port=fixed or None)
        self.metrics, self.limiter = metrics, RateLimiter(options.rate)
        self.post = Post()
        self.models: dict[int, DialogModel] = {}
        self.admin: AdminServicer | None = None
        self._library: Library | None = None
        self._parcels: dict[int, Parcel] = {}
        self._numbers = count()
        self._told: dict[str, bool] = {}
        self._children: list[_Child] = []
        self._first: list[_Child] = []
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
        await asyncio.wait(
            [asyncio.create_task(c.drained.wait()) for c in children], timeout=patience
        )
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

    async def _start(self) -> _Child:
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
        child = _Child(self, process)
        child.link = await open_link(ours, child.hear, child.is_lost)
        told = TypeAdapter(ServerOptions).dump_python(self._options, mode="json")
        child.link.send("begin", told, self._told, self._packed())
        self._children.append(child)
        return child

    async def _start_again(self) -> _Child:
        """Start a process, as soon as the system has room for one."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                return await self._start()
            except OSError as error:
                _log.error("an RPC process cannot be started (%s)", error.strerror)

    async def _keep(self, child: _Child) -> None:
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


class _Child:
    """This process's end of one that takes calls.

    Attributes:
        link: to it; set by who opens it.
        lost: whether it is gone.
        refusal: why it did not come up, if it said so.
        drained: whether it has nothing more to answer, or is gone.
        in_time: whether it answered all that it had taken.
    """

    link: Link

    def __init__(self, server: RpcProcesses, process: subprocess.Popen[bytes]) -> None:
        self._server, self._process = server, process
        self._up, self.lost, self.drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.refusal: SiserveError | None = None
        self.in_time = False
        self._jobs: dict[int, AnyJob] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def came_up(self) -> None:
        """Wait until it takes calls.

        Raises:
            SiserveError: if it does not.
        """
        await self._up.wait()
        if self.refusal is not None:
            raise self.refusal
        if self.lost.is_set():
            raise SiserveError("an RPC process ended while it started; see the log above")

    def ping(self) -> asyncio.Future[None]:
        """Return what is done when it has done and told all that came before."""
        number = next(self._numbers)
        self._pings[number] = pong = asyncio.get_running_loop().create_future()
        self.link.send("ping", number)
        return pong

    async def until_gone(self) -> bool:
        """Wait until it is lost, or does not answer any more; say whether it is lost."""
        while not self.lost.is_set():
            pong = self.ping()
            await asyncio.wait([pong], timeout=_STALL_SECONDS)
            if not pong.done():
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(self.lost.wait(), _STALL_SECONDS / 6)
        return True

    async def end(self) -> int:
        """End it, whatever it does; return its exit code."""
        self.link.close()
        self._process.kill()
        return await asyncio.to_thread(self._process.wait)

    def is_lost(self) -> None:
        """Nobody waits any more for what it asked; told by the link."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
        for pong in self._pings.values():
            _finish(pong)
        self._pings.clear()
        for event in (self.lost, self._up, self.drained):
            event.set()

    def hear(self, kind: str, *values: Any) -> None:
        """Take a frame."""
        match kind:
            case "job":
                self._take_job(*values)
            case "cancel":
                self._cancel(*values)
            case "count":
                self._count(*values)
            case "take":
                self._take_tokens(*values)
            case "admin":
                task = asyncio.create_task(self._administer(*values))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "pong":
                _finish(self._pings.pop(*values))
            case "up":
                self._up.set()
            case "refused":
                message, exit_code = values
                self.refusal = (UsageError if exit_code == 2 else SiserveError)(message)
                self.link.close()
            case "drained":
                (self.in_time,) = values
                self.drained.set()

    def _take_job(self, number: int, model: int, parcel: Parcel) -> None:
        job, is_told = unpack_job(parcel)
        if is_told and isinstance(job, Job):
            job.on_rows = partial(self._tell_rows, number)
        held = self._server.models.get(model)
        try:
            if held is None:
                raise ShuttingDown("the model is served no more; ask again")
            held.engine.submit(job)
        except RequestError as error:
            self.link.send("failed", number, pack_error(error), held is not None and _is_full(held))
            return
        self._jobs[number] = job
        ended = partial(self._server.post.send, partial(self._job_ended, number))
        job.result.add_done_callback(lambda _: ended())

    def _tell_rows(self, number: int, rows: Sequence[tuple[int, Row]]) -> None:
        """Tell responses that are complete; in the engine's thread."""
        self._server.post.send(lambda: self.link.send("rows", number, rows))

    def _job_ended(self, number: int) -> None:
        job = self._jobs.pop(number, None)
        if job is None:
            return  # whoever waited is gone
        error = job.result.exception()
        if error is None:
            self.link.send("done", number, pack_result(job.result.result()))
        else:
            self.link.send("failed", number, pack_error(error), False)

    def _cancel(self, number: int) -> None:
        if number in self._jobs:
            self._jobs[number].cancel()

    def _count(self, name: str, *told: Any) -> None:
        if name in _COUNTED:
            getattr(self._server.metrics, name)(*told)

    def _take_tokens(self, number: int, caller: str, responses: int) -> None:
        try:
            self._server.limiter.take(caller, responses)
            self.link.send("answer", number, None)
        except RequestError as error:
            self.link.send("refusal", number, pack_error(error))

    async def _administer(
        self, number: int, name: str, written: str, caller: str, is_admin: bool
    ) -> None:
        kind = message_factory.GetMessageClass(ADMIN.methods_by_name[name].input_type)
        try:
            message = kind.FromString(base64.b64decode(written))
            call = Call(Caller(caller, is_admin))
            reply = await getattr(self._server.admin, name)(message, call)
            await self._server.settle()  # who has the answer finds the model in every process
            told = base64.b64encode(reply.SerializeToString()).decode()
            self.link.send("answer", number, told)
        except Exception as error:
            if not isinstance(error, RequestError):
                _log.exception("%s failed", name)
            self.link.send("refusal", number, pack_error(error))


def _is_full(model: DialogModel) -> bool:
    """Say whether there is no room for a job like those that wait."""
    try:
        model.engine.check_room()
    except QueueFull:
        return True
    return False


def _finish(pong: asyncio.Future[None]) -> None:
    if not pong.done():
        pong.set_result(None)


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
