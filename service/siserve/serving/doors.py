"""The doors of the service: every call's bytes, status and metrics pass here.

grpc.aio answers a message that does not parse with UNKNOWN and an exception's name, before any
servicer sees it. So the doors take raw bytes, parse them here, and give each error its status.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from siserve.serving.calls import Call, OpenCalls
from siserve.serving.errors import DeadlinePassed, QueueFull, RequestError
from siserve.serving.gate import Gate, Metadata
from siserve.serving.logs import log_call
from siserve.serving.metrics import CallMetrics
from siserve.serving.parsing import parse
from siserve.serving.requests import RequestLimits
from siserve.serving.status import code_of, details_of
from siserve.serving.tracing import Tracing
from siserve.v1 import admin_pb2, dialog_pb2

__all__ = ["ADMIN", "DIALOG", "SERVICE", "Hall", "Overflow", "request_id", "service_handler"]

DIALOG = dialog_pb2.DESCRIPTOR.services_by_name["DialogService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
SERVICE = DIALOG.full_name

_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Message, Call], Any]
_Trailing = tuple[tuple[str, str | bytes], ...]


def service_handler(
    service: ServiceDescriptor, servicers: Mapping[str, object], hall: Hall
) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of every method of a service that takes one message.

    Args:
        service: as its proto describes it.
        servicers: by the service's name, once calls are taken, what has an async method for each
            method of the proto, by its name; an async generator where the proto streams.
        hall: what every call passes.
    """

    def handler(method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        kind = message_factory.GetMessageClass(method.input_type)

        def answer(message: Message, call: Call) -> Any:
            return getattr(servicers[service.full_name], method.name)(message, call)

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream_door(method.name, kind, answer, hall),
                request_deserializer=None,
                response_serializer=None,
            )
        return grpc.unary_unary_rpc_method_handler(
            _door(method.name, kind, answer, hall),
            request_deserializer=None,
            response_serializer=None,
        )

    return grpc.method_handlers_generic_handler(
        service.full_name, {method.name: handler(method) for method in service.methods}
    )


