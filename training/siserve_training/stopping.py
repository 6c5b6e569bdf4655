"""Stop signals as a flag that a loop looks at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["StopFlag", "stop_signals"]


@dataclass
class StopFlag:
    """Set by SIGINT or SIGTERM; the loop ends after the step at hand."""

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn SIGINT and SIGTERM into a flag; a second SIGINT acts as usual, for who is in a hurry.

    SIGTERM may come several times: the kernel tells a child of its parent's death once for each of
    the parent's threads.
    """
    flag = StopFlag()
    previous: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        flag.requested = True
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    for which in (signal.SIGINT, signal.SIGTERM):
        previous[which] = signal.signal(which, on_signal)
    try:
        yield flag
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
