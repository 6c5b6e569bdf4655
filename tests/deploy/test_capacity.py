"""`siserve plan`: enough replicas and not one more, out of what was measured and nothing else."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siserve import cli
from siserve.bench.capacity import Curve, Point, Target, plan_replicas, rate_at, rate_within
from siserve.bench.figures_file import read_figures, shipped_figures
from siserve.bundle.errors import SiserveError, UsageError

CURVE = Curve(5, [Point(10, 40, 900), Point(20, 60, 900), Point(30, 140, 900)])


def result(n=5, server="siserve serve --threads 1", loads=None, **changed):
    """What `siserve bench serve --json` prints, with parts that a plan does not read."""
    points = loads or [(point.rate, point.p99_ms, {}) for point in CURVE.points]
    rows = [
        {"loop": "open", "clients": None, "rate": rate, "answered": 900, "errors": errors,
         "p99_ms": p99, "p50_ms": 1.0}
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
    p99=st.floats(40, 500),
    headroom=st.floats(0, 0.9),
    spare=st.integers(0, 3),
)
def test_the_replicas_bear_the_rate_with_those_to_spare_away_and_one_fewer_would_not(
    rps, p99, headroom, spare
):
    plan = plan_replicas([CURVE], Target(rps, p99, 5, headroom, spare))
    one_bears = plan.replica_rps * (1 - headroom)
    present = plan.replicas - spare
    assert present * one_bears >= rps * (1 - 1e-6)
    assert present == 1 or (present - 1) * one_bears < rps
    assert plan.use == pytest.approx(rps / plan.replicas / plan.replica_rps)


@given(p99=st.floats(40, 140))
def test_the_rate_of_a_replica_lies_on_the_measured_line(p99):
    rate, is_highest = rate_within(CURVE, p99)
    assert not is_highest or rate == 30
    expected = 10 + (p99 - 40) / 2 if p99 <= 60 else 20 + (p99 - 60) / 8
    assert rate == pytest.approx(expected)


def test_nothing_is_claimed_beyond_the_highest_rate():
    assert rate_within(CURVE, 1000) == (30, True)


def test_a_p99_that_one_idle_replica_misses_is_refused_with_what_it_takes():
    with pytest.raises(SiserveError, match=r"within 39 ms: one alone takes 40 ms at 10 requests/s"):
        rate_within(CURVE, 39)


def test_a_rate_whose_p99_is_good_again_by_luck_does_not_count():
    points = [Point(10, 40, 900), Point(20, 90, 900), Point(30, 50, 900)]
    rate, _ = rate_within(Curve(5, points), 60)
    assert rate == pytest.approx(14)


def test_a_rate_with_failed_requests_is_never_reached(tmp_path):
    loads = [(10, 40.0, {}), (20, 60.0, {"RESOURCE_EXHAUSTED": 1}), (30, 70.0, {})]
    (curve,) = read_figures([write(tmp_path / "one", result(loads=loads))]).curves
    assert rate_within(curve, 1000) == (10, False)


@pytest.mark.parametrize("n", range(1, 10))
def test_between_two_measured_n_a_request_costs_in_proportion(n):
    few = Curve(1, [Point(4 * point.rate, point.p99_ms, 900) for point in CURVE.points])
    many = Curve(9, CURVE.points)
    rate, _ = rate_at([many, few], 60, n)
    assert 1 / rate == pytest.approx(1 / 80 + (n - 1) / 8 * (1 / 20 - 1 / 80))


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
    asked = ["plan", "--rps=100", "--p99=60", "--headroom=0", f"--figures={path}", "--cost=0.5"]
    assert cli.run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["replicas"] == 5 and told["replica_rps"] == 20
    assert told["cost_per_hour"] == 2.5
    assert told["cost_per_million_responses"] == pytest.approx(1e6 * 2.5 / (100 * 5 * 3600))
    assert cli.run(asked) == 0
    assert capsys.readouterr().out.startswith("5 replicas for 100 requests/s of n=5")


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
    slowest = max(curve.points[0].p99_ms for curve in figures.curves)
    rates = []
    for n in range(min(numbers), max(numbers) + 1):
        plan = plan_replicas(figures.curves, Target(100, slowest, n, 0.2, 0))
        assert math.isfinite(plan.replica_rps)
        rates.append(plan.replica_rps)
    assert rates == sorted(rates, reverse=True)  # more responses, fewer requests
