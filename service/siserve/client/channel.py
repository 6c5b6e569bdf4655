"""What both clients share: how calls are tried again, and what a failed one tells."""

from __future__ import annotations

import json
from typing import cast

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from siserve.bundle.errors import SiserveError
from siserve.v1 import dialog_pb2

__all__ = ["OPTIONS", "ClientError", "failure"]

_SERVICE = dialog_pb2.DESCRIPTOR.services_by_name["DialogService"]

#: Calls that failed because a server was gone are tried again, on another address if there is one.
#: A server whose health says that it drains gets no new ones: of those that reach it while it
#: stops, the library cancels some, and that is not tried again.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": _SERVICE.full_name},
        "methodConfig": [
            {
                "name": [{"service": _SERVICE.full_name}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
_WRONG_USE = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


class ClientError(SiserveError):
    """A call that failed.

    Attributes:
        code: the gRPC status.
        retry_after_s: when the server would have it tried again, in seconds; None if it said not.
    """

    def __init__(
        self, message: str, code: grpc.StatusCode, retry_after_s: float | None = None
    ) -> None:
        """Keep the status beside the server's message."""
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.exit_code = 2 if code in _WRONG_USE else 1


#: Of every channel of ours. A server that was restarted is found again within two seconds instead
#: of two minutes; one that vanished in the middle of a call is found out.
OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def failure(error: grpc.RpcError, address: str, timeout_s: float) -> ClientError:
    """Tell a failed call as our own error.

    Args:
        error: of a sync or an async call.
        address: that was asked.
        timeout_s: deadline that the call had.
    """
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"no server answers at {address} ({details}); is `siserve serve` up?"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no answer from {address} within {timeout_s:g} s"
    return ClientError(str(details), code, _retry_after_s(error))


def _retry_after_s(error: grpc.RpcError) -> float | None:
    status = rpc_status.from_call(cast(grpc.Call, error))
    for detail in status.details if status is not None else ():
        retry = RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToNanoseconds()) / 1e9
    return None
