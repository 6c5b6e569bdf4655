"""siserve.v1.DialogService: from messages to messages. It knows no onnxruntime."""

from __future__ import annotations

import asyncio
import time

from siserve.serving.doors import Context, time_remaining
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models
from siserve.v1 import dialog_pb2, dialog_pb2_grpc

__all__ = ["DialogServicer"]


class DialogServicer(dialog_pb2_grpc.DialogServiceServicer):
    """Answers the calls of the service; what goes wrong is raised as a RequestError."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        """Serve `models`."""
        self._models = models
        self._metrics = metrics

    async def GenerateResponses(
        self,
        request: dialog_pb2.GenerateResponsesRequest,
        context: Context,
    ) -> dialog_pb2.GenerateResponsesResponse:
        """Generate responses; a call that its client gives up stops its decoding."""
        model = self._models.find(request.model)
        remaining = time_remaining(context)
        deadline = float("inf") if remaining is None else time.monotonic() + remaining
        job = model.submit(request, deadline)
        try:
            generation = await asyncio.wrap_future(job.result)
        except asyncio.CancelledError:
            job.cancel()
            raise
        reply = model.reply(job.seed, generation)
        self._metrics.generated(model.name, reply)
        return reply

    async def GetModel(
        self, request: dialog_pb2.GetModelRequest, context: Context
    ) -> dialog_pb2.GetModelResponse:
        """Describe a served model."""
        return self._models.find(request.model).describe()
