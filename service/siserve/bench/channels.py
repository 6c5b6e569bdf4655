"""Connections of a load generator: raw bytes out and in, no retries that would hide failures."""

from __future__ import annotations

from types import TracebackType

import grpc

from siserve.bundle.errors import SiserveError
from siserve.client.channel import failure
from siserve.client.credentials import Credentials
from siserve.v1 import dialog_pb2

__all__ = ["Channels", "single_addresses"]

_SERVICE = "/siserve.v1.DialogService/"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)


def single_addresses(address: str) -> list[str]:
    """Split a name of gRPC's for several servers, if it lists them, as ipv4:10.0.0.1:1,10.0.0.2:1.

    A name that is looked up, as dns:///replies:1, stays one.
    """
    scheme, _, listed = address.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return [address]
    return [f"{scheme}:{each}" for each in listed.split(",")]


class Channels:
    """Several connections to one server, or to its replicas.

    Args:
        address: HOST:PORT, or a name of gRPC's for several, as ipv4:10.0.0.1:1,10.0.0.2:1.
        number: of connections, rounded up to as many for each server that is listed.
        timeout_s: deadline of a call.
        credentials: a key, TLS; by default none of them.
        in_turns: whether each connection takes the servers in turns, or has one of its own.
    """

    def __init__(
        self,
        address: str,
        number: int,
        timeout_s: float,
        credentials: Credentials | None = None,
        in_turns: bool = True,
    ) -> None:
        """Open the channels; connections are made by the first calls."""
        credentials = credentials or Credentials()
        self._address, self._timeout_s = address, timeout_s
        self._metadata = credentials.metadata
        of_channel = credentials.of_channel()
        places = [address] if in_turns else single_addresses(address)
        self._channels = [
            grpc.aio.insecure_channel(place, _OPTIONS)
            if of_channel is None
            else grpc.aio.secure_channel(place, of_channel, _OPTIONS)
            for _ in range(-(-number // len(places)))
            for place in places
        ]
        self._generate = [
            channel.unary_unary(f"{_SERVICE}GenerateResponses", None, None)
            for channel in self._channels
        ]

    async def __aenter__(self) -> Channels:
        """Return the object itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)

    async def send(self, request: bytes, client: int) -> tuple[str, bytes]:
        """Ask for responses; return the status and the reply, both as they came."""
        call = self._generate[client % len(self._generate)]
        try:
            reply: bytes = await call(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return error.code().name, b""
        return grpc.StatusCode.OK.name, reply

    async def get_model(self) -> dialog_pb2.GetModelResponse:
        """Tell what is served.

        Raises:
            SiserveError: if nobody answers.
        """
        call = self._channels[0].unary_unary(f"{_SERVICE}GetModel", None, None)
        try:
            reply: bytes = await call(b"", timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(error, self._address, self._timeout_s) from None
        return dialog_pb2.GetModelResponse.FromString(reply)

    async def replies(self, wanted: int) -> list[str]:
        """Ask until there are as many different replies, each about a reply before.

        Raises:
            SiserveError: if a request is refused.
        """
        model = await self.get_model()
        n, text = min(32, model.limits.max_responses), "hello , how are you ?"
        found: dict[str, None] = {}
        for number in range(2 * -(-wanted // n)):
            request = dialog_pb2.GenerateResponsesRequest(
                context=[dialog_pb2.Utterance(speaker="A", text=text)], n=n, seed=number
            )
            code, reply = await self.send(request.SerializeToString(), number)
            if not reply:
                raise SiserveError(f"{self._address} answers a request of n={n} with {code}")
            told = dialog_pb2.GenerateResponsesResponse.FromString(reply)
            found.update(dict.fromkeys(each.text for each in told.responses if each.text))
            text = next((each.text for each in told.responses if each.text), text)
            if len(found) >= wanted:
                break
        return [*found]
