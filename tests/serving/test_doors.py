"""The doors while there is no room: who is refused, how early, and what is counted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from siserve.serving.calls import OpenCalls
from siserve.serving.doors import DIALOG, SERVICE, Hall, Overflow, service_handler
from siserve.serving.errors import QueueFull
from siserve.serving.gate import Gate
from siserve.serving.keys import Keyring, add_key
from siserve.serving.metrics import Metrics
from siserve.serving.requests import RequestLimits
from siserve.serving.servicer import DialogServicer
from siserve.v1 import dialog_pb2

NO_MESSAGE = b"\xff"


class FullServicer:
    """Has no room for what waits, and answers what does not."""

    queued = DialogServicer.queued

    def check_room(self) -> None:
        raise QueueFull("8 responses wait already", 1.5)

    async def GetModel(self, message, call) -> dialog_pb2.GetModelResponse:
        return dialog_pb2.GetModelResponse(name="full")


@asynccontextmanager
async def serving(hall: Hall) -> AsyncIterator[grpc.aio.Channel]:
    servicers: dict[str, object] = {SERVICE: FullServicer()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (Overflow(servicers, hall), service_handler(DIALOG, servicers, hall))
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def open_hall(gate: Gate) -> tuple[Hall, Metrics, OpenCalls]:
    metrics, calls = Metrics(), OpenCalls()
    calls.open()
    return Hall(metrics, calls, gate, RequestLimits()), metrics, calls


async def code_of(channel: grpc.aio.Channel, name: str, metadata=()) -> grpc.StatusCode:
    """Make a call of what is no message at all."""
    streams = DIALOG.methods_by_name[name].server_streaming
    make: Any = channel.unary_stream if streams else channel.unary_unary
    call = make(f"/{SERVICE}/{name}", None, None)(NO_MESSAGE, timeout=10, metadata=metadata)
    code = await call.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert str(await call.details()).startswith("8 responses wait already")
        trailing = dict(await call.trailing_metadata())
        assert b"RetryInfo" in trailing["grpc-status-details-bin"] and trailing["x-request-id"]
    return code


async def test_calls_that_would_wait_are_refused_unread_and_others_are_answered():
    hall, metrics, calls = open_hall(Gate(None))
    async with serving(hall) as channel:
        for name in DialogServicer.queued:
            assert await code_of(channel, name) is grpc.StatusCode.RESOURCE_EXHAUSTED
            labels = {"method": name, "code": "RESOURCE_EXHAUSTED"}
            assert metrics.registry.get_sample_value("siserve_requests_total", labels) == 1
        assert await code_of(channel, "GetModel") is grpc.StatusCode.INVALID_ARGUMENT
        get_model = channel.unary_unary(f"/{SERVICE}/GetModel", None, None)
        told = await get_model(dialog_pb2.GetModelRequest().SerializeToString(), timeout=10)
        assert dialog_pb2.GetModelResponse.FromString(told).name == "full"
    assert calls.number == 0


async def test_a_full_server_tells_that_to_nobody_without_a_key(tmp_path):
    key = add_key(tmp_path / "keys.txt", "ann")
    hall, _, calls = open_hall(Gate(Keyring(tmp_path / "keys.txt")))
    async with serving(hall) as channel:
        told = await code_of(channel, "GenerateResponses")
        assert told is grpc.StatusCode.UNAUTHENTICATED
        shown = (("authorization", f"Bearer {key}"),)
        told = await code_of(channel, "GenerateResponses", shown)
        assert told is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls.close()
        told = await code_of(channel, "GenerateResponses", shown)
        assert told is grpc.StatusCode.UNAVAILABLE  # a drain goes before a full queue
    assert calls.number == 0
