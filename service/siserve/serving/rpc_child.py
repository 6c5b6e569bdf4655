"""The engine's process's end of a process that takes calls: what it hears and what it answers."""

from __future__ import annotations

import asyncio
import base64
import logging
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Protocol

from google.protobuf import message_factory

from siserve.bundle.errors import SiserveError, UsageError
from siserve.serving.admin import AdminServicer
from siserve.serving.admission import RateLimiter
from siserve.serving.calls import Call
from siserve.serving.dialog_model import DialogModel
from siserve.serving.doors import ADMIN
from siserve.serving.errors import QueueFull, RequestError, ShuttingDown
from siserve.serving.flight import Job, Row
from siserve.serving.jobs import AnyJob
from siserve.serving.keys import Caller
from siserve.serving.link import Link
from siserve.serving.metrics import CallMetrics
from siserve.serving.parcels import Parcel, pack_error, pack_result, unpack_job
from siserve.serving.post import Post

__all__ = ["Child", "Shared"]

#: A child that has not answered for so long is gone; it is asked some times meanwhile.
_STALL_SECONDS = 60.0
_COUNTED = frozenset(name for name in vars(CallMetrics) if not name.startswith("_"))

_log = logging.getLogger(__name__)


class Shared(Protocol):
    """What there is one of, for all children.

    Attributes:
        models: by the numbers that children know them by.
        admin: None before there are models.
    """

    metrics: CallMetrics
    limiter: RateLimiter
    post: Post
    models: Mapping[int, DialogModel]
    admin: AdminServicer | None

    async def settle(self) -> None:
        """Wait until every child has done and told what came before."""


class Child:
    """This process's end of one that takes calls.

    Attributes:
        link: to it; set by who opens it.
        lost: whether it is gone.
        refusal: why it did not come up, if it said so.
        drained: whether it has nothing more to answer, or is gone.
        in_time: whether it answered all that it had taken.
    """

    link: Link

    def __init__(self, server: Shared, process: subprocess.Popen[bytes]) -> None:
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
