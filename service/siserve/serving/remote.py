"""What is in the engine's process, as one that takes calls knows it: engine, metrics, admin."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, TypeVar, overload

from google.protobuf.message import Message

from siserve.serving.calls import Call
from siserve.serving.errors import QueueFull
from siserve.serving.flight import Generation, Job
from siserve.serving.jobs import AnyJob
from siserve.serving.link import Link
from siserve.serving.parcels import Parcel, pack_job, unpack_error, unpack_result, unpack_rows
from siserve.serving.post import Post
from siserve.serving.scoring import ScoreJob, Scores
from siserve.v1 import admin_pb2

__all__ = ["Desk", "RemoteAdmin", "RemoteEngine", "RemoteMetrics"]

Reply = TypeVar("Reply")

#: For so long a full queue is taken to be full still, by calls that are not read yet.
_FULL_SECONDS = 0.005


class Desk:
    """What the engine's process is asked, and what it answers.

    Attributes:
        link: to it; set by who opens it.
        post: for what any thread has to tell it.
        orders: frames that are no answers.
    """

    link: Link

    def __init__(self) -> None:
        """Belong to the loop that runs."""
        self.post = Post()
        self.orders: asyncio.Queue[Sequence[Any]] = asyncio.Queue()
        self._numbers = count()
        self._jobs: dict[int, tuple[AnyJob, RemoteEngine]] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}

    def hear(self, kind: str, *values: Any) -> None:
        """Take a frame."""
        match kind:
            case "rows":
                self._told_rows(*values)
            case "done":
                self._job_done(*values)
            case "failed":
                self._job_failed(*values)
            case "answer" | "refusal":
                self._answered(kind, *values)
            case _:
                self.orders.put_nowait((kind, *values))

    def put(self, job: AnyJob, engine: RemoteEngine) -> None:
        """Have a job decoded."""
        number = next(self._numbers)
        self._jobs[number] = (job, engine)
        job.on_cancel = lambda: self._cancel(number)
        self.link.send("job", number, engine.number, pack_job(job))

    async def ask(self, kind: str, *values: Any) -> Any:
        """Ask what is answered once; raises what the answer says."""
        number = next(self._numbers)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.link.send(kind, number, *values)
            return await answered
        finally:
            del self._asked[number]

    def _cancel(self, number: int) -> None:
        if number in self._jobs:
            self.link.send("cancel", number)

    def _told_rows(self, number: int, rows: Parcel) -> None:
        job, _ = self._jobs[number]
        if isinstance(job, Job) and job.on_rows is not None:
            job.on_rows(unpack_rows(rows))

    def _job_done(self, number: int, parcel: Parcel) -> None:
        job, _ = self._jobs.pop(number)
        result: Future[Any] = job.result
        result.set_result(unpack_result(parcel))

    def _job_failed(self, number: int, parcel: Parcel, is_full: bool) -> None:
        job, engine = self._jobs.pop(number)
        error = unpack_error(parcel)
        if is_full and isinstance(error, QueueFull):
            engine.found_full(error)
        job.result.set_exception(error)

    def _answered(self, kind: str, number: int, told: Any) -> None:
        answered = self._asked.get(number)
        if answered is None or answered.done():
            return  # who asked is gone
        if kind == "answer":
            answered.set_result(told)
        else:
            answered.set_exception(unpack_error(told))


class RemoteEngine:
    """An engine of the parent: it is started and stopped there.

    Attributes:
        number: of its model.
    """

    def __init__(self, number: int, desk: Desk) -> None:
        """Be reached through `desk`."""
        self.number, self._desk = number, desk
        self._full: tuple[float, QueueFull] | None = None

    @property
    def stalled_seconds(self) -> float:
        """The parent looks after that."""
        return 0.0

    def start(self) -> None:
        """It runs."""

    def stop(self, finish: bool = True) -> None:
        """It goes on."""

    @overload
    def submit(self, job: Job) -> Future[Generation]: ...

    @overload
    def submit(self, job: ScoreJob) -> Future[Scores]: ...

    def submit(self, job: AnyJob) -> Future[Generation] | Future[Scores]:
        """Have a job queued; what Engine.submit raises comes by the job's result."""
        job.result.set_running_or_notify_cancel()
        self._desk.put(job, self)
        return job.result

    def found_full(self, error: QueueFull) -> None:
        """A job found no room, nor would one like those that wait."""
        self._full = (time.monotonic() + _FULL_SECONDS, error)

    def check_room(self) -> None:
        """Refuse a call that is not read yet, if there was no room a moment ago."""
        if self._full is not None and time.monotonic() < self._full[0]:
            error = self._full[1]
            raise QueueFull(error.problem, error.retry_after_s)


class RemoteMetrics:
    """CallMetrics that have all counted in the parent, where the metrics of all processes are."""

    def __init__(self, desk: Desk) -> None:
        """Tell it through `desk`."""
        self._desk = desk

    def certificate_taken(self, expires: float) -> None:
        """See Metrics."""
        self._count("certificate_taken", expires)

    def handshake_began(self) -> None:
        """See Metrics."""
        self._count("handshake_began")

    def connection_met(self) -> None:
        """See Metrics."""
        self._count("connection_met")

    def call_answered(self, method: str, code: str, seconds: float, trace_id: str = "") -> None:
        """See Metrics."""
        self._count("call_answered", method, code, seconds, trace_id)

    def timed(self, queue_seconds: float, encode_seconds: float, decode_seconds: float) -> None:
        """See Metrics."""
        self._count("timed", queue_seconds, encode_seconds, decode_seconds)

    def generated(self, model: str, lengths: Sequence[int], shares: Sequence[float]) -> None:
        """See Metrics."""
        self._count("generated", model, lengths, shares)

    def _count(self, *told: Any) -> None:
        self._desk.post.send(partial(self._desk.link.send, "count", *told))


class RemoteAdmin:
    """Passes the calls of siserve.v1.AdminService on, and who makes them."""

    def __init__(self, desk: Desk) -> None:
        """Pass them through `desk`."""
        self._desk = desk

    async def ListModels(self, message: Message, call: Call) -> admin_pb2.ListModelsResponse:
        """See AdminServicer."""
        parse = admin_pb2.ListModelsResponse.FromString
        return await self._pass("ListModels", message, call, parse)

    async def LoadModel(self, message: Message, call: Call) -> admin_pb2.LoadModelResponse:
        """See AdminServicer."""
        parse = admin_pb2.LoadModelResponse.FromString
        return await self._pass("LoadModel", message, call, parse)

    async def RollBackModel(self, message: Message, call: Call) -> admin_pb2.RollBackModelResponse:
        """See AdminServicer."""
        parse = admin_pb2.RollBackModelResponse.FromString
        return await self._pass("RollBackModel", message, call, parse)

    async def _pass(
        self, name: str, message: Message, call: Call, parse: Callable[[bytes], Reply]
    ) -> Reply:
        written = base64.b64encode(message.SerializeToString()).decode()
        told = await self._desk.ask("admin", name, written, call.caller.name, call.caller.is_admin)
        return parse(base64.b64decode(told))
