"""`siserve top`: what it makes of two looks at a server's metrics."""

import math

import pytest
from siserve.bundle.errors import SiserveError
from siserve.client.top import Scrape, quantile, scrape, summarise

DIALOG = [("A", "hi , how was your weekend?")]

BEFORE = """
siserve_requests_total{code="OK",method="GenerateResponses"} 10
siserve_request_seconds_bucket{le="0.1",method="GenerateResponses"} 10
siserve_request_seconds_bucket{le="1.0",method="GenerateResponses"} 10
siserve_request_seconds_bucket{le="+Inf",method="GenerateResponses"} 10
siserve_responses_total{model="m"} 50
siserve_distinct_1_ratio_sum{model="m"} 5
siserve_distinct_1_ratio_count{model="m"} 10
"""
AFTER = """
siserve_requests_total{code="OK",method="GenerateResponses"} 30
siserve_requests_total{code="UNAVAILABLE",method="GenerateResponses"} 2
siserve_request_seconds_bucket{le="0.1",method="GenerateResponses"} 20
siserve_request_seconds_bucket{le="1.0",method="GenerateResponses"} 30
siserve_request_seconds_bucket{le="+Inf",method="GenerateResponses"} 30
siserve_responses_total{model="m"} 150
siserve_distinct_1_ratio_sum{model="m"} 20
siserve_distinct_1_ratio_count{model="m"} 30
siserve_inflight_rows 7
siserve_queue_requests 3
"""


def test_a_summary_is_what_happened_in_between():
    summary = summarise(Scrape.of_text(BEFORE, 100.0), Scrape.of_text(AFTER, 102.0))
    assert summary.calls == 11 and summary.responses == 50
    assert summary.errors == {"UNAVAILABLE": 1}
    assert summary.p50 == pytest.approx(0.1) and summary.p99 == pytest.approx(0.982)
    assert (summary.rows, summary.waiting) == (7, 3)
    assert summary.distinct_1 == pytest.approx(0.75) and summary.distinct_2 is None


def test_a_restart_in_between_counts_from_nothing():
    summary = summarise(Scrape.of_text(AFTER, 100.0), Scrape.of_text(BEFORE, 101.0))
    assert summary.calls == 10 and summary.responses == 50
    assert summary.errors == {}


def test_quantiles_lie_on_a_line_within_their_bucket():
    buckets = [(1.0, 10.0), (2.0, 30.0), (math.inf, 40.0)]
    assert quantile(buckets, 0.25) == pytest.approx(1.0)
    assert quantile(buckets, 0.5) == pytest.approx(1.5)
    assert quantile(buckets, 0.99) == 2.0  # nothing is known beyond the last bound
    assert quantile([], 0.5) is None and quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5) is None


def test_top_shows_a_running_server_and_says_when_there_is_none(run_siserve, server):
    with server.client() as client:
        client.generate(DIALOG)
    shown = run_siserve("top", "--metrics", server.metrics_url, "--seconds", "0.1", "--times", "2")
    assert shown.returncode == 0, shown.stderr
    for part in ("tiny@1 on cpu", "calls", "p99", "rows in flight", "distinct-2", "no errors"):
        assert part in shown.stdout
    gone = run_siserve("top", "--metrics", "http://127.0.0.1:1/metrics")
    assert gone.returncode == 1 and gone.stdout.strip() == ""
    (line,) = gone.stderr.splitlines()
    assert "is `siserve serve` up?" in line


def test_metrics_of_something_else_are_told_apart(server):
    with pytest.raises(SiserveError, match="--metrics-port"):
        scrape(server.metrics_url.replace("/metrics", "/livez"))
