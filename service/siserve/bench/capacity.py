"""Replicas for a rate of requests, from what one replica was measured to do.

`siserve bench serve --rate` gives the p99 of one replica at several rates; a curve through them
tells the rate within a p99 (`p99_curve`), and how sure it is. Beyond the highest rate measured
nothing is claimed, and nothing where the figures do not tell the rate within a fifth. A balancer
that spreads requests evenly gives each of R replicas 1/R of the rate, in arrivals no more irregular
than those of the measurement, so R replicas bear R times what one does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile

import numpy as np

from siserve.bench.p99_curve import P99Curve
from siserve.bundle.errors import SiserveError, UsageError

__all__ = [
    "Bearable",
    "Curve",
    "Plan",
    "Point",
    "Target",
    "lowest_p99",
    "plan_replicas",
    "rate_at",
    "rate_within",
]

#: A rate is told if it is as sure, as a share of it.
_MOST_DOUBT = 0.2
#: Of the p99 that are tried for the lowest that is sure; each is 1 % above the last or less.
_STEP = 1.01


@dataclass(frozen=True)
class Point:
    """What one replica did at one rate.

    Attributes:
        rate: arrivals per second.
        p99s_ms: of each round; 99 % were answered within; infinite if any request failed.
        answered: number of requests behind it.
    """

    rate: float
    p99s_ms: Sequence[float]
    answered: int

    @property
    def p99_ms(self) -> float:
        """Median over the rounds; infinite if a request failed in any."""
        return math.inf if math.inf in self.p99s_ms else statistics.median(self.p99s_ms)


@dataclass(frozen=True)
class Curve:
    """One replica at n responses for a request.

    Attributes:
        n: responses of a request.
        points: by ascending rate, at least one.
    """

    n: int
    points: Sequence[Point]

    @cached_property
    def p99(self) -> P99Curve:
        """Through the points below the first at which a request failed.

        Raises:
            SiserveError: if that is the lowest.
        """
        borne = [*takewhile(lambda point: math.isfinite(point.p99_ms), self.points)]
        if not borne:
            raise SiserveError(
                f"requests of n={self.n} failed at {self.points[0].rate:g} requests/s, the lowest "
                "rate measured; measure lower rates"
            )
        return P99Curve([point.rate for point in borne], [point.p99s_ms for point in borne])


@dataclass(frozen=True)
class Target:
    """What is wanted.

    Attributes:
        rps: requests per second.
        p99_ms: 99 % are to be answered within.
        n: responses of a request.
        headroom: share of what a replica bears that is left free; 0 to below 1.
        spare: replicas that may be away, in a rollout say, while the rest bears all.
    """

    rps: float
    p99_ms: float
    n: int
    headroom: float
    spare: int


@dataclass(frozen=True)
class Bearable:
    """What one replica bears within a p99.

    Attributes:
        rps: most requests per second.
        is_highest_measured: whether that is the highest rate measured, and a replica may bear more.
        doubt: `rps` is that sure, as a share of it (95 %); None = too few rounds to tell.
    """

    rps: float
    is_highest_measured: bool
    doubt: float | None


@dataclass(frozen=True)
class Plan:
    """What that takes.

    Attributes:
        replica: what one bears within the p99, headroom not taken off.
        replicas: number of them, the spare ones included.
        use: share of `replica.rps` that each has to bear when all are there.
    """

    replica: Bearable
    replicas: int
    use: float


def lowest_p99(curve: Curve) -> float:
    """Return the least p99 in milliseconds for which the rate is sure; infinite if there is none.

    It is not below that of the lowest rate measured.
    """
    p99 = curve.p99
    steps = 2 + math.ceil(math.log(p99.highest_ms / p99.lowest_ms) / math.log(_STEP))
    tried = np.geomspace(p99.lowest_ms, p99.highest_ms, steps)
    return next((each for each in map(float, tried) if _is_sure(p99.doubt_at(each))), math.inf)


def rate_within(curve: Curve, p99_ms: float) -> Bearable:
    """Return the highest rate whose p99 is within a limit.

    Raises:
        SiserveError: if the figures do not support one.
    """
    doubt = curve.p99.doubt_at(p99_ms)
    if p99_ms < curve.p99.lowest_ms * (1 - 1e-9) or not _is_sure(doubt):
        raise SiserveError(_refusal(curve, p99_ms))
    none_failed = all(math.isfinite(point.p99_ms) for point in curve.points)
    is_highest = none_failed and p99_ms >= curve.p99.highest_ms
    return Bearable(curve.p99.rate_at(p99_ms), is_highest, doubt)


def _is_sure(doubt: float | None) -> bool:
    return doubt is None or doubt <= _MOST_DOUBT


def _refusal(curve: Curve, p99_ms: float) -> str:
    """What was asked, what the figures support, what to do."""
    lowest, first = lowest_p99(curve), curve.points[0]
    asked = f"no plan for 99 % within {p99_ms:g} ms at n={curve.n}: "
    if not math.isfinite(lowest):
        return f"{asked}the rounds of the figures differ too much; measure more and longer rounds"
    return (
        f"{asked}the figures support one from {math.ceil(10 * lowest) / 10:g} ms on, and one "
        f"replica takes {curve.p99.lowest_ms:.3g} ms at {first.rate:g} requests/s, the lowest rate "
        "measured; allow more, take faster replicas, or measure lower rates and more rounds"
    )


def rate_at(curves: Sequence[Curve], p99_ms: float, n: int) -> Bearable:
    """Return `rate_within` for n responses; between two measured n a request's cost is linear.

    Raises:
        UsageError: if n lies outside what was measured.
        SiserveError: as `rate_within`.
    """
    ordered = sorted(curves, key=lambda curve: curve.n)
    for curve in ordered:
        if curve.n == n:
            return rate_within(curve, p99_ms)
    for below, above in pairwise(ordered):
        if below.n < n < above.n:
            low, high = (rate_within(curve, p99_ms) for curve in (below, above))
            share = (n - below.n) / (above.n - below.n)
            doubts = [each.doubt for each in (low, high) if each.doubt is not None]
            return Bearable(
                1 / ((1 - share) / low.rps + share / high.rps),
                low.is_highest_measured or high.is_highest_measured,
                max(doubts) if len(doubts) == 2 else None,
            )
    measured = ", ".join(str(curve.n) for curve in ordered)
    raise UsageError(f"--n must lie within what was measured ({measured}), got {n}")


def plan_replicas(curves: Sequence[Curve], target: Target) -> Plan:
    """Divide the rate that is wanted by what one replica bears.

    Raises:
        UsageError: if n lies outside what was measured.
        SiserveError: if the figures do not support a plan for the p99.
    """
    replica = rate_at(curves, target.p99_ms, target.n)
    needed = math.ceil(target.rps / (replica.rps * (1 - target.headroom)) - 1e-9)
    replicas = max(1, needed) + target.spare
    return Plan(replica, replicas, target.rps / replicas / replica.rps)
