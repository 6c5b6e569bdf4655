"""Who may ask for how much: one bucket of tokens for each caller, one token a response."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from siserve.serving.errors import RateExceeded

__all__ = ["RateLimit", "RateLimiter", "Take"]

#: RateLimiter.take of a limiter that may be in another process.
Take = Callable[[str, int], Awaitable[None]]

_MAX_BUCKETS = 4096


@dataclass(frozen=True)
class RateLimit:
    """What each caller may ask for.

    Attributes:
        responses_per_second: in the long run; 0 = without limit.
        burst: responses at once after a pause.
    """

    responses_per_second: float = 0.0
    burst: int = 256

    def __post_init__(self) -> None:
        """Refuse limits under which no request could pass."""
        if not self.responses_per_second >= 0:
            raise ValueError(
                f"responses_per_second must be 0 or more, got {self.responses_per_second}"
            )
        if self.burst < 1:
            raise ValueError(f"burst must be at least 1, got {self.burst}")


class RateLimiter:
    """Takes tokens from buckets that fill up by themselves.

    A request that is larger than the burst passes when its caller's bucket is full and leaves it in
    debt, so that every request passes some time and none gets more than its rate.

    Args:
        limit: of every caller.
        clock: monotonic seconds.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with full buckets."""
        self._limit = limit
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # by caller: tokens, when

    def take(self, caller: str, responses: int) -> None:
        """Take as many tokens as a request asks for responses.

        Args:
            caller: one of the names that the server itself gives, so that buckets stay few.
            responses: how many it asks for.

        Raises:
            RateExceeded: telling when the bucket will hold enough.
        """
        rate, burst = self._limit.responses_per_second, float(self._limit.burst)
        if not rate:
            return
        now = self._clock()
        tokens, then = self._buckets.get(caller, (burst, now))
        tokens = min(burst, tokens + (now - then) * rate)
        missing = min(float(responses), burst) - tokens
        if len(self._buckets) >= _MAX_BUCKETS:
            self._forget_full(now)
        if missing > 1e-9:
            self._buckets[caller] = (tokens, now)
            raise RateExceeded(f"more than {rate:g} responses a second were asked", missing / rate)
        self._buckets[caller] = (tokens - responses, now)

    def _forget_full(self, now: float) -> None:
        """Drop buckets that have filled up: they are as new ones."""
        rate, burst = self._limit.responses_per_second, self._limit.burst
        self._buckets = {
            caller: (tokens, then)
            for caller, (tokens, then) in self._buckets.items()
            if tokens + (now - then) * rate < burst
        }
