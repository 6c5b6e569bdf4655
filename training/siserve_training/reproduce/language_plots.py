"""Curves of sentence VAEs over training, from what their runs logged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from siserve_training.reproduce.runner import Job
from siserve_training.run_folder import RunFolder

__all__ = ["curve", "plot_curves"]

_PANELS = (
    ("valid", "kl", "KL, valid, nats"),
    ("valid", "mutual_information", "MI of 256 sentences, nats"),
    ("valid", "active_units", "AU of 256 sentences"),
    ("train", "beta", "beta"),
    ("train", "K", "K"),
)


def curve(metrics: Path, kind: str, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a number in a run's log."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [(row["step"], row[name]) for row in lines if row["kind"] == kind and name in row]
    return [step for step, _ in found], [value for _, value in found]


def plot_curves(jobs: Sequence[Job], folder: Path) -> None:
    """Draw a line a row in each panel, as SVG and PNG.

    Args:
        jobs: of one seed.
        folder: receives lm-curves.svg and lm-curves.png.
    """
    figure = Figure(figsize=(10, 15), layout="constrained")  # not pyplot: no display, no state
    axes = figure.subplots(len(_PANELS), 1, sharex=True)
    for axis, (kind, name, label) in zip(axes, _PANELS, strict=True):
        for number, job in enumerate(jobs):
            steps, values = curve(RunFolder(job.run).metrics, kind, name)
            style = ("-", "--", ":")[number // 10 % 3]
            axis.plot(steps, values, style, linewidth=1.2, label=job.row.title)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    axes[0].legend(fontsize=7, ncols=3)
    figure.savefig(folder / "lm-curves.svg", metadata={"Date": None})
    figure.savefig(folder / "lm-curves.png", dpi=110, metadata={"Software": None})
