"""How sure a difference is: paired bootstrap over contexts, Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siserve_training.errors import ResponseError
from siserve_training.evaluation.scores import ResponseScores, add_f1

__all__ = ["Interval", "PairedDifference", "mean_interval", "paired_bootstrap", "student_quantile"]

Floats = npt.NDArray[np.float64]

_CHUNK = 200  # resamples at once: 200 x 5,481 weights are 9 MB
_LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """A metric of two sets over the same contexts.

    Attributes:
        a, b: the values.
        difference: b - a.
        low, high: its 95 % interval.
        p_value: two-sided, of no difference.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    a: ResponseScores, b: ResponseScores, resamples: int = 10_000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Compare two scored sets by drawing contexts with replacement, the same for both.

    Efron & Tibshirani 1993, chapter 13: percentiles of the resampled differences; p is twice the
    smaller share of resamples on one side of 0, ties on both, never below 2/(resamples + 1). F1
    is computed anew from the resampled means. It tells of these models on other contexts, not of
    other training runs; contexts of one dialog count as independent. Metrics of the whole
    set (corpus_distinct, sacrebleu) are no means over contexts and are left out.

    Args:
        a, b: scores of the same contexts in the same order.
        resamples: number of draws, at least 100.
        seed: of the draws.

    Raises:
        ResponseError: if the sets have different sizes or no metric in common.
    """
    names = [name for name in a.per_context if name in b.per_context]
    if not names or len(a.per_context[names[0]]) != len(b.per_context[names[0]]):
        raise ResponseError("expected two sets of the same contexts with a metric in common")
    if resamples < 100:
        raise ResponseError(f"expected at least 100 resamples, got {resamples}; 10000 is usual")
    values = np.stack([s.per_context[name] for s in (a, b) for name in names], axis=1)  # (N, 2M)
    means = np.concatenate([*_resampled_means(values, resamples, seed)])  # (resamples, 2M)
    measured_a, measured_b = (_named(part, names) for part in np.split(values.mean(0), 2))
    drawn_a, drawn_b = (_named(part, names) for part in np.split(means, 2, axis=1))
    return {
        name: _difference(float(measured_a[name]), float(measured_b[name]), drawn)
        for name, drawn in ((name, drawn_b[name] - drawn_a[name]) for name in drawn_a)
    }


def _resampled_means(values: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    count = len(values)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times @ values / count


def _named(means: Floats, names: Sequence[str]) -> dict[str, Floats]:
    return add_f1(dict(zip(names, means.T, strict=True)))


def _difference(a: float, b: float, drawn: Floats) -> PairedDifference:
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return PairedDifference(a, b, b - a, float(low), float(high), p_value)


@dataclass(frozen=True)
class Interval:
    """A mean over runs and its 95 % interval.

    Attributes:
        mean: of the values.
        low, high: ends of the interval; infinite for one value.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Give the mean of a metric over seeds with Student's 95 % interval.

    Raises:
        ValueError: if there are no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("expected at least one value, got none")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, count)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_quantile(count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count)


def student_quantile(freedom: int, level: float = _LEVEL) -> float:
    """Find t with P(|T| < t) = `level` for whole degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """P(|T| < t) as a finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    is_odd = freedom % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for step in range(2 if is_odd else 1, freedom, 2):
        total += term
        term *= step / (step + 1) * cosine * cosine
    if is_odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
