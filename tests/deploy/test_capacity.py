"""`siserve plan`: enough replicas and not one more, out of what was measured and nothing else."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siserve import cli
from siserve.bench.capacity import (
    Curve,
    Point,
    Target,
    lowest_p99,
    plan_replicas,
    rate_at,
    rate_within,
)
from siserve.bench.figures_file import read_figures, shipped_figures
from siserve.bundle.errors import SiserveError, UsageError

RATES = (10, 15, 20, 25, 30)


def p99_of(rate, idle=30.0, full=40.0, power=1.0):
    """The curve that a plan fits; with power 1 it is that of the M/M/1 queue."""
    return idle / (1 - rate / full) ** power


def curve(n=5, rates=RATES, rounds=5, scatter=0.0, **parameters):
    """A replica measured in rounds that miss its p99 by a factor of about `scatter`."""
    dice = random.Random(0)
    points = [
        Point(
            rate,
            [p99_of(rate, **parameters) * math.exp(dice.gauss(0, scatter)) for _ in range(rounds)],
            900,
        )
        for rate in rates
    ]
    return Curve(n, points)


CURVE = curve()


def result(n=5, server="siserve serve --threads 1", loads=None, rounds=5, **changed):
    """What `siserve bench serve --json` prints, with parts that a plan does not read."""
    points = loads or [(rate, p99_of(rate), {}) for rate in RATES]
    rows = [
        {"loop": "open", "clients": None, "rate": rate, "answered": 900, "errors": errors,
         "p99_ms": p99, "p50_ms": 1.0, "rounds": [{"errors": errors, "p99_ms": p99}] * rounds}
        for rate, p99, errors in points
    ]  # fmt: skip
    return {
        "command": "bench serve",
        "facts": {"cpu": "a processor", "cores": 1},
        "model": {"name": "m@1", "sha256": "0" * 64},
        "options": {"server": server, "n": n, "turns": 5, "dialogs": "new"},
        "loads": rows,
        **changed,
    }


def write(path, *results):
    path.write_text("".join(json.dumps(each) + "\n" for each in results))
    return path


@given(
    rps=st.floats(0.1, 1e4),
    p99=st.floats(41, 500),
    headroom=st.floats(0, 0.9),
    spare=st.integers(0, 3),
)
def test_the_replicas_bear_the_rate_with_those_to_spare_away_and_one_fewer_would_not(
    rps, p99, headroom, spare
):
    plan = plan_replicas([CURVE], Target(rps, p99, 5, headroom, spare))
    one_bears = plan.replica.rps * (1 - headroom)
    present = plan.replicas - spare
    assert present * one_bears >= rps * (1 - 1e-6)
    assert present == 1 or (present - 1) * one_bears < rps
    assert plan.use == pytest.approx(rps / plan.replicas / plan.replica.rps)


@given(
    full=st.floats(31, 110),
    power=st.floats(0.5, 3),
    rate=st.floats(10.1, 29.9),
)
def test_the_rate_of_a_replica_lies_on_the_curve_that_was_measured(full, power, rate):
    measured = curve(full=full, power=power)
    told = rate_within(measured, p99_of(rate, full=full, power=power))
    assert told.rps == pytest.approx(rate, rel=0.02)
    assert not told.is_highest_measured and told.doubt == pytest.approx(0, abs=1e-6)


def test_a_p99_that_rises_as_a_power_of_the_rate_is_followed_between_the_rates_only():
    measured = curve(rates=[10, 20])
    p99s = [rate_within(measured, p99_of(10) + share).rps for share in (0.1, 5, 10, 20, 1000)]
    assert p99s == sorted(p99s) and p99s[0] == pytest.approx(10, rel=0.02) and p99s[-1] == 20


def test_nothing_is_claimed_beyond_the_highest_rate():
    told = rate_within(CURVE, 1000)
    assert (told.rps, told.is_highest_measured) == (30, True)


def test_a_p99_below_that_of_the_lowest_rate_is_refused_with_what_it_takes():
    takes = r"39 ms at n=5: the figures support one from 40.* ms on, and one replica takes 40 ms at"
    with pytest.raises(SiserveError, match=takes):
        rate_within(CURVE, 39)
    assert rate_within(CURVE, 40.1).rps == pytest.approx(10, rel=0.02)


def test_a_rate_whose_rounds_differ_moves_the_curve_less_than_one_whose_rounds_agree():
    exact, steady, unsteady = [*CURVE.points], [*CURVE.points], [*CURVE.points]
    steady[0] = Point(10, [2 * p99_of(10)] * 5, 900)
    unsteady[0] = Point(10, [share * p99_of(10) for share in (0.5, 1, 2, 4, 8)], 900)
    rates = [Curve(5, points).p99.rate_at(p99_of(20)) for points in (exact, steady, unsteady)]
    off = [abs(rate / rates[0] - 1) for rate in rates]
    assert off[2] < off[1] / 2


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_of_scattered_rounds_misses_the_true_rate_by_no_more_than_a_fifth(seed):
    """Rounds that miss by 15 % each, as 300 requests do; the queue is known."""
    dice = random.Random(seed)
    points = [
        Point(rate, [p99_of(rate) * math.exp(dice.gauss(0, 0.15)) for _ in range(5)], 1500)
        for rate in RATES
    ]
    measured = Curve(5, points)
    for rate in range(10, 31):
        if p99_of(rate) >= lowest_p99(measured):
            assert rate_within(measured, p99_of(rate)).rps == pytest.approx(rate, rel=0.2)


def test_the_more_the_rounds_differ_the_higher_the_lowest_p99_that_is_planned_for():
    lowest = [lowest_p99(curve(scatter=scatter)) for scatter in (0, 0.1, 0.3, 3)]
    assert lowest[0] == pytest.approx(p99_of(10), rel=0.01)
    assert lowest == sorted(lowest) and lowest[1] < lowest[2] < math.inf == lowest[3]


def test_below_the_lowest_p99_that_is_sure_a_plan_is_refused_and_from_there_it_is_not():
    measured = curve(scatter=0.3)
    lowest = lowest_p99(measured)
    doubt = rate_within(measured, lowest).doubt
    assert doubt is not None and doubt <= 0.2
    with pytest.raises(SiserveError, match=f"support one from {math.ceil(10 * lowest) / 10:g} ms"):
        rate_within(measured, lowest * 0.98)
    with pytest.raises(SiserveError, match="differ too much; measure more and longer rounds"):
        rate_within(curve(scatter=3), 100)


def test_one_round_does_not_tell_how_sure_a_plan_is(tmp_path, capsys):
    assert rate_within(curve(rounds=1), 60).doubt is None
    path = write(tmp_path / "one", result(rounds=0))
    assert cli.run(["plan", "--rps=9", "--p99=60", f"--figures={path}"]) == 0
    assert "fewer than 3 rounds do not tell how sure" in capsys.readouterr().out


def test_a_rate_that_is_measured_again_has_more_rounds(tmp_path):
    again = result(loads=[(10, 44.0, {}), (20, 70.0, {})], rounds=2)
    (joined,) = read_figures([write(tmp_path / "one", result(), again)]).curves
    assert [point.rate for point in joined.points] == [*RATES]
    assert [len(point.p99s_ms) for point in joined.points] == [7, 5, 7, 5, 5]
    assert [point.answered for point in joined.points] == [1800, 900, 1800, 900, 900]


def test_a_p99_that_is_good_again_by_luck_does_not_turn_the_curve_down():
    points = [Point(10, [40], 900), Point(20, [90], 900), Point(30, [50], 900)]
    p99s = [Curve(5, points).p99.p99_at(rate) for rate in range(10, 31)]
    assert p99s == sorted(p99s) and rate_within(Curve(5, points), 60).rps < 30


def test_a_rate_with_failed_requests_is_never_reached(tmp_path):
    loads = [(10, 40.0, {}), (20, 60.0, {"RESOURCE_EXHAUSTED": 1}), (30, 70.0, {})]
    (measured,) = read_figures([write(tmp_path / "one", result(loads=loads))]).curves
    told = rate_within(measured, 1000)
    assert (told.rps, told.is_highest_measured) == (10, False)
    (measured,) = read_figures([write(tmp_path / "one", result(loads=loads[1:]))]).curves
    with pytest.raises(SiserveError, match="n=5 failed at 20 requests/s"):
        rate_within(measured, 1000)


@pytest.mark.parametrize("n", range(1, 10))
def test_between_two_measured_n_a_request_costs_in_proportion(n):
    few = Curve(1, [Point(4 * point.rate, point.p99s_ms, 900) for point in CURVE.points])
    many = Curve(9, CURVE.points)
    told = rate_at([many, few], p99_of(20), n)
    assert 1 / told.rps == pytest.approx(1 / 80 + (n - 1) / 8 * (1 / 20 - 1 / 80), rel=0.02)
    assert told.doubt == pytest.approx(0, abs=1e-6)


def test_an_n_outside_what_was_measured_is_refused():
    with pytest.raises(UsageError, match=r"within what was measured \(5\), got 6"):
        rate_at([CURVE], 60, 6)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (result(server="siserve serve --threads 2"), "got server 'siserve serve --threads 1' and"),
        (result(facts={"cpu": "another"}), "got machine 'a processor' and 'another'"),
        (result(command="bench decode"), "line 2: .*command"),
        ({"loads": []}, "line 2: .*command: Field required"),
    ],
)
def test_figures_that_do_not_go_together_are_refused(tmp_path, other, complaint):
    path = write(tmp_path / "one", result(), other)
    with pytest.raises(UsageError, match=complaint):
        read_figures([path])


def test_figures_without_an_open_loop_are_refused(tmp_path):
    told = result()
    told["loads"] = [{**told["loads"][0], "loop": "closed", "rate": None}]
    with pytest.raises(UsageError, match="no open loop of n=5; measure with siserve bench serve"):
        read_figures([write(tmp_path / "one", told)])


def test_the_command_prints_what_the_plan_says(tmp_path, capsys):
    path = write(tmp_path / "one", result())
    asked = ["plan", "--rps=99", "--p99=60", "--headroom=0", f"--figures={path}", "--cost=0.5"]
    assert cli.run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["replicas"] == 5 and told["replica_rps"] == pytest.approx(20, rel=0.02)
    assert told["cost_per_hour"] == 2.5
    assert told["cost_per_million_responses"] == pytest.approx(1e6 * 2.5 / (99 * 5 * 3600))
    assert cli.run(asked) == 0
    assert capsys.readouterr().out.startswith("5 replicas for 99 requests/s of n=5")


@pytest.mark.parametrize(
    "options",
    [["--rps=0", "--p99=9"], ["--rps=nan", "--p99=9"], ["--rps=1", "--p99=9", "--headroom=1"]],
)
def test_wrong_use_is_one_line(options, capsys):
    assert cli.run(["plan", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_shipped_figures_plan_for_every_n_between_theirs():
    figures = shipped_figures()
    numbers = [curve.n for curve in figures.curves]
    slowest = max(lowest_p99(curve) for curve in figures.curves)
    rates = []
    for n in range(min(numbers), max(numbers) + 1):
        plan = plan_replicas(figures.curves, Target(100, slowest, n, 0.2, 0))
        assert math.isfinite(plan.replica.rps)
        rates.append(plan.replica.rps)
    assert rates == sorted(rates, reverse=True)  # more responses, fewer requests
