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
_STARTS = {"prior": "N(0, I)", "spread": "narrow, far apart"}
_TEXT = (
    "Points are z drawn from q(z|n), coloured by n. KL(q(z)‖p), the mutual information of n and z "
    "(at most log 10 = 2.303 nats) and the accuracy of the best guess of n from z are integrals "
    "over a grid; the others are of the bound at beta 1, in nats.\n\n"
    "The LSTM is told z and no bits: without z it pays 10 H(1/10) = 3.25 nats, with a z that tells "
    "the sequences apart log 10. The VAE starts with every q(z|n) about N(0, I), as its layers "
    "come. The SI-VAE starts with its noise in use: lambda narrow and far apart; B_K, which is 0 "
    "for a Gaussian, says whether it stays so."
)
_BESIDE = (
    "Beside the figure, one thing changed each, at a constant beta. Started about N(0, I), the "
    "SI-VAE mixes the sequences as the VAE does; started narrow and far apart, the VAE tells them "
    "apart too. What decides is thus the start, not the family. An LSTM that is told the bits "
    "before models the sequences without z at the same log 10 nats: nothing then pays for the KL, "
    "and what the start held apart runs together."
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


def toy_page(
    figure: Sequence[dict[str, Any]], controls: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> str:
    """Write the numbers of the figure and of what stands beside it as Markdown."""
    parts = [
        "# Figure 2: latents of ten sequences",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "![Latents by method and schedule](toy.svg)",
        _TEXT,
        _table(figure),
        _BESIDE,
        _table(controls),
        "Command:\n\n    siserve reproduce toy --out OUT "
        f"--steps {facts['steps']} --draws {facts['J']} --seed {facts['seed']}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(panels: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| | schedule | start | {' | '.join(_COLUMNS)} |",
        f"| --- | --- | --- |{' --- |' * len(_COLUMNS)}",
    ]
    for panel in panels:
        run, values = panel["run"], panel["values"]
        told = ", told the bits" if run["told_bits"] else ""
        cells = " | ".join(f"{values[name]:.3f}" for name in _COLUMNS.values())
        title = f"{_TITLES[run['method']]}{told}"
        lines.append(f"| {title} | {run['schedule']} | {_STARTS[run['start']]} | {cells} |")
    return "\n".join(lines)
