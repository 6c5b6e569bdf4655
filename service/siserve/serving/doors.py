"""The doors of the service: every call's bytes, status and metrics pass here.

grpc.aio answers a message that does not parse with UNKNOWN and an exception's name, before any
servicer sees it. So the doors take raw bytes, parse them here, and give each error its status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

from siserve.serving.errors import (
    DeadlinePassed,
    InvalidRequest,
    QueueFull,
    RequestCancelled,
    RequestError,
    ShuttingDown,
    UnknownModel,
)
from siserve.serving.metrics import Metrics
from siserve.serving.requests import parse
from siserve.v1 import dialog_pb2

__all__ = ["SERVICE", "Context", "OpenCalls", "dialog_handler", "time_remaining"]

SERVICE = dialog_pb2.DESCRIPTOR.services_by_name["DialogService"].full_name

_STATUS: dict[type[RequestError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
}
_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any, Context], Awaitable[Message]]


class OpenCalls:
    """Counts the calls whose answer is not sent yet, so that a drain knows when it is done."""

    def __init__(self) -> None:
        """Begin with none, and open to more."""
        self.number = 0
        self._is_closed = False

    def close(self) -> None:
        """Refuse every call from now on."""
        self._is_closed = True

    def add(self, context: Context) -> None:
        """Count a call until its status has been sent.

        Raises:
            ShuttingDown: after close().
        """
        self.number += 1
        context.add_done_callback(self._done)  # type: ignore[arg-type]
        if self._is_closed:
            raise ShuttingDown("the server is shutting down; ask another one")

    def _done(self, _: object) -> None:
        self.number -= 1


def dialog_handler(
    servicer: object, metrics: Metrics, calls: OpenCalls
) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of every unary method of the service.

    Args:
        servicer: has an async method for each method of the proto, by its name.
        metrics: told of each call's status and time.
        calls: told of each call's begin and end.
    """
    service = dialog_pb2.DESCRIPTOR.services_by_name["DialogService"]
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            method.name: grpc.unary_unary_rpc_method_handler(
                _door(
                    method.name,
                    message_factory.GetMessageClass(method.input_type),
                    getattr(servicer, method.name),
                    metrics,
                    calls,
                ),
                request_deserializer=None,
                response_serializer=None,
            )
            for method in service.methods
        },
    )


def _door(
    name: str, kind: type[Message], call: Call, metrics: Metrics, calls: OpenCalls
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def answer(serialized: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            calls.add(context)
            reply = await call(parse(kind, serialized), context)
            return reply.SerializeToString()
        except RequestError as error:
            code = _STATUS[type(error)]
            await _abort(context, code, str(error))
        except asyncio.CancelledError:
            code = _reason_of_cancel(context)
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s failed", name)
            await _abort(context, code, "the server failed on this request; see its log")
        finally:
            metrics.call_answered(name, code.name, time.perf_counter() - started)

    return answer


async def _abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")


def _reason_of_cancel(context: Context) -> grpc.StatusCode:
    """grpc.aio cancels the handler both when the client gives up and when its deadline passes."""
    remaining = time_remaining(context)
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def time_remaining(context: Context) -> float | None:
    """Seconds until the client's deadline; None if it set none."""
    return cast("float | None", context.time_remaining())
