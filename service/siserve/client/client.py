"""A client of siserve.v1.DialogService."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from siserve.client.answer import Answer, Reply, Score, make_request, make_score_request
from siserve.client.channel import OPTIONS, ClientError, failure
from siserve.client.credentials import Credentials
from siserve.v1 import admin_pb2, admin_pb2_grpc, dialog_pb2, dialog_pb2_grpc

__all__ = ["Client", "ClientError"]


class Client:
    """Asks a server, with a deadline on every call and retries when a server goes away.

    Example:
        >>> with Client("localhost:50051") as client:
        ...     answer = client.generate([("A", "how was your weekend?")], n=5, seed=7)
        ...     for reply in answer.responses:
        ...         print(reply.text)

    Args:
        address: HOST:PORT, or any name that gRPC resolves (dns:///NAME:PORT spreads calls over
            all its addresses).
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
        self._address = address
        self._timeout_s = timeout_s
        credentials = credentials or Credentials()
        self._metadata = credentials.metadata
        options = list(OPTIONS)
        of_channel = credentials.of_channel()
        self._channel = (
            grpc.insecure_channel(address, options)
            if of_channel is None
            else grpc.secure_channel(address, of_channel, options)
        )
        stub: Any = dialog_pb2_grpc.DialogServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._stub = stub
        admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._admin = admin

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channel."""
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def generate(
        self,
        context: Sequence[tuple[str, str]],
        *,
        n: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        diversity: float | None = None,
        responder: str = "",
        topic: str = "",
        model: str = "",
    ) -> Answer:
        """Generate responses to a dialog.

        Args:
            context: (speaker, text) of each turn, oldest first.
            n: number of responses; None = 5.
            seed: repeats an answer; None = the server draws one.
            temperature: 0 = the likeliest word for each latent; None = the model's default.
            top_k: choose among the k likeliest words only; 0 = among all.
            top_p: choose among the fewest words with this probability; 1 = among all.
            max_tokens: longest response in tokens.
            diversity: above 0, up to 1: choose n that differ among more candidates; None = off.
            responder: speaker of the responses; empty = the one who did not speak last.
            topic: one of those that `get_model` lists; empty = unknown.
            model: name or name@version; empty = the server's default.

        Raises:
            ClientError: with the server's status and message.
            ValueError: if a number does not fit its field.
        """
        request = make_request(
            context,
            n=n,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_tokens=max_tokens,
            diversity=diversity,
            responder=responder,
            topic=topic,
            model=model,
        )
        return self.send(request)

    def send(self, request: dialog_pb2.GenerateResponsesRequest) -> Answer:
        """Send a request as it is; see `generate`."""
        started = time.perf_counter()
        message: dialog_pb2.GenerateResponsesResponse = self._call(
            self._stub.GenerateResponses, request
        )
        return Answer.from_message(message, time.perf_counter() - started)

    def stream(self, request: dialog_pb2.GenerateResponsesRequest) -> Iterator[tuple[int, Reply]]:
        """Generate responses, each as soon as it is complete.

        Args:
            request: as `make_request` makes it.

        Yields:
            The place of a response among the n, and the response.

        Raises:
            ClientError: with the server's status and message.
        """
        call = self._stub.StreamResponses(
            dialog_pb2.StreamResponsesRequest(generate=request),
            timeout=self._timeout_s,
            metadata=self._metadata,
        )
        try:
            for event in call:
                if event.HasField("response"):
                    yield event.response.index, Reply.from_message(event.response.response)
        except grpc.RpcError as error:
            raise failure(error, self._address, self._timeout_s) from None
        finally:
            call.cancel()

    def vary(
        self,
        request: dialog_pb2.GenerateResponsesRequest,
        response: str,
        *,
        noise_scale: float | None = None,
    ) -> Answer:
        """Say a given response in other words.

        Args:
            request: context and options, as `make_request` makes it.
            response: the one to vary.
            noise_scale: 0 stays at one latent, 1 = the posterior, up to 4; None = 1.

        Raises:
            ClientError: with the server's status and message.
        """
        started = time.perf_counter()
        reply: dialog_pb2.VaryResponseResponse = self._call(
            self._stub.VaryResponse,
            dialog_pb2.VaryResponseRequest(
                generate=request, response=response, noise_scale=noise_scale
            ),
        )
        return Answer.from_message(reply.variants, time.perf_counter() - started)

    def score(
        self,
        context: Sequence[tuple[str, str]],
        responses: Sequence[str],
        *,
        num_samples: int | None = None,
        num_aux: int | None = None,
        seed: int | None = None,
        responder: str = "",
        topic: str = "",
        model: str = "",
    ) -> tuple[Score, ...]:
        """Estimate log p(x|c) of given responses by importance sampling.

        Args:
            context: (speaker, text) of each turn, oldest first.
            responses: to score.
            num_samples: S, for each response; None = 100.
            num_aux: K of a semi-implicit density's estimate; None = 30.
            seed: repeats the estimates; None = the server draws one.
            responder: speaker of the responses; empty = the one who did not speak last.
            topic: one of those that `get_model` lists; empty = unknown.
            model: name or name@version; empty = the server's default.

        Returns:
            One score a response, in their order.

        Raises:
            ClientError: with the server's status and message.
        """
        reply: dialog_pb2.ScoreResponsesResponse = self._call(
            self._stub.ScoreResponses,
            make_score_request(
                context,
                responses,
                num_samples=num_samples,
                num_aux=num_aux,
                seed=seed,
                responder=responder,
                topic=topic,
                model=model,
            ),
        )
        return Score.all_of(reply)

    def get_model(self, model: str = "") -> dialog_pb2.GetModelResponse:
        """Tell what a served model is and which limits hold.

        Raises:
            ClientError: with the server's status and message.
        """
        request = dialog_pb2.GetModelRequest(model=model)
        reply: dialog_pb2.GetModelResponse = self._call(self._stub.GetModel, request)
        return reply

    def list_models(self) -> list[admin_pb2.ServedModel]:
        """List the models that the server holds; it must be started with --admin.

        Raises:
            ClientError: with the server's status and message.
        """
        reply: admin_pb2.ListModelsResponse = self._call(
            self._admin.ListModels, admin_pb2.ListModelsRequest()
        )
        return list(reply.models)

    def load_model(self, bundle: str) -> admin_pb2.ServedModel:
        """Put a bundle of the server's watched folder into service, by its folder's name.

        Raises:
            ClientError: with the server's status and message.
        """
        reply: admin_pb2.LoadModelResponse = self._call(
            self._admin.LoadModel, admin_pb2.LoadModelRequest(bundle=bundle)
        )
        return reply.model

    def roll_back_model(self, name: str = "") -> admin_pb2.ServedModel:
        """Let the model that a name answered with before answer again; empty = the default.

        Raises:
            ClientError: with the server's status and message.
        """
        reply: admin_pb2.RollBackModelResponse = self._call(
            self._admin.RollBackModel, admin_pb2.RollBackModelRequest(name=name)
        )
        return reply.model

    def _call(self, method: Any, request: Message) -> Any:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error, self._address, self._timeout_s) from None
