"""Replicas for a rate of requests, from what one replica was measured to do.

No law of queues is assumed. `siserve bench serve --rate` gives the p99 of one replica at several
rates; between two of them it is taken as a straight line, and beyond the highest nothing is
claimed. A balancer that spreads requests evenly gives each of R replicas 1/R of the rate, in
arrivals no more irregular than those of the measurement, so R replicas bear R times what one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from siserve.bundle.errors import SiserveError, UsageError

__all__ = ["Curve", "Plan", "Point", "Target", "plan_replicas", "rate_at", "rate_within"]


@dataclass(frozen=True)
class Point:
    """What one replica did at one rate.

    Attributes:
        rate: arrivals per second.
        p99_ms: 99 % were answered within; infinite if any request failed.
        answered: number of requests behind it.
    """

    rate: float
    p99_ms: float
    answered: int


@dataclass(frozen=True)
class Curve:
    """One replica at n responses for a request.

    Attributes:
        n: responses of a request.
        points: by ascending rate, at least one.
    """

    n: int
    points: Sequence[Point]


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
class Plan:
    """What that takes.

    Attributes:
        replica_rps: most requests per second of one replica within the p99, headroom not taken off.
        is_highest_measured: whether that is the highest rate measured, and a replica may bear more.
        replicas: number of them, the spare ones included.
        use: share of `replica_rps` that each has to bear when all are there.
    """

    replica_rps: float
    is_highest_measured: bool
    replicas: int
    use: float


def rate_within(curve: Curve, p99_ms: float) -> tuple[float, bool]:
    """Return the highest rate whose p99 is within a limit, and whether none higher was measured.

    Rates above the first that is over the limit do not count, even if the p99 was lower there.

    Raises:
        SiserveError: if the lowest rate is over the limit already.
    """
    first = curve.points[0]
    if first.p99_ms > p99_ms:
        raise SiserveError(
            f"no number of replicas answers 99 % within {p99_ms:g} ms: one alone takes "
            f"{first.p99_ms:.3g} ms at {first.rate:g} requests/s of n={curve.n}, the lowest rate "
            "measured; allow more, take faster replicas, or measure lower rates"
        )
    for below, above in pairwise(curve.points):
        if above.p99_ms > p99_ms:
            share = (p99_ms - below.p99_ms) / (above.p99_ms - below.p99_ms)
            return below.rate + share * (above.rate - below.rate), False
    return curve.points[-1].rate, True


def rate_at(curves: Sequence[Curve], p99_ms: float, n: int) -> tuple[float, bool]:
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
            (low, low_end), (high, high_end) = (rate_within(c, p99_ms) for c in (below, above))
            share = (n - below.n) / (above.n - below.n)
            return 1 / ((1 - share) / low + share / high), low_end or high_end
    measured = ", ".join(str(curve.n) for curve in ordered)
    raise UsageError(f"--n must lie within what was measured ({measured}), got {n}")


def plan_replicas(curves: Sequence[Curve], target: Target) -> Plan:
    """Divide the rate that is wanted by what one replica bears.

    Raises:
        UsageError: if n lies outside what was measured.
        SiserveError: if not even an idle replica answers in time.
    """
    replica_rps, is_highest = rate_at(curves, target.p99_ms, target.n)
    needed = math.ceil(target.rps / (replica_rps * (1 - target.headroom)) - 1e-9)
    replicas = max(1, needed) + target.spare
    return Plan(replica_rps, is_highest, replicas, target.rps / replicas / replica_rps)
