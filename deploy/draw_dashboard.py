"""Draw the dashboard where there is no Grafana: every panel's queries, asked of a Prometheus.

    python deploy/draw_dashboard.py --prometheus http://127.0.0.1:9090 --minutes 10 --out board.png

Panels lie where Grafana puts them and show what it would: the last number, lines, a table, a heat
map, in the panel's unit and colours. Variables stand for all. Needs matplotlib (the extra `train`).
A query without a number is said on stderr, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

DASHBOARD = Path(__file__).parent / "dashboards" / "siserve.json"
COLUMNS, POINTS = 24, 120
Panel = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line: its labels, minutes before now (0 last), and values."""

    labels: dict[str, str]
    minutes: list[float]
    values: list[float]


@dataclass(frozen=True)
class Prometheus:
    """Where to ask, and for which span.

    Attributes:
        url: its address.
        minutes: length of the span, which ends now.
        rate_s: what Grafana would take for $__rate_interval, in seconds.
    """

    url: str
    minutes: float
    rate_s: int

    def ask(self, query: str) -> list[Series]:
        """Return the series of a query of the dashboard over the span."""
        values = {"$__rate_interval": f"{self.rate_s}s", "$job": ".*", "$model": ".*"}
        for name, value in values.items():
            query = query.replace(name, value)
        now = time.time()
        span = {"start": now - 60 * self.minutes, "end": now, "step": 60 * self.minutes / POINTS}
        with urlopen(
            f"{self.url}/api/v1/query_range?{urlencode({'query': query, **span})}"
        ) as reply:
            found = json.load(reply)["data"]["result"]
        return [
            Series(
                {name: value for name, value in one["metric"].items() if name != "__name__"},
                [(float(at) - now) / 60 for at, _ in one["values"]],
                [float(value) for _, value in one["values"]],
            )
            for one in found
        ]


def shown(value: float, unit: str) -> str:
    """A number in a unit of Grafana."""
    if math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        return f"{value / 2**20:.4g} MiB"
    if unit == "s":
        if abs(value) >= 86400:
            return f"{value / 86400:.3g} d"
        return f"{value:.3g} s" if abs(value) >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.3g}" + {"reqps": " req/s", "cps": " c/s"}.get(unit, "")


def legend(target: dict[str, Any], series: Series) -> str:
    """The name of a line."""
    text = str(target.get("legendFormat") or "")
    for name, value in series.labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def colour(panel: Panel, value: float) -> str:
    """The colour that the panel's thresholds give a number."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    passed = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return str(passed[-1])


def draw_stat(axes: Axes, panel: Panel, found: list[list[Series]]) -> None:
    """The last number, large, over its course."""
    defaults = panel["fieldConfig"]["defaults"]
    series = found[0][0]
    value = next((v for v in reversed(series.values) if not math.isnan(v)), math.nan)
    text, tone = shown(value, defaults["unit"]), colour(panel, value)
    for mapping in defaults.get("mappings", []):
        if f"{value:g}" in mapping["options"]:
            text, tone = mapping["options"][f"{value:g}"]["text"], "gray"
    axes.fill_between(series.minutes, series.values, color=tone, alpha=0.15)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=15,
              color=tone, weight="bold")  # fmt: skip
    axes.set_axis_off()


def draw_table(axes: Axes, panel: Panel, found: list[list[Series]]) -> None:
    """The labels and the last value of each series."""
    lines = [[*series.labels.values(), f"{series.values[-1]:g}"] for series in found[0]]
    header = [*found[0][0].labels, "servers"]
    axes.set_axis_off()
    for number, line in enumerate([header, *lines]):
        axes.text(0, 0.85 - 0.2 * number, "   ".join(line), transform=axes.transAxes, fontsize=6.5,
                  weight="normal" if number else "bold")  # fmt: skip


def draw_lines(axes: Axes, panel: Panel, found: list[list[Series]]) -> None:
    """A line for each series."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for target, many in zip(panel["targets"], found, strict=True):
        for series in many:
            axes.plot(series.minutes, series.values, label=legend(target, series))
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    axes.grid(alpha=0.3)


def draw_heatmap(axes: Axes, panel: Panel, found: list[list[Series]]) -> None:
    """How many fell into each bucket, which Prometheus counts together with all below."""
    rows = sorted(found[0], key=lambda series: float(series.labels["le"]))
    times = [at for at in rows[0].minutes]
    below = [0.0] * len(times)
    cells = []
    for row in rows:
        cells.append([value - less for value, less in zip(row.values, below, strict=True)])
        below = row.values
    mesh = axes.pcolormesh(times, range(len(rows)), cells, cmap="viridis", shading="nearest")
    axes.set_yticks(range(len(rows)), [row.labels["le"] for row in rows], fontsize=6)
    axes.figure.colorbar(mesh, ax=axes)


DRAW = {
    "stat": draw_stat,
    "table": draw_table,
    "timeseries": draw_lines,
    "heatmap": draw_heatmap,
}


def draw(panels: list[Panel], prometheus: Prometheus, out: Path) -> list[str]:
    """Draw every panel into one picture; return the queries that found no number."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(17, 0.4 * rows), dpi=80)
    empty = []
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        bottom, height = 1 - (place["y"] + place["h"]) / rows, place["h"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, bottom + 0.3 * height, panel["title"], weight="bold")
            continue
        is_plot = panel["type"] not in ("stat", "table")
        sides = (0.035, 0.055) if is_plot else (0.01, 0.02)
        box = (left + sides[0], bottom + 0.02, width - sides[1], height - 0.045)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        found = [prometheus.ask(target["expr"]) for target in panel["targets"]]
        for target, many in zip(panel["targets"], found, strict=True):
            if not any(not math.isnan(value) for series in many for value in series.values):
                empty.append(f"{panel['title']} {target['refId']}: {target['expr']}")
        if all(found):
            DRAW[panel["type"]](axes, panel, found)
    figure.savefig(out)
    return empty


def main() -> int:
    """Draw; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate-seconds", type=int, default=30, help="at least 4 scrapes")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    options = parser.parse_args()
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    prometheus = Prometheus(options.prometheus, options.minutes, options.rate_seconds)
    empty = draw(panels, prometheus, options.out)
    for query in empty:
        print(f"no number: {query}", file=sys.stderr)
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
