"""siserve.v1.DialogService: from messages to messages. It knows neither gRPC nor onnxruntime."""

from __future__ import annotations

import asyncio

from siserve.serving.admission import RateLimiter
from siserve.serving.calls import Call
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models
from siserve.serving.options import ServerOptions
from siserve.v1 import dialog_pb2

__all__ = ["DialogServicer"]


class DialogServicer:
    """Answers the calls of the service; what goes wrong is raised as a RequestError."""

    def __init__(self, models: Models, metrics: Metrics, options: ServerOptions) -> None:
        """Serve `models`."""
        self._models = models
        self._metrics = metrics
        self._options = options
        self._limiter = RateLimiter(options.rate)

    async def GenerateResponses(
        self, message: dialog_pb2.GenerateResponsesRequest, call: Call
    ) -> dialog_pb2.GenerateResponsesResponse:
        """Generate responses; a call that its client gives up stops its decoding."""
        model = self._models.find(message.model)
        request = model.check(message)
        self._limiter.take(call.caller.name, request.n)
        job = model.submit(request, call.deadline)
        try:
            generation = await asyncio.wrap_future(job.result)
        except asyncio.CancelledError:
            job.cancel()
            raise
        reply = model.reply(job.seed, generation)
        self._metrics.generated(model.name, reply)
        return reply

    async def GetModel(
        self, message: dialog_pb2.GetModelRequest, call: Call
    ) -> dialog_pb2.GetModelResponse:
        """Describe a served model and the limits of the server."""
        reply = self._models.find(message.model).describe()
        reply.server_limits.CopyFrom(_server_limits(self._options))
        return reply


def _server_limits(options: ServerOptions) -> dialog_pb2.ServerLimits:
    engine, connections, rate = options.engine, options.connections, options.rate
    return dialog_pb2.ServerLimits(
        max_message_bytes=options.message_bytes,
        max_metadata_bytes=connections.max_metadata_bytes,
        max_streams=connections.max_streams,
        idle_seconds=connections.idle_seconds,
        handshake_seconds=connections.handshake_seconds,
        max_queue_rows=engine.max_queue_rows,
        max_rows=engine.max_rows,
        oversample=engine.oversample,
        responses_per_second=rate.responses_per_second,
        burst_responses=rate.burst,
    )
