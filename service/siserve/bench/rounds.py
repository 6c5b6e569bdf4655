"""How variants take turns, and what is made of their times.

A machine drifts by more than the differences that one looks for. So every round visits all
variants, each round in the opposite order of the last (A B C, C B A, ...), ratios are taken within
a round, and a figure is the median over the rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["alternating", "median_ratio", "percentile"]

Item = TypeVar("Item")


def alternating(items: Sequence[Item], rounds: int) -> Iterator[tuple[int, Item]]:
    """Yield (round, item), forwards in even rounds and backwards in odd ones."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Return the median over rounds of slower / faster, each ratio out of one round.

    Raises:
        ValueError: if the rounds do not pair up.
    """
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed.

    Args:
        ordered: values in ascending order; none gives NaN.
        share: from 0 to 1.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
