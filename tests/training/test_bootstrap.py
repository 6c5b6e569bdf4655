"""Intervals of differences and of means over seeds: they cover, and know when nothing differs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from siserve_training.errors import ResponseError
from siserve_training.evaluation.bootstrap import (
    mean_interval,
    paired_bootstrap,
    student_quantile,
)
from siserve_training.evaluation.scores import ResponseScores


def scored(**values) -> ResponseScores:
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
    return ResponseScores(arrays, {name: float(v.mean()) for name, v in arrays.items()}, "")


def test_a_set_does_not_differ_from_itself():
    a = scored(length=np.random.default_rng(0).normal(size=50))
    found = paired_bootstrap(a, a, 200)["length"]
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_difference_common_to_all_contexts_is_certain_however_much_contexts_vary():
    values = np.random.default_rng(0).normal(scale=100, size=80)
    noise = np.random.default_rng(1).normal(scale=0.01, size=80)
    found = paired_bootstrap(scored(length=values), scored(length=values + 0.5 + noise), 1000)
    assert found["length"].difference == pytest.approx(0.5, abs=0.01)
    assert 0.49 < found["length"].low < found["length"].high < 0.51
    assert found["length"].p_value == pytest.approx(2 / 1001)


def test_the_interval_has_the_width_of_the_normal_law_and_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered, widths, small = 0, [], 0
    for trial in range(200):
        a, b = rng.normal(size=100), rng.normal(size=100)
        found = paired_bootstrap(scored(length=a), scored(length=b), 400, seed=trial)["length"]
        covered += found.low <= 0 <= found.high
        small += found.p_value < 0.05
        widths.append(found.high - found.low)
    assert 0.90 <= covered / 200 <= 0.99
    assert 0.01 <= small / 200 <= 0.10
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(2 / 100), rel=0.05)


def test_f1_is_computed_from_resampled_means():
    rng = np.random.default_rng(0)
    a, b = (
        scored(bleu_recall_modern=rng.uniform(size=60), bleu_precision_modern=rng.uniform(size=60))
        for _ in range(2)
    )
    found = paired_bootstrap(a, b, 500)
    assert list(found) == ["bleu_recall_modern", "bleu_precision_modern", "bleu_f1_modern"]
    for side, of in (("a", a), ("b", b)):
        r, p = of.corpus["bleu_recall_modern"], of.corpus["bleu_precision_modern"]
        assert getattr(found["bleu_f1_modern"], side) == pytest.approx(2 * r * p / (r + p))
    f1 = found["bleu_f1_modern"]
    assert f1.low < f1.difference < f1.high


def test_the_same_seed_gives_the_same_answer_and_another_another():
    rng = np.random.default_rng(0)
    a, b = scored(length=rng.normal(size=40)), scored(length=rng.normal(size=40))
    assert paired_bootstrap(a, b, 300, seed=1) == paired_bootstrap(a, b, 300, seed=1)
    assert paired_bootstrap(a, b, 300, seed=1) != paired_bootstrap(a, b, 300, seed=2)


def test_sets_of_different_sizes_and_too_few_draws_are_refused():
    a = scored(length=[1.0, 2.0])
    with pytest.raises(ResponseError, match="same contexts"):
        paired_bootstrap(a, scored(length=[1.0]))
    with pytest.raises(ResponseError, match="in common"):
        paired_bootstrap(a, scored(self_bleu=[1.0, 2.0]))
    with pytest.raises(ResponseError, match="at least 100 resamples, got 5"):
        paired_bootstrap(a, a, 5)


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (999, 1.9623)],
)
def test_quantiles_are_those_of_the_tables(freedom, t):
    assert student_quantile(freedom) == pytest.approx(t, abs=5e-5)


def test_the_mean_over_seeds_has_students_interval():
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.3027 / math.sqrt(3)
    assert (found.mean, found.count) == (2, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    assert mean_interval([5.0]).high == math.inf
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
