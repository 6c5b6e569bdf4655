"""siserve.v1.DialogService: from messages to messages. It knows neither gRPC nor onnxruntime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from siserve.serving.admission import Take
from siserve.serving.calls import Call
from siserve.serving.dialog_model import DialogModel
from siserve.serving.errors import InvalidRequest, QueueFull
from siserve.serving.flight import Row, Variation
from siserve.serving.metrics import CallMetrics
from siserve.serving.models import Models
from siserve.serving.options import ServerOptions
from siserve.serving.post import Post
from siserve.serving.requests import GenerationRequest, num_bytes
from siserve.v1 import dialog_pb2

__all__ = ["DialogServicer"]

Result = TypeVar("Result")


class _Job(Protocol[Result]):
    @property
    def result(self) -> Future[Result]: ...

    def cancel(self) -> None: ...


class DialogServicer:
    """Answers the calls of the service; what goes wrong is raised as a RequestError.

    Attributes:
        queued: methods whose calls wait for a decoder.
    """

    queued = frozenset({"GenerateResponses", "StreamResponses", "VaryResponse", "ScoreResponses"})

    def __init__(
        self, models: Models, metrics: CallMetrics, options: ServerOptions, take: Take
    ) -> None:
        """Serve `models`; `take` holds callers to their rate."""
        self._models = models
        self._metrics = metrics
        self._options = options
        self._take = take
        self._post = Post()

    def check_room(self) -> None:
        """Refuse a call before it is read, if no model has room for a response.

        Raises:
            QueueFull: telling when there will be room.
        """
        *others, last = self._models.all
        for model in others:
            with suppress(QueueFull):
                return model.engine.check_room()
        last.engine.check_room()

    async def GenerateResponses(
        self, message: dialog_pb2.GenerateResponsesRequest, call: Call
    ) -> dialog_pb2.GenerateResponsesResponse:
        """Generate responses; a call that its client gives up stops its decoding."""
        model = self._models.find(message.model)
        request = model.check(message)
        return await self._generate(model, request, call)

    async def VaryResponse(
        self, message: dialog_pb2.VaryResponseRequest, call: Call
    ) -> dialog_pb2.VaryResponseResponse:
        """Generate responses around a given one."""
        with _fields_of("generate"):
            model = self._models.find(message.generate.model)
            request = model.check(message.generate)
        variation = model.check_variation(message)
        variants = await self._generate(model, request, call, variation)
        return dialog_pb2.VaryResponseResponse(variants=variants)

    async def StreamResponses(
        self, message: dialog_pb2.StreamResponsesRequest, call: Call
    ) -> AsyncIterator[dialog_pb2.StreamResponsesResponse]:
        """Generate responses, each told as it completes."""
        with _fields_of("generate"):
            model = self._models.find(message.generate.model)
            request = model.check(message.generate)
        _note_request(call, model, request)
        await self._take(call.caller.name, request.n)
        complete: asyncio.Queue[Sequence[tuple[int, Row]]] = asyncio.Queue()

        def put(rows: Sequence[tuple[int, Row]]) -> None:  # in the engine's thread
            self._post.send(lambda: complete.put_nowait(rows))

        job = model.submit(request, call.deadline, on_rows=put)
        job.result.add_done_callback(lambda _: put(()))
        try:
            while rows := await complete.get():
                for index, row in rows:
                    yield _streamed(index, model.response(row))
            generation = job.result.result()
        finally:
            job.cancel()
        reply = model.reply(job.seed, generation)
        if request.diversity:
            for index, response in enumerate(reply.responses):
                yield _streamed(index, response)
        self._note_reply(call, model, reply)
        yield dialog_pb2.StreamResponsesResponse(
            end=dialog_pb2.StreamEnd(
                distinct_1=reply.distinct_1,
                distinct_2=reply.distinct_2,
                seed=reply.seed,
                model=reply.model,
                timings=reply.timings,
            )
        )

    async def ScoreResponses(
        self, message: dialog_pb2.ScoreResponsesRequest, call: Call
    ) -> dialog_pb2.ScoreResponsesResponse:
        """Estimate the log probability of given responses."""
        model = self._models.find(message.model)
        request = model.check_scores(message)
        call.facts.update(
            model=model.full_name,
            turns=len(request.dialog.turns),
            responses=len(request.responses),
            samples=request.num_samples,
        )
        await self._take(call.caller.name, len(request.responses) * request.num_samples)
        job = model.submit_scores(request, call.deadline)
        reply = model.scores(job, await self._finished(job))
        self._note_timings(call, reply.timings)
        return reply

    async def _generate(
        self,
        model: DialogModel,
        request: GenerationRequest,
        call: Call,
        variation: Variation | None = None,
    ) -> dialog_pb2.GenerateResponsesResponse:
        _note_request(call, model, request)
        await self._take(call.caller.name, request.n)
        job = model.submit(request, call.deadline, variation)
        reply = model.reply(job.seed, await self._finished(job))
        self._note_reply(call, model, reply)
        return reply

    async def _finished(self, job: _Job[Result]) -> Result:
        """Wait for a job's result; whoever waits no more stops its work."""
        done = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not done.done():
                done.set_result(None)

        job.result.add_done_callback(lambda _: self._post.send(tell))  # in the engine's thread
        try:
            await done
        except asyncio.CancelledError:
            job.cancel()
            raise
        return job.result.result()

    def _note_reply(
        self, call: Call, model: DialogModel, reply: dialog_pb2.GenerateResponsesResponse
    ) -> None:
        lengths = [response.num_tokens for response in reply.responses]
        self._metrics.generated(model.name, lengths, (reply.distinct_1, reply.distinct_2))
        call.facts["tokens"] = sum(lengths)
        self._note_timings(call, reply.timings)

    def _note_timings(self, call: Call, timings: dialog_pb2.Timings) -> None:
        stages = (timings.queue_seconds, timings.encode_seconds, timings.decode_seconds)
        self._metrics.timed(*stages)
        queue, encode, decode = (round(stage, 6) for stage in stages)
        call.facts.update(queue_seconds=queue, encode_seconds=encode, decode_seconds=decode)

    async def GetModel(
        self, message: dialog_pb2.GetModelRequest, call: Call
    ) -> dialog_pb2.GetModelResponse:
        """Describe a served model and the limits of the server."""
        reply = self._models.find(message.model).describe()
        reply.server_limits.CopyFrom(_server_limits(self._options))
        return reply


