"""Pictures of a table: how relevant and how varied the responses of each system are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from siserve_training.reproduce.results import MeasuredRow

__all__ = ["plot_relevance_diversity"]

_PANELS = (
    ("recall_at_1_of_10", "R@1/10 of contexts (chance 0.1)"),
    ("bleu_f1_legacy", "BLEU F1 (NLTK to 3.4.5)"),
)


def plot_relevance_diversity(
    measured: Sequence[MeasuredRow], baselines: Sequence[MeasuredRow], folder: Path
) -> None:
    """Draw relevance against inter-dist-2, a point a system, as SVG and PNG.

    Two measures of relevance side by side, because they disagree: context-blind replies score well
    in BLEU and at chance in R@1/10.
    """
    figure = Figure(figsize=(15, 6), layout="constrained")  # not pyplot: no display, no state
    axes = figure.subplots(1, 2)
    for axis, (metric, label) in zip(axes, _PANELS, strict=True):
        points = []
        for rows, marker, colour in ((measured, "o", "#1f5fa8"), (baselines, "x", "#b03030")):
            for row in rows:
                if metric in row.values:
                    x, y = row.values["inter_dist_2"], row.values[metric]
                    axis.scatter(x, y, marker=marker, color=colour, zorder=3)
                    points.append((x, y, row.title))
        axis.set_xlabel("inter-dist-2 (10 responses of one context)")
        axis.set_ylabel(label)
        axis.set_xlim(-0.03, 1.03)
        axis.grid(alpha=0.3)
        _name(axis, points)
    for suffix in ("svg", "png"):
        figure.savefig(
            folder / f"relevance-diversity.{suffix}", dpi=120, metadata=_metadata(suffix)
        )


def _name(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write the points' names in a column beside the panel, in their order, a line to each."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    step = (high - low) / 19
    points = sorted(points, key=lambda point: (point[1], -point[0]))
    places: list[float] = []
    for _, y, _ in points:
        places.append(max(y, places[-1] + step) if places else y)
    for index in range(len(points) - 1, -1, -1):  # what went past the top moves down
        top = places[index + 1] - step if index + 1 < len(points) else high
        places[index] = min(places[index], top)
    for (x, y, title), place in zip(points, places, strict=True):
        axis.annotate(
            title,
            (x, y),
            xytext=(1.03, place),
            textcoords=("axes fraction", "data"),
            verticalalignment="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "0.75",
                "linewidth": 0.6,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _metadata(suffix: str) -> dict[str, None]:
    """Leave the date out, so that equal results make equal files."""
    return {"Date": None} if suffix == "svg" else {"Software": None}
