"""`siserve top`: a running server at a glance, from its metrics alone."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from siserve.bundle.errors import SiserveError

__all__ = ["Scrape", "Summary", "follow", "scrape", "summarise"]

Labels = tuple[tuple[str, str], ...]
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Scrape:
    """All series of a server at one moment.

    Attributes:
        at: time.monotonic() of the scrape.
        values: by name and labels.
    """

    at: float
    values: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    @classmethod
    def of_text(cls, text: str, at: float) -> Scrape:
        """Read Prometheus' text format."""
        return cls(
            at,
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            },
        )

    def sum(self, name: str, **labels: str) -> float:
        """Add up the series of a name that have the given labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (known, found), value in self.values.items()
            if known == name and wanted <= set(found)
        )

    def labels_of(self, name: str) -> list[dict[str, str]]:
        """Return the labels of every series of a name."""
        return [dict(found) for known, found in self.values if known == name]


@dataclass(frozen=True)
class Summary:
    """What happened between two scrapes; None where nothing did.

    Attributes:
        calls: a second, of all methods.
        errors: a second, by status code.
        responses: a second.
        p50: of GenerateResponses that were taken, seconds; so `p99`.
        rows: in flight at the end.
        waiting: requests that wait at the end.
        distinct_1: mean of the requests' values; so `distinct_2`.
    """

    calls: float
    errors: dict[str, float]
    responses: float
    p50: float | None
    p99: float | None
    rows: float
    waiting: float
    distinct_1: float | None
    distinct_2: float | None


def summarise(before: Scrape, after: Scrape) -> Summary:
    """Tell what happened between two scrapes of one server; a restart in between counts from 0."""
    seconds = max(after.at - before.at, 1e-9)

    def rise(name: str, **labels: str) -> float:
        now, then = after.sum(name, **labels), before.sum(name, **labels)
        return now - then if now >= then else now

    def mean(name: str) -> float | None:
        count = rise(f"{name}_count")
        return rise(f"{name}_sum") / count if count else None

    codes = {labels["code"] for labels in after.labels_of("siserve_requests_total")}
    errors = {code: rise("siserve_requests_total", code=code) / seconds for code in codes - {"OK"}}
    buckets = _rises(before, after, "siserve_request_seconds_bucket", "GenerateResponses")
    return Summary(
        calls=rise("siserve_requests_total") / seconds,
        errors={code: rate for code, rate in sorted(errors.items()) if rate},
        responses=rise("siserve_responses_total") / seconds,
        p50=quantile(buckets, 0.5),
        p99=quantile(buckets, 0.99),
        rows=after.sum("siserve_inflight_rows"),
        waiting=after.sum("siserve_queue_requests"),
        distinct_1=mean("siserve_distinct_1_ratio"),
        distinct_2=mean("siserve_distinct_2_ratio"),
    )


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float | None:
    """Estimate a quantile of a histogram as Prometheus does, by a line within its bucket.

    Args:
        buckets: upper bound and cumulative count of each, the last one infinite.
        share: from 0 to 1.
    """
    ordered = sorted(buckets)
    if not ordered or not ordered[-1][1]:
        return None
    rank = share * ordered[-1][1]
    low, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank and count > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def _rises(before: Scrape, after: Scrape, name: str, method: str) -> list[tuple[float, float]]:
    found = []
    for labels in after.labels_of(name):
        if labels.get("method") == method:
            now, then = after.sum(name, **labels), before.sum(name, **labels)
            found.append((float(labels["le"]), now - then if now >= then else now))
    return found


def scrape(url: str) -> Scrape:
    """Read a server's metrics.

    Raises:
        SiserveError: if there are none at this address.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as reply:
            text = reply.read().decode()
        read = Scrape.of_text(text, time.monotonic())
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SiserveError(f"no metrics at {url} ({reason}); is `siserve serve` up?") from None
    except ValueError:
        read = Scrape(0.0)
    if not read.labels_of("siserve_model_info"):
        raise SiserveError(f"{url} has no metrics of siserve; give those of its --metrics-port")
    return read


def follow(console: Console, url: str, seconds: float, times: int) -> None:
    """Show what a server does, again and again.

    Args:
        console: where.
        url: of its metrics.
        seconds: between looks.
        times: how many looks; 0 = until interrupted.

    Raises:
        SiserveError: if the server has no metrics, or none any more.
    """
    before = scrape(url)
    shown = 0
    with Live(console=console, auto_refresh=False) as live:
        while not times or shown < times:
            time.sleep(seconds)
            after = scrape(url)
            live.update(render(after, summarise(before, after)), refresh=True)
            before, shown = after, shown + 1


def render(after: Scrape, summary: Summary) -> RenderableType:
    """Write a summary as people read it."""
    current = [
        f"{labels['model']}@{labels['version']} on {labels['device']}"
        for labels in after.labels_of("siserve_model_info")
        if after.sum("siserve_model_info", **labels)
    ]
    table = Table.grid(padding=(0, 3))
    for least_width in (14, 10):  # so that nothing moves when numbers grow
        table.add_column(min_width=least_width)
        table.add_column(min_width=10, justify="right")
    table.add_row("calls", f"{summary.calls:.1f}/s", "responses", f"{summary.responses:.1f}/s")
    table.add_row("p50", _time(summary.p50), "p99", _time(summary.p99))
    table.add_row("rows in flight", f"{summary.rows:.0f}", "waiting", f"{summary.waiting:.0f}")
    table.add_row(
        "distinct-1", _share(summary.distinct_1), "distinct-2", _share(summary.distinct_2)
    )
    told = ", ".join(f"{code} {rate:.1f}/s" for code, rate in summary.errors.items())
    errors = Text(f"errors: {told}" if told else "no errors", style="red" if told else "dim")
    return Group(Text(", ".join(current), style="bold"), table, errors)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