def _note_request(call: Call, model: DialogModel, request: GenerationRequest) -> None:
    turns = request.dialog.turns
    call.facts.update(
        model=model.full_name,
        n=request.n,
        turns=len(turns),
        text_bytes=sum(num_bytes(turn.text) for turn in turns),
    )


@contextmanager
def _fields_of(field: str) -> Iterator[None]:
    """Name fields of a message within another by their path."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{field}.{error.field}", error.problem) from None


def _streamed(index: int, response: dialog_pb2.Response) -> dialog_pb2.StreamResponsesResponse:
    streamed = dialog_pb2.StreamedResponse(index=index, response=response)
    return dialog_pb2.StreamResponsesResponse(response=streamed)


def _server_limits(options: ServerOptions) -> dialog_pb2.ServerLimits:
    engine, connections, rate = options.engine, options.connections, options.rate
    return dialog_pb2.ServerLimits(
        max_message_bytes=options.message_bytes,
        max_metadata_bytes=connections.max_metadata_bytes,
        max_streams=connections.max_streams,
        idle_seconds=connections.idle_seconds,
        handshake_seconds=connections.handshake_seconds,
        connection_seconds=connections.seconds,
        max_queue_rows=engine.max_queue_rows,
        max_rows=engine.max_rows,
        oversample=engine.oversample,
        responses_per_second=rate.responses_per_second,
        burst_responses=rate.burst,
    )
