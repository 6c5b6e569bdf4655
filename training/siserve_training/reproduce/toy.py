"""`siserve reproduce toy`: Figure 2, a Gaussian VAE above an SI-VAE under three schedules.

The model is small, the path is training's own: posteriors, the bound, schedules of beta and K.
Panels beside the figure change one thing each, to tell what makes the difference.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from siserve_training.checkpoint import write_atomically
from siserve_training.config import TrainConfig
from siserve_training.distributions import Mixture
from siserve_training.errors import ConfigError
from siserve_training.methods.bound import draws_loss
from siserve_training.models.draws import Noise, NoiseWidths
from siserve_training.models.toy import SEQUENCES, ToyVAE
from siserve_training.objectives.schedules import AuxRamp, BetaSchedule
from siserve_training.reproduce.machine import machine
from siserve_training.reproduce.toy_page import plot_latents, toy_page
from siserve_training.tasks.prepared import TRAINING, VALIDATION, StepNoise

__all__ = [
    "CONTROLS",
    "FIGURE",
    "SCHEDULES",
    "STARTS",
    "ToyRun",
    "measure_toy",
    "plane_measures",
    "reproduce_toy",
    "train_toy",
]

#: Of the authors' notebook for their cyclical schedule: name to cycles and ratio.
SCHEDULES: Mapping[str, tuple[int, float]] = {
    "constant": (1, 0.5),
    "monotonic": (1, 0.25),
    "cyclical": (4, 0.5),
}
ENCODER_RATE, DECODER_RATE = 2e-4, 1e-2  # of Adam; open in the paper


@dataclass(frozen=True)
class Start:
    """Posteriors before training, as `GaussianHead.start_noise` sets them.

    Attributes:
        gain: factor on the initial weights of the noise.
        logvar: initial bias of the log-variances.
        spread: factor on the initial weights of the means.
    """

    gain: float
    logvar: float
    spread: float


#: A head as it comes: every q(z|n) about N(0, I). And one whose lambda are narrow and far apart, so
#: that the noise of an SI-VAE is in use.
STARTS: Mapping[str, Start] = {"prior": Start(1.0, 0.0, 1.0), "spread": Start(4.0, -4.0, 5.0)}
#: Method and start of a row of the figure.
FIGURE = (("vae", "prior"), ("si-vae", "spread"))
#: Method, start and told_bits of what stands beside it, at a constant beta.
CONTROLS = (("si-vae", "prior", False), ("vae", "spread", False), ("si-vae", "spread", True))
_SETTINGS = {"rate of the encoder": ENCODER_RATE, "rate of the decoder": DECODER_RATE}
_SHOWN = 300  # points a sequence
_COMPONENTS = 400  # lambda behind q(z|n) on the grid
_EDGE, _CELLS = 7.0, 161


@dataclass(frozen=True)
class ToyRun:
    """One panel of the figure.

    Attributes:
        method: vae or si-vae.
        schedule: of beta.
        start: of its posteriors, a name of `STARTS`.
        told_bits: whether the LSTM is told the bits before.
        steps: T (the paper: 4,000).
        draws: J; more only average more (the paper: 100).
        num_aux: K that an SI-VAE ends with, rising linearly to it (the paper: 100).
        noise: size of the noise, open in the paper.
        seed: of everything.
    """

    method: str
    schedule: str
    start: str = "prior"
    told_bits: bool = False
    steps: int = 4000
    draws: int = 20
    num_aux: int = 100
    noise: int = 4
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of its result."""
        told = "-told-bits" if self.told_bits else ""
        return f"{self.method}-{self.schedule}-{self.start}{told}-seed-{self.seed}"

    @property
    def auxiliaries(self) -> AuxRamp:
        """K by step."""
        return AuxRamp(self.num_aux if self.method == "si-vae" else 0, self.steps)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes."""
        return NoiseWidths(self.noise if self.method == "si-vae" else 0, 2)


def train_toy(run: ToyRun) -> ToyVAE:
    """Train a panel's model: full batch of ten, Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        model = ToyVAE(run.widths.lam, run.told_bits)
    start = STARTS[run.start]
    model.posterior_net.start_noise(start.gain, start.logvar, start.spread)
    cycles, ratio = SCHEDULES[run.schedule]
    beta = BetaSchedule(run.schedule, run.steps, cycles, ratio)  # type: ignore[arg-type]
    num_aux = run.auxiliaries
    encoder = [*model.first.parameters(), *model.posterior_net.parameters()]
    decoder = [*model.embedding.parameters(), *model.decoder.parameters()]
    groups = [{"params": encoder, "lr": ENCODER_RATE}, {"params": decoder, "lr": DECODER_RATE}]
    optimizer = torch.optim.Adam(groups, fused=True)
    config = TrainConfig()
    for step in range(1, run.steps + 1):
        draw = StepNoise.of(run.seed, TRAINING, step).normal
        noise = Noise.draw(draw, SEQUENCES, run.draws, num_aux.at(step), run.widths)
        draws_loss(model(noise), config, beta.at(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def measure_toy(run: ToyRun, model: ToyVAE) -> dict[str, Any]:
    """Measure a trained panel and keep points to show."""
    noise = StepNoise.of(run.seed, VALIDATION, 0)
    eps = Noise.draw(noise.normal, SEQUENCES, run.draws, run.auxiliaries.num_aux, run.widths)
    report = draws_loss(model(eps), TrainConfig(), 1.0)
    count = _COMPONENTS if run.widths.lam else 1
    mixture = model.mixture(noise.normal(SEQUENCES, count, run.widths.lam))
    shown = model.mixture(noise.normal(SEQUENCES, _SHOWN, run.widths.lam)).components
    points = shown.rsample(noise.normal(SEQUENCES, _SHOWN, 2))
    return {
        "run": asdict(run),
        "values": {
            **{name: float(value) for name, value in report.parts.items()},
            **plane_measures(mixture),
            "mi_ceiling": math.log(SEQUENCES),
        },
        "points": [[[round(x, 3) for x in point] for point in row] for row in points.tolist()],
    }


def plane_measures(mixture: Mixture) -> dict[str, float]:
    """Integrate over a grid of the plane what a latent tells of its sequence.

    Args:
        mixture: q(z|n) of N equally likely sequences, batch shape (N, S, 2).

    Returns:
        kl_aggregate: KL(q(z)||p), nats; mutual_information: I(n; z), nats; bayes_accuracy: how
        often the likeliest n given z is the one that made it; mass: of q(z) on the grid.
    """
    axis = torch.linspace(-_EDGE, _EDGE, _CELLS, dtype=torch.float64)
    area = float(axis[1] - axis[0]) ** 2
    grid = torch.cartesian_prod(axis, axis)  # (G, 2)
    mu, logvar = mixture.components.mu.double(), mixture.components.logvar.double()
    precision = torch.exp(-logvar)  # (N, S, 2)
    rest = (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(-1)  # (N, S)
    rows = []
    for n in range(len(mu)):
        at_origin = mixture.log_weights[n].double() - 0.5 * rest[n]  # (S,)
        by_cell = torch.cat([precision[n] * -0.5, precision[n] * mu[n]], dim=1).t()  # (4, S)
        log_q_n = [
            torch.logsumexp(torch.addmm(at_origin, cells, by_cell), dim=1)
            for cells in torch.cat([grid.square(), grid], dim=1).split(_CELLS)  # stays in the cache
        ]
        rows.append(torch.cat(log_q_n))
    log_each = torch.stack(rows)  # (N, G)
    log_q = torch.logsumexp(log_each, dim=0) - math.log(len(mu))  # (G,)
    log_p = -0.5 * grid.square().sum(1) - math.log(2 * math.pi)
    q = log_q.exp()
    # x log x is 0 at 0
    information = torch.where(log_each.exp() > 0, log_each.exp() * (log_each - log_q), 0.0)
    return {
        "kl_aggregate": float(torch.where(q > 0, q * (log_q - log_p), 0.0).sum()) * area,
        "mutual_information": float(information.sum()) * area / len(mu),
        "bayes_accuracy": float(log_each.max(0).values.exp().sum()) * area / len(mu),
        "mass": float(q.sum()) * area,
    }


def reproduce_toy(
    out: Path, steps: int, draws: int, seed: int, jobs: int, say: Callable[[str], None]
) -> Path:
    """Train the panels that are not done, then draw the figure and write the numbers.

    Args:
        out: folder of the results.
        steps: T.
        draws: J.
        seed: of everything.
        jobs: panels at a time; 0 for as many as there are cores.
        say: told what happens.

    Returns:
        The Markdown file.

    Raises:
        ConfigError: if a number cannot be meant.
    """
    if steps < 1 or draws < 1:
        raise ConfigError(f"--steps and --draws must be at least 1, got {steps} and {draws}")
    panel = partial(ToyRun, steps=steps, draws=draws, seed=seed)
    figure = [panel(method, schedule, start) for method, start in FIGURE for schedule in SCHEDULES]
    runs = figure + [panel(method, "constant", start, told) for method, start, told in CONTROLS]
    folder = out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    left = [run for run in runs if not _stands(folder, run)]
    say(f"{len(runs) - len(left)} of {len(runs)} panels are done already")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    if left:
        workers = min(len(left), jobs or cores)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for name in pool.map(_one_panel, left, [folder] * len(left)):
                say(f"done: {name}")
    measured = [json.loads(_file(folder, run).read_text()) for run in runs]
    plot_latents(measured[: len(figure)], out)
    numbers = [{"run": panel["run"], "values": panel["values"]} for panel in measured]
    shown, beside = numbers[: len(figure)], numbers[len(figure) :]
    facts = {
        "steps": steps,
        "J": draws,
        "K": runs[0].num_aux,
        **_SETTINGS,
        "seed": seed,
        **machine(),
    }
    content = json.dumps({"facts": facts, "panels": shown, "controls": beside}, indent=2)
    write_atomically(out / "toy.json", content + "\n")
    page = out / "toy.md"
    write_atomically(page, toy_page(shown, beside, facts))
    return page


def _file(folder: Path, run: ToyRun) -> Path:
    return folder / f"{run.name}.json"


def _stands(folder: Path, run: ToyRun) -> bool:
    """Whether a panel's result stands and is of the same settings."""
    file = _file(folder, run)
    return file.is_file() and bool(json.loads(file.read_text())["run"] == asdict(run))


def _one_panel(run: ToyRun, folder: Path) -> str:
    torch.set_num_threads(1)
    measured = measure_toy(run, train_toy(run))
    write_atomically(_file(folder, run), json.dumps(measured) + "\n")
    return run.name
