"""The p99 of one replica over its rate: a curve through what was measured, and how sure it is.

    p99(rate) = idle / (1 - rate / full)^power                                               (1)

With power 1 it is the queue of M/M/1, whose p99 is idle / (1 - rate / full) (Kleinrock, Queueing
Systems, volume 1, 1975). An engine that decodes together what waits together bears more than that
queue as it fills, so all three numbers are fitted, and used only between the rates measured.

A p99 that is measured once is off by a tenth and more, and near idle, where the curve is flat, the
rate that belongs to it is off by several times as much. So all levels make one curve, and rounds
tell how sure it is: drawn again with repetition, they give as many other curves (Efron, Bootstrap
Methods, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST_ROUNDS", "P99Curve"]

#: Of them the scatter can be told.
FEWEST_ROUNDS = 3

_Floats = NDArray[np.float64]

_DRAWS = 400
#: An exponent that means without bound.
_LARGE = 50.0
#: Of logarithms of p99: rounds of a few hundred requests differ by as much, even if these do not.
_LEAST_SPREAD = 0.1
_SURE = 0.95
#: Candidates for `full`, in highest rates measured; of two that fit alike the first is taken.
_FULL = 1 + np.geomspace(3.0, 0.02, 160)


@dataclass(frozen=True, eq=False)
class _Fits:
    """Parameters of (1), each (number of fits,)."""

    log_idle: _Floats
    full: _Floats
    power: _Floats

    def p99_at(self, rate: float) -> _Floats:
        return np.asarray(np.exp(self.log_idle - self.power * np.log1p(-rate / self.full)))

    def rate_at(self, p99: float) -> _Floats:
        """The inverse; without any bound where a curve is flat."""
        exponent = (self.log_idle - np.log(p99)) / np.maximum(self.power, 1e-6)
        return np.asarray(-self.full * np.expm1(np.minimum(exponent, _LARGE)))


class P99Curve:
    """A curve (1) through levels.

    Args:
        rates: requests per second of each level, ascending.
        p99s_ms: of each level the p99 of each round, finite.
    """

    def __init__(self, rates: Sequence[float], p99s_ms: Sequence[Sequence[float]]) -> None:
        """Fit; a level counts with the median of its rounds, and less if they differ much."""
        self._rates = np.asarray(rates, dtype=np.float64)
        self._logs = [np.log(each) for each in p99s_ms]
        spread = [each.std(ddof=1) if len(each) >= FEWEST_ROUNDS else 0.0 for each in self._logs]
        self._weights = 1 / (np.square(spread) + _LEAST_SPREAD**2)
        self._fit = self._fitted(np.array([[np.median(each) for each in self._logs]]))

    @property
    def lowest_ms(self) -> float:
        """The p99 at the lowest rate measured."""
        return self.p99_at(float(self._rates[0]))

    @property
    def highest_ms(self) -> float:
        """The p99 at the highest rate measured."""
        return self.p99_at(float(self._rates[-1]))

    def p99_at(self, rate: float) -> float:
        """The p99 in milliseconds at a rate."""
        return float(self._fit.p99_at(rate)[0])

    def rate_at(self, p99_ms: float) -> float:
        """The highest rate within a p99, but no more than the highest measured."""
        return float(np.clip(self._fit.rate_at(p99_ms)[0], 0.0, self._rates[-1]))

    def doubt_at(self, p99_ms: float) -> float | None:
        """Half of the range where 95 % of redrawn curves have the rate, as a share of the rate.

        None = fewer rounds than `FEWEST_ROUNDS`, which tell nothing.
        """
        if self._redrawn is None:
            return None
        rates = np.clip(self._redrawn.rate_at(p99_ms), 0.0, self._rates[-1])
        low, high = np.quantile(rates, [(1 - _SURE) / 2, (1 + _SURE) / 2])
        return float(high - low) / 2 / max(self.rate_at(p99_ms), 1e-9)

    @cached_property
    def _redrawn(self) -> _Fits | None:
        if min(len(each) for each in self._logs) < FEWEST_ROUNDS:
            return None
        dice = np.random.default_rng(0)
        drawn = [dice.choice(each, (_DRAWS, len(each))) for each in self._logs]  # (draws, rounds)
        return self._fitted(np.stack([np.median(each, axis=1) for each in drawn], axis=1))

    def _fitted(self, logs: _Floats) -> _Fits:
        """Least squares of the logarithm of (1), once for each row of logs, (rows, levels)."""
        share = self._weights / self._weights.sum()
        full = _FULL * self._rates[-1]
        rise = -np.log1p(-self._rates / full[:, None])  # (full, levels)
        rise_mean, log_mean = rise @ share, logs @ share
        rise, above = rise - rise_mean[:, None], logs - log_mean[:, None]
        squares, products = rise**2 @ share, above @ (share * rise).T  # (full,), (rows, full)
        power = np.maximum(products / np.maximum(squares, 1e-12), 0.0)  # a p99 does not fall
        left = (above**2 @ share)[:, None] - power * (2 * products - power * squares)
        best, row = left.round(9).argmin(-1), np.arange(len(logs))
        chosen = power[row, best]
        return _Fits(log_mean - chosen * rise_mean[best], full[best], chosen)
