"""Why a request was not answered, as one tree; the servicer gives each its gRPC status.

SiserveError
└── RequestError
    ├── InvalidRequest   a field breaks a limit: INVALID_ARGUMENT
    ├── UnknownModel     no such model is served: NOT_FOUND
    ├── QueueFull        too many requests wait: RESOURCE_EXHAUSTED
    ├── ShuttingDown     the server takes no more requests: UNAVAILABLE
    ├── DeadlinePassed   the client's deadline came first: DEADLINE_EXCEEDED
    └── RequestCancelled the client gave up: CANCELLED
"""

from __future__ import annotations

from siserve.bundle.errors import SiserveError

__all__ = [
    "DeadlinePassed",
    "InvalidRequest",
    "QueueFull",
    "RequestCancelled",
    "RequestError",
    "ShuttingDown",
    "UnknownModel",
]


class RequestError(SiserveError):
    """A request that gets no responses."""


class InvalidRequest(RequestError):
    """A field of the request breaks a limit.

    Attributes:
        field: path of the field, as in ``context[3].text``.
    """

    exit_code = 2

    def __init__(self, field: str, problem: str) -> None:
        """Begin the message with the field, as the contract says."""
        super().__init__(f"{field}: {problem}")
        self.field = field


class UnknownModel(RequestError):
    """The request names a model that is not served."""

    exit_code = 2


class QueueFull(RequestError):
    """As many requests wait as may wait."""


class ShuttingDown(RequestError):
    """No more requests are taken."""


class DeadlinePassed(RequestError):
    """The client's deadline passed before its responses were complete."""


class RequestCancelled(RequestError):
    """The client gave up."""
