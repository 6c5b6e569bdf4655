"""From the engines' threads to the event loop, which is woken once for all there is to tell."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Post"]


class Post:
    """Takes what other threads want done to the event loop, which is woken once for all of it.

    An engine ends a dozen requests in one breath; to wake the loop for each costs more than what
    the loop then does.
    """

    def __init__(self) -> None:
        """Belong to the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._sent: deque[Callable[[], None]] = deque()
        self._is_awaited = False

    def send(self, act: Callable[[], None]) -> None:
        """Have something done by the loop; from any thread, in the order of sending."""
        self._sent.append(act)
        if not self._is_awaited:
            self._is_awaited = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._act)

    def _act(self) -> None:
        self._is_awaited = False  # first: what is sent from now on wakes the loop again
        while self._sent:
            self._sent.popleft()()