class Overflow(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Refuses calls that would wait for a decoder, unread, while there is no room for them.

    It stands before the handler of their service: gRPC takes a call in one step and reads its
    message in the next, and under overload neither that nor anything that follows is to be paid.

    Args:
        servicers: see service_handler; that of the dialogs has `queued` and `check_room`.
        hall: what refused calls pass too.
    """

    def __init__(self, servicers: Mapping[str, object], hall: Hall) -> None:
        """Refuse nothing before there is a servicer."""
        self._servicers, self._hall = servicers, hall

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler that refuses a call, or None if it may go on."""
        path, _, name = handler_call_details.method.rpartition("/")
        servicer: Any = self._servicers.get(path[1:])
        if name not in getattr(servicer, "queued", ()):
            return None
        try:
            servicer.check_room()
        except QueueFull as error:
            # As of a call that streams its request, since those are not read before their handler.
            return grpc.stream_unary_rpc_method_handler(partial(self._refuse, name, error))
        return None

    async def _refuse(self, name: str, error: QueueFull, unread: object, context: Context) -> None:
        async with self._hall.passage(name, context):
            raise error


def _door(
    name: str, kind: type[Message], answer: Answer, hall: Hall
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def pass_through(serialized: bytes, context: Context) -> bytes:
        async with hall.passage(name, context) as call:
            message: Message = await answer(parse(kind, serialized, hall.limits), call)
            return message.SerializeToString()

    return pass_through


def _stream_door(
    name: str, kind: type[Message], answer: Answer, hall: Hall
) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def pass_through(serialized: bytes, context: Context) -> AsyncIterator[bytes]:
        async with hall.passage(name, context) as call:
            async with aclosing(answer(parse(kind, serialized, hall.limits), call)) as messages:
                async for message in messages:
                    yield message.SerializeToString()

    return pass_through


class Hall:
    """What every call passes, whatever it asks: the gate, the counters, the naming of errors.

    Args:
        metrics: told of each call's status and time.
        calls: told of each call's begin and end.
        gate: says who calls, before a message is parsed.
        limits: what a message may hold to be parsed.
        tracing: told of each call; None = nobody is.
        exemplars: whether metrics are told the trace that a call belongs to.
        meet: told the peer of each call; None = nobody is.
    """

    def __init__(
        self,
        metrics: CallMetrics,
        calls: OpenCalls,
        gate: Gate,
        limits: RequestLimits,
        tracing: Tracing | None = None,
        exemplars: bool = False,
        meet: Callable[[str], None] | None = None,
    ) -> None:
        """Keep them."""
        self._metrics, self.calls, self.gate, self.meet = metrics, calls, gate, meet
        self.limits = limits
        self._tracing, self._exemplars = tracing, exemplars
        self._line_told, self._lines_untold = 0.0, 0

    def passage(self, name: str, context: Context) -> _Passage:
        """Let a call through; what goes wrong in it ends it with its status."""
        return _Passage(self, name, context)

    def told(
        self, name: str, code: str, seconds: float, metadata: Metadata, facts: dict[str, Any]
    ) -> None:
        """Tell metrics, log and traces of a call that was answered."""
        trace = ""
        if self._exemplars or self._tracing is not None:
            texts = {key: value for key, value in metadata if isinstance(value, str)}
            trace = trace_id(texts.get("traceparent", ""))
            if self._tracing is not None:
                trace = self._tracing.tell(name, code, seconds, texts, facts)
        self._metrics.call_answered(name, code, seconds, trace if self._exemplars else "")
        if code != grpc.StatusCode.RESOURCE_EXHAUSTED.name or self._is_worth_a_line(facts):
            log_call(name, code, seconds, facts)

    def _is_worth_a_line(self, facts: dict[str, Any]) -> bool:
        """Let one line a second tell of calls that are refused by the thousand."""
        now = time.monotonic()
        if now - self._line_told < 1:
            self._lines_untold += 1
            return False
        if self._lines_untold:
            facts["refused_since_last_line"] = self._lines_untold
        self._line_told, self._lines_untold = now, 0
        return True


class _Passage:
    """One call in the hall, from its door to its answer: `async with` it."""

    def __init__(self, hall: Hall, name: str, context: Context) -> None:
        self._started = time.perf_counter()
        self._hall, self._name, self._context = hall, name, context
        self._metadata: Metadata = tuple(context.invocation_metadata() or ())
        self._facts: dict[str, Any] = {"request_id": request_id(self._metadata)}

    async def __aenter__(self) -> Call:
        hall, context = self._hall, self._context
        try:
            if hall.meet is not None:
                hall.meet(context.peer())
            hall.calls.begin()
            certificate = context.auth_context() if hall.gate.reads_certificates else None
            caller = hall.gate.identify(self._metadata, certificate)
            self._facts["caller"] = caller.name
            return Call(caller, _deadline(context), self._facts)
        except BaseException as error:
            await self._end(error)
            raise

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        await self._end(error)

    async def _end(self, error: BaseException | None) -> None:
        context, end = self._context, self._hall.calls.end
        told: _Trailing = (("x-request-id", self._facts["request_id"]),)
        if error is None:
            context.set_trailing_metadata(told)
            self._tell(grpc.StatusCode.OK)
            context.add_done_callback(lambda _: end())  # type: ignore[arg-type]
            return
        try:
            if isinstance(error, RequestError):
                code, text, told = code_of(error), str(error), (*told, *details_of(error))
            elif isinstance(error, Exception):
                _log.error("%s failed", self._name, exc_info=error)
                code = grpc.StatusCode.INTERNAL
                text = "the server failed on this request; see its log"
            else:  # who asked is gone
                return self._tell(_reason_of_cancel(context))
            self._tell(code)
            await context.abort(code, text, told)
        finally:
            end()

    def _tell(self, code: grpc.StatusCode) -> None:
        """Tell of the call before its answer is sent: who has it finds it counted."""
        seconds = time.perf_counter() - self._started
        self._hall.told(self._name, code.name, seconds, self._metadata, self._facts)


def request_id(metadata: Metadata) -> str:
    """Return the id that a caller gave its call in ``x-request-id``, or a new one."""
    for name, value in metadata:
        if name == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def trace_id(traceparent: str) -> str:
    """Return the id of the trace that a W3C header names, or "" if it names none."""
    found = _TRACE_PARENT.fullmatch(traceparent)
    return found.group(1) if found and int(found.group(1), 16) else ""


def _deadline(context: Context) -> float:
    remaining = _time_remaining(context)
    if remaining is None:
        return float("inf")
    if remaining <= 0:
        raise DeadlinePassed("the deadline had passed when the request came")
    return time.monotonic() + remaining


def _reason_of_cancel(context: Context) -> grpc.StatusCode:
    """grpc.aio cancels the handler both when the client gives up and when its deadline passes."""
    remaining = _time_remaining(context)
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _time_remaining(context: Context) -> float | None:
    """Seconds until the client's deadline; None if it set none."""
    return cast("float | None", context.time_remaining())
