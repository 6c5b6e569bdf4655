"""Laws of the schedules (paper eq. 13; values worked by hand)."""

from __future__ import annotations

import pytest
from siserve_training.objectives.schedules import AuxRamp, BetaSchedule


def test_cyclical_beta_follows_equation_13():
    beta = BetaSchedule("cyclical", total_steps=40, cycles=4, ratio=0.5)
    first_cycle = [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    assert [beta.at(t) for t in range(1, 41)] == pytest.approx(first_cycle * 4)


def test_a_period_that_does_not_divide_the_run_is_rounded_up():
    beta = BetaSchedule("cyclical", total_steps=10, cycles=3, ratio=0.5)
    expected = [0, 0.6, 1, 1, 0, 0.6, 1, 1, 0, 0.6]
    assert [beta.at(t) for t in range(1, 11)] == pytest.approx(expected)


def test_monotonic_is_one_cycle():
    monotonic = BetaSchedule("monotonic", 40, cycles=4, ratio=0.25)
    one_cycle = BetaSchedule("cyclical", 40, cycles=1, ratio=0.25)
    assert [monotonic.at(t) for t in range(1, 41)] == [one_cycle.at(t) for t in range(1, 41)]


def test_beta_max_scales_every_schedule():
    for name in ("constant", "monotonic", "cyclical"):
        half, whole = BetaSchedule(name, 40, beta_max=0.5), BetaSchedule(name, 40)
        assert [half.at(t) for t in range(1, 41)] == pytest.approx(
            [0.5 * whole.at(t) for t in range(1, 41)]
        )


def test_auxiliaries_rise_linearly_from_the_floor_to_the_maximum():
    ramp = AuxRamp(num_aux=30, total_steps=300)
    counts = [ramp.at(t) for t in range(1, 301)]
    assert counts[0] == 1 and counts[149] == 15 and counts[-1] == 30
    assert counts == sorted(counts)


def test_a_horizon_below_one_reaches_the_maximum_earlier():
    ramp = AuxRamp(num_aux=10, total_steps=100, horizon=0.5)
    assert ramp.at(50) == ramp.at(100) == 10 and ramp.at(25) == 5


def test_no_auxiliaries_means_none_throughout():
    assert {AuxRamp(num_aux=0, total_steps=9).at(t) for t in range(1, 10)} == {0}
