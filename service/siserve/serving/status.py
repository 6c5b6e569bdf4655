"""The gRPC status of each error, with the details of google.rpc that clients can act on."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from siserve.serving.errors import (
    DeadlinePassed,
    InvalidRequest,
    NotAllowed,
    NotPossible,
    QueueFull,
    RateExceeded,
    RequestCancelled,
    RequestError,
    ShuttingDown,
    TryLater,
    Unauthenticated,
    UnknownModel,
)

__all__ = ["code_of", "details_of"]

_DETAILS_KEY = "grpc-status-details-bin"
_CODES: dict[type[RequestError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RateExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotPossible: grpc.StatusCode.FAILED_PRECONDITION,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
}


def code_of(error: RequestError) -> grpc.StatusCode:
    """Return the status code that an error is told with."""
    return _CODES[type(error)]


def details_of(error: RequestError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of an error: RetryInfo or BadRequest where it has such."""
    detail: Message
    if isinstance(error, TryLater):
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        detail = RetryInfo(retry_delay=delay)
    elif isinstance(error, InvalidRequest):
        violation = BadRequest.FieldViolation(field=error.field, description=error.problem)
        detail = BadRequest(field_violations=[violation])
    else:
        return ()
    packed = Any()
    packed.Pack(detail)
    code: int = code_of(error).value[0]
    status = Status(code=code, message=str(error), details=[packed])
    return ((_DETAILS_KEY, status.SerializeToString()),)
