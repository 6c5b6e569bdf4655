"""Figure 2: the picture, and the numbers under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

__all__ = ["plot_latents", "toy_page"]

_TITLES = {"vae": "VAE", "si-vae": "SI-VAE"}
_COLUMNS = {
    "KL(q(z)‖p)": "kl_aggregate",
    "MI": "mutual_information",
    "Bayes accuracy": "bayes_accuracy",
    "KL of a posterior": "kl",
    "B_K": "b_k",
    "-E log p(x\\|z)": "rec",
}
_TEXT = (
    "Points are z drawn from q(z|n), coloured by n. KL(q(z)‖p), the mutual information of n and z "
    "(at most log 10 = 2.303 nats) and the accuracy of the best guess of n from z are integrals "
    "over a grid; the others are of the bound at beta 1, in nats.\n\n"
    "No panel can beat -E log p(x|z) + KL = log 10: the sequences are ten and equally likely, and "
    "an LSTM that is told the bits before gets there without z. At beta 1 a latent that tells the "
    "sequences apart is therefore no better than one that does not, whatever the posterior; which "
    "of the two a run ends in is decided while beta is small."
)


def plot_latents(measured: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw the panels, methods in rows and schedules in columns, as PNG and SVG.

    Args:
        measured: six panels with their points, row by row.
        folder: receives toy.png and toy.svg.
    """
    figure = Figure(figsize=(12, 8.4), layout="constrained")  # not pyplot: no display, no state
    axes = figure.subplots(2, 3, sharex=True, sharey=True).flatten()
    colours = colormaps["tab10"]
    for axis, panel in zip(axes, measured, strict=True):
        for n, points in enumerate(panel["points"]):
            x, y = zip(*points, strict=True)
            look = {"s": 5, "linewidths": 0, "alpha": 0.7, "rasterized": True}  # a small SVG
            axis.scatter(x, y, color=colours(n), label=str(n), **look)
        run, values = panel["run"], panel["values"]
        axis.set_title(
            f"{_TITLES[run['method']]}, {run['schedule']}: MI {values['mutual_information']:.2f}, "
            f"KL(q(z)‖p) {values['kl_aggregate']:.2f}",
            fontsize=10,
        )
        axis.set_aspect("equal")
        axis.set_xlim(-4.5, 4.5)
        axis.set_ylim(-4.5, 4.5)
    axes[0].legend(title="n", fontsize=7, markerscale=3, loc="upper left", ncols=2)
    figure.savefig(folder / "toy.png", dpi=120, metadata={"Software": None})
    figure.savefig(folder / "toy.svg", dpi=80, metadata={"Date": None})


def toy_page(panels: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Write the numbers as Markdown."""
    lines = [
        f"| | schedule | {' | '.join(_COLUMNS)} |",
        f"| --- | --- |{' --- |' * len(_COLUMNS)}",
    ]
    for panel in panels:
        run, values = panel["run"], panel["values"]
        cells = " | ".join(f"{values[name]:.3f}" for name in _COLUMNS.values())
        lines.append(f"| {_TITLES[run['method']]} | {run['schedule']} | {cells} |")
    parts = [
        "# Figure 2: latents of ten sequences",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "![Latents by method and schedule](toy.svg)",
        _TEXT,
        "\n".join(lines),
        "Command:\n\n    siserve reproduce toy --out OUT "
        f"--steps {facts['steps']} --draws {facts['J']} --seed {facts['seed']}",
    ]
    return "\n\n".join(parts) + "\n"
