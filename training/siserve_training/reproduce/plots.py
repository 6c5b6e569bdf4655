"""Pictures of a table: how relevant and how varied the responses of each system are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    figure = Figure(figsize=(13, 6), layout="constrained")  # not pyplot: no display, no state
    axes = figure.subplots(1, 2)
    for axis, (metric, label) in zip(axes, _PANELS, strict=True):
        for rows, marker, colour in ((measured, "o", "#1f5fa8"), (baselines, "x", "#b03030")):
            for row in rows:
                if metric not in row.values:
                    continue
                x, y = row.values["inter_dist_2"], row.values[metric]
                axis.scatter(x, y, marker=marker, color=colour, zorder=3)
                axis.annotate(
                    row.title, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8
                )
        axis.set_xlabel("inter-dist-2 (10 responses of one context)")
        axis.set_ylabel(label)
        axis.set_xlim(-0.02, 1.25)
        axis.grid(alpha=0.3)
    for suffix in ("svg", "png"):
        figure.savefig(
            folder / f"relevance-diversity.{suffix}", dpi=120, metadata=_metadata(suffix)
        )


def _metadata(suffix: str) -> dict[str, None]:
    """Leave the date out, so that equal results make equal files."""
    return {"Date": None} if suffix == "svg" else {"Software": None}
