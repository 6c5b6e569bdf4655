"""A call as the servicer sees it, whichever door it came through, and the calls that are open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from siserve.serving.errors import ShuttingDown
from siserve.serving.keys import Caller

__all__ = ["Call", "OpenCalls"]


@dataclass(frozen=True)
class Call:
    """Who asks, and how long they wait.

    Attributes:
        caller: whom the gate found.
        deadline: time.monotonic() after which nobody waits for the answer.
        facts: what the log tells of it, beside what it tells of every call; no text of users.
    """

    caller: Caller = Caller()
    deadline: float = float("inf")
    facts: dict[str, Any] = field(default_factory=dict)


class OpenCalls:
    """Counts the calls whose answer is not sent yet, so that a drain knows when it is done."""

    def __init__(self) -> None:
        """Begin with none, and refuse them until open()."""
        self.number = 0
        self._refusal = "the server is loading its models; try again shortly"

    def open(self) -> None:
        """Take calls from now on."""
        self._refusal = ""

    def close(self) -> None:
        """Refuse every call from now on."""
        self._refusal = "the server is shutting down; ask another one"

    def begin(self) -> None:
        """Count a call until end().

        Raises:
            ShuttingDown: before open() and after close(); it is counted all the same.
        """
        self.number += 1
        if self._refusal:
            raise ShuttingDown(self._refusal)

    def end(self) -> None:
        """Count a call no more."""
        self.number -= 1
