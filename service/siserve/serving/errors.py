"""Why a request was not answered, as one tree; the servicer gives each its gRPC status.

SiserveError
└── RequestError
    ├── InvalidRequest   a field breaks a limit: INVALID_ARGUMENT
    ├── UnknownModel     no such model is served: NOT_FOUND
    ├── TryLater         the message says when: RESOURCE_EXHAUSTED
    │   ├── QueueFull    too many responses wait to be decoded
    │   └── RateExceeded the caller asks for more than its share
    ├── NotPossible      not as things stand: FAILED_PRECONDITION
    ├── NotAllowed       not with this key: PERMISSION_DENIED
    ├── Unauthenticated  no valid key: UNAUTHENTICATED
    ├── ShuttingDown     the server takes no more requests: UNAVAILABLE
    ├── DeadlinePassed   the client's deadline came first: DEADLINE_EXCEEDED
    └── RequestCancelled the client gave up: CANCELLED
"""

from __future__ import annotations

from siserve.bundle.errors import SiserveError

__all__ = [
    "DeadlinePassed",
    "InvalidRequest",
    "NotAllowed",
    "NotPossible",
    "QueueFull",
    "RateExceeded",
    "RequestCancelled",
    "RequestError",
    "ShuttingDown",
    "TryLater",
    "Unauthenticated",
    "UnknownModel",
]


class RequestError(SiserveError):
    """A request that gets no responses."""


class InvalidRequest(RequestError):
    """A field of the request breaks a limit.

    Attributes:
        field: path of the field, as in ``context[3].text``.
        problem: what is wrong with it.
    """

    exit_code = 2

    def __init__(self, field: str, problem: str) -> None:
        """Begin the message with the field, as the contract says."""
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnknownModel(RequestError):
    """The request names a model that is not served."""

    exit_code = 2


class NotPossible(RequestError):
    """Nothing is wrong with the request, but it cannot be done as things stand."""


class NotAllowed(RequestError):
    """The caller is known and may not do this."""


class Unauthenticated(RequestError):
    """The call carries no valid key; nothing tells what is wrong with it."""


class TryLater(RequestError):
    """Nothing is wrong with the request but its moment.

    Attributes:
        problem: what is wrong with it.
        retry_after_s: when it is worth another try, in seconds from now.
    """

    def __init__(self, problem: str, retry_after_s: float) -> None:
        """End the message with the time to wait."""
        super().__init__(f"{problem}; try again in {retry_after_s:.2g} s")
        self.problem = problem
        self.retry_after_s = retry_after_s


class QueueFull(TryLater):
    """As many responses wait as may wait."""


class RateExceeded(TryLater):
    """The caller has used up what it may ask for."""


class ShuttingDown(RequestError):
    """No more requests are taken."""


class DeadlinePassed(RequestError):
    """The client's deadline passed before its responses were complete."""


class RequestCancelled(RequestError):
    """The client gave up."""
