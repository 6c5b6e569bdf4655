"""The doors of the service: every call's bytes, status and metrics pass here.

grpc.aio answers a message that does not parse with UNKNOWN and an exception's name, before any
servicer sees it. So the doors take raw bytes, parse them here, and give each error its status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from siserve.serving.calls import Call, OpenCalls
from siserve.serving.errors import DeadlinePassed, RequestError
from siserve.serving.gate import Gate
from siserve.serving.metrics import Metrics
from siserve.serving.requests import parse
from siserve.serving.status import code_of, details_of
from siserve.v1 import admin_pb2, dialog_pb2

__all__ = ["ADMIN", "DIALOG", "SERVICE", "service_handler"]

DIALOG = dialog_pb2.DESCRIPTOR.services_by_name["DialogService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
SERVICE = DIALOG.full_name

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Call], Awaitable[Message]]


def service_handler(
    service: ServiceDescriptor,
    servicers: Mapping[str, object],
    metrics: Metrics,
    calls: OpenCalls,
    gate: Gate,
) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of every unary method of a service.

    Args:
        service: as its proto describes it.
        servicers: by the service's name, once calls are taken, what has an async method for each
            method of the proto, by its name.
        metrics: told of each call's status and time.
        calls: told of each call's begin and end.
        gate: says who calls, before a message is parsed.
    """

    def answer(name: str) -> Answer:
        async def ask_servicer(message: Message, call: Call) -> Message:
            method: Answer = getattr(servicers[service.full_name], name)
            return await method(message, call)

        return ask_servicer

    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(
                _door(
                    method.name,
                    message_factory.GetMessageClass(method.input_type),
                    answer(method.name),
                    metrics,
                    calls,
                    gate,
                ),
                request_deserializer=None,
                response_serializer=None,
            )
            for method in service.methods
        },
    )


def _door(
    name: str,
    kind: type[Message],
    answer: Answer,
    metrics: Metrics,
    calls: OpenCalls,
    gate: Gate,
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def pass_through(serialized: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        context.add_done_callback(lambda _: calls.end())  # type: ignore[arg-type]
        try:
            calls.begin()
            call = _call(context, gate)
            reply = await answer(parse(kind, serialized), call)
            return reply.SerializeToString()
        except RequestError as error:
            code = code_of(error)
            await _abort(context, code, str(error), details_of(error))
        except asyncio.CancelledError:
            code = _reason_of_cancel(context)
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s failed", name)
            await _abort(context, code, "the server failed on this request; see its log")
        finally:
            metrics.call_answered(name, code.name, time.perf_counter() - started)

    return pass_through


def _call(context: Context, gate: Gate) -> Call:
    caller = gate.identify(context.invocation_metadata() or (), context.auth_context())
    remaining = _time_remaining(context)
    if remaining is None:
        return Call(caller)
    if remaining <= 0:
        raise DeadlinePassed("the deadline had passed when the request came")
    return Call(caller, time.monotonic() + remaining)


async def _abort(
    context: Context,
    code: grpc.StatusCode,
    text: str,
    details: tuple[tuple[str, bytes], ...] = (),
) -> NoReturn:
    await context.abort(code, text, details)
    raise AssertionError("abort raises")


def _reason_of_cancel(context: Context) -> grpc.StatusCode:
    """grpc.aio cancels the handler both when the client gives up and when its deadline passes."""
    remaining = _time_remaining(context)
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _time_remaining(context: Context) -> float | None:
    """Seconds until the client's deadline; None if it set none."""
    return cast("float | None", context.time_remaining())
