"""`siserve bench decode` on whole engines: full queues, and what a response costs."""

import statistics
from pathlib import Path

import pytest
from siserve.bench.engine_load import EngineLoad
from siserve.bench.engine_rounds import EnginePlan, measure_costs, measure_engine
from siserve.bundle import open_bundle
from siserve.serving.sessions import Placement


def test_ratios_are_to_one_request_at_a_time_on_as_many_cores(bundle: Path) -> None:
    plan = EnginePlan([2], ["fp32"], n=2, rounds=2, seconds=0.0)
    records = measure_engine(open_bundle(bundle), plan, lambda said: None)
    ways = [(each["way"], each["workers"], each["threads"]) for each in records]
    assert ways == 2 * [("one_at_a_time", 1, 2), ("in_flight", 1, 2), ("in_flight", 2, 1)]
    assert [each["contexts"] for each in records] == ["new"] * 3 + ["same"] * 3
    for first in (0, 3):
        base = records[first]
        assert base["ratio_to_one_at_a_time"] == 1.0
        for each in records[first : first + 3]:
            ratios = [a / b for a, b in zip(each["rounds"], base["rounds"], strict=True)]
            assert each["ratio_to_one_at_a_time"] == pytest.approx(statistics.median(ratios))
            assert each["responses_per_s"] == pytest.approx(2 * each["requests_per_s"])
            assert each["response_tokens"] > 0


def test_a_response_among_several_is_measured_by_its_share(bundle: Path) -> None:
    plan = EnginePlan([1], ["fp32"], n=5, rounds=1, seconds=0.0)
    one, four = measure_costs(open_bundle(bundle), plan, (1, 4), lambda said: None)
    assert (one["n"], four["n"]) == (1, 4)
    assert four["ms_per_response"] == pytest.approx(four["ms"] / 4)


def test_one_request_at_a_time_never_has_two_in_flight(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[int, int] = {}

    class Spy:
        def batch_ran(self, number: int) -> None:
            rows[number] = rows.get(number, 0) + 1

        def __getattr__(self, name: str) -> object:
            return lambda *told: None

    monkeypatch.setattr("siserve.bench.engine_load.Metrics.engine_observer", lambda self: Spy())
    load = EngineLoad(bundle, Placement("cpu", "fp32", 1), max_rows=2)
    rows.clear()  # what it said to learn its words
    assert load.full_queue(2, "same", 0.0)["requests_per_s"] > 0
    assert rows and max(rows) == 2
