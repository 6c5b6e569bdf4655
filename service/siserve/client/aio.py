"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from siserve.client.answer import Answer, Reply, Score, make_request, make_score_request
from siserve.client.channel import OPTIONS, failure
from siserve.client.credentials import Credentials
from siserve.v1 import dialog_pb2, dialog_pb2_grpc

__all__ = ["AsyncClient"]


class AsyncClient:
    """Asks a server from asyncio; deadlines, retries and options are those of `Client`.

    A call whose task is cancelled is cancelled at the server too.

    Example:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     answer = await client.generate([("A", "how was your weekend?")], n=5, seed=7)
        ...     async for place, reply in client.stream([("A", "any plans?")], n=3):
        ...         print(place, reply.text)

    Args:
        address: HOST:PORT, or any name that gRPC resolves.
        timeout_s: deadline of a call, retries included.
        credentials: a key, TLS, a certificate; by default none of them.

    Raises:
        UsageError: if a file of the credentials cannot be read.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float = 10.0,
        credentials: Credentials | None = None,
    ) -> None:
        """Open the channel; the connection itself is made by the first call."""
        self._address, self._timeout_s = address, timeout_s
        credentials = credentials or Credentials()
        self._metadata = credentials.metadata
        of_channel = credentials.of_channel()
        self._channel = (
            grpc.aio.insecure_channel(address, OPTIONS)
            if of_channel is None
            else grpc.aio.secure_channel(address, of_channel, OPTIONS)
        )
        stub: Any = dialog_pb2_grpc.DialogServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._stub = stub

    async def __aenter__(self) -> AsyncClient:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channel."""
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(None)

    async def generate(self, context: Sequence[tuple[str, str]], **options: Any) -> Answer:
        """Generate responses to a dialog.

        Args:
            context: (speaker, text) of each turn, oldest first.
            **options: those of `Client.generate`; an unknown one is a TypeError.

        Raises:
            ClientError: with the server's status and message.
            ValueError: if a number does not fit its field.
        """
        return await self.send(make_request(context, **options))

    async def send(self, request: dialog_pb2.GenerateResponsesRequest) -> Answer:
        """Send a request as it is; see `generate`."""
        started = time.perf_counter()
        message = await self._call(self._stub.GenerateResponses, request)
        return Answer.from_message(message, time.perf_counter() - started)

    async def stream(
        self, context: Sequence[tuple[str, str]], **options: Any
    ) -> AsyncGenerator[tuple[int, Reply], None]:
        """Generate responses, each as soon as it is complete; see `Client.stream`.

        Yields:
            The place of a response among the n, and the response.
        """
        call = self._stub.StreamResponses(
            dialog_pb2.StreamResponsesRequest(generate=make_request(context, **options)),
            timeout=self._timeout_s,
            metadata=self._metadata,
        )
        try:
            async for event in call:
                if event.HasField("response"):
                    yield event.response.index, Reply.from_message(event.response.response)
        except grpc.RpcError as error:
            raise failure(error, self._address, self._timeout_s) from None
        finally:
            call.cancel()

    async def vary(
        self,
        context: Sequence[tuple[str, str]],
        response: str,
        *,
        noise_scale: float | None = None,
        **options: Any,
    ) -> Answer:
        """Say a given response in other words; see `Client.vary`."""
        request = dialog_pb2.VaryResponseRequest(
            generate=make_request(context, **options), response=response, noise_scale=noise_scale
        )
        started = time.perf_counter()
        reply = await self._call(self._stub.VaryResponse, request)
        return Answer.from_message(reply.variants, time.perf_counter() - started)

    async def score(
        self, context: Sequence[tuple[str, str]], responses: Sequence[str], **options: Any
    ) -> tuple[Score, ...]:
        """Estimate log p(x|c) of given responses; see `Client.score`."""
        request = make_score_request(context, responses, **options)
        return Score.all_of(await self._call(self._stub.ScoreResponses, request))

    async def get_model(self, model: str = "") -> dialog_pb2.GetModelResponse:
        """Tell what a served model is and which limits hold."""
        reply: dialog_pb2.GetModelResponse = await self._call(
            self._stub.GetModel, dialog_pb2.GetModelRequest(model=model)
        )
        return reply

    async def _call(self, method: Any, request: Message) -> Any:
        try:
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error, self._address, self._timeout_s) from None
