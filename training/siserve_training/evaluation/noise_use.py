"""Whether a semi-implicit posterior uses its noise, or is a Gaussian in all but name.

B_K tells how far the components of one posterior lie apart; here is where that comes from. The
share of the noise tells how much of the posterior means' movement, and of the posterior's width, is
due to the noise; a two-sample test tells whether draws can be told from those of a Gaussian with
their mean and covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import PairSet
from siserve_training.distributions import DiagonalNormal, SemiImplicit
from siserve_training.models.cvae import CVAE
from siserve_training.models.draws import Encoded, Noise
from siserve_training.tasks.prepared import RANKING, StepNoise, evaluation_batches

__all__ = ["NoiseUse", "bounds_by_num_aux", "energy_test", "noise_shares", "noise_use"]

_DRAWS = 256
_AXES = 8


@dataclass(frozen=True)
class NoiseUse:
    """What the noise of a posterior does.

    Attributes:
        share_of_mu: E_x Var_eps(mu) over the variance of mu across pairs and noise, summed over D.
        share_of_width: share of the posterior's variance that the noise makes along the axis in
            which it makes most, in units of each dimension's sigma; mean over pairs.
        non_gaussian: share of pairs whose draws the energy test tells from their best Gaussian at
            the 5 % level; 0.05 is what Gaussians give.
        pairs: tested.
    """

    share_of_mu: float
    share_of_width: float
    non_gaussian: float
    pairs: int


@torch.no_grad()
def bounds_by_num_aux(
    model: CVAE, pairs: PairSet, config: TrainConfig, counts: tuple[int, ...], limit: int = 0
) -> dict[int, float]:
    """Return the bound L_K on a split for several K, nats a response; in expectation it rises.

    Latents and auxiliaries are shared: a smaller K uses the first ones of a larger.

    Args:
        model: of the CVAE family, with noise.
        pairs: the split.
        config: the seed.
        counts: the values of K.
        limit: evenly spread pairs; 0 for all.
    """
    device = next(model.parameters()).device
    sums = dict.fromkeys(counts, 0.0)
    seen = 0
    for number, batch in enumerate(evaluation_batches(pairs, limit, 64)):
        step_noise = StepNoise.of(config.seed, RANKING, 1 + number)
        noise = Noise.draw(step_noise.normal, len(batch), 1, max(counts), model.config.widths)
        noise, batch = noise.to(device), batch.to(device)
        encoded = model.encode(batch)
        parts = model.conditional(encoded, noise.eps_lam)
        own = parts.draws(0, 1)
        z = own.rsample(noise.eps_z)  # (B, 1, D)
        log_p_x = model.log_p_x(batch, encoded.c, z)
        joint = log_p_x + model.prior_density(encoded.c, noise.eps_prior).log_prob(z)
        for count in counts:
            log_q_z = SemiImplicit(own, parts.draws(1, 1 + count)).log_prob(z)
            sums[count] += float((joint - log_q_z).sum())
        seen += len(batch)
    return {count: total / seen for count, total in sums.items()}


@torch.no_grad()
def noise_use(model: CVAE, pairs: PairSet, config: TrainConfig, count: int = 100) -> NoiseUse:
    """Measure how a semi-implicit posterior uses its noise.

    Args:
        model: of the CVAE family, with noise.
        pairs: the split.
        config: the seed.
        count: evenly spread pairs.
    """
    was_training = model.training
    model.train(False)
    device = next(model.parameters()).device
    noise = StepNoise.of(config.seed, RANKING, 0)
    within, means, shares, rejected = 0.0, [], [], []
    for batch in evaluation_batches(pairs, count, 16):
        encoded = model.encode(batch.to(device))
        eps = noise.normal(len(batch), _DRAWS, model.config.widths.lam).to(device)
        parts = model.mixture(encoded, eps).components  # (B, S, D)
        means.append(parts.mu.mean(1))
        within += float(parts.mu.var(1).sum())
        shares += [
            _widest_share(DiagonalNormal(*pair))
            for pair in zip(parts.mu, parts.logvar, strict=True)
        ]
        rejected += [
            _looks_gaussian(model, encoded, row, noise) < 0.05 for row in range(len(batch))
        ]
    model.train(was_training)
    count = len(rejected)
    between = float(torch.cat(means).var(0).sum()) * count if count > 1 else math.nan
    return NoiseUse(
        share_of_mu=_share(within, between),
        share_of_width=float(np.mean(shares)),
        non_gaussian=float(np.mean(rejected)),
        pairs=count,
    )


def _share(part: float, rest: float) -> float:
    """Return the part's share of both, NaN where nothing varies."""
    return part / (part + rest) if part + rest != 0 else math.nan


def _in_sigmas(parts: DiagonalNormal) -> tuple[Tensor, Tensor]:
    """Return one pair's means in units of sigma, centred, (S, D), and that sigma, (D,)."""
    sigma = parts.logvar.exp().mean(0).sqrt()
    return (parts.mu - parts.mu.mean(0)) / sigma, sigma


def _widest_share(parts: DiagonalNormal) -> float:
    """Return the noise's share of the variance along its widest axis, batch shape (S, D)."""
    moved, _ = _in_sigmas(parts)
    variance = float(torch.linalg.matrix_norm(moved.double(), ord=2)) ** 2 / (len(moved) - 1)
    return variance / (variance + 1)


def noise_shares(
    model: CVAE, pairs: PairSet, config: TrainConfig, count: int = 32
) -> dict[str, float]:
    """Return what `noise_use` finds by the names of the training log."""
    use = noise_use(model, pairs, config, count)
    return {
        "noise_share_of_mu": use.share_of_mu,
        "noise_share_of_width": use.share_of_width,
        "non_gaussian": use.non_gaussian,
    }


def _looks_gaussian(model: CVAE, encoded: Encoded, row: int, noise: StepNoise) -> float:
    """Return the p-value of one pair's draws against fresh draws of their best Gaussian.

    Along the axes in which the noise moves the posterior most, measured in sigmas; in the others
    sigma would drown it.
    """
    one = Encoded(encoded.c[row : row + 1], encoded.response[row : row + 1])
    widths, device = model.config.widths, encoded.c.device
    eps = noise.normal(1, 4 * _DRAWS, widths.lam).to(device)
    parts = model.mixture(one, eps).components
    own = DiagonalNormal(parts.mu[0], parts.logvar[0])
    z = own.rsample(noise.normal(4 * _DRAWS, widths.z).to(device))  # (4S, D)
    moved, sigma = _in_sigmas(own)
    axes = torch.linalg.svd(moved, full_matrices=False).Vh[:_AXES]
    projected = ((z - own.mu.mean(0)) / sigma @ axes.T).double()  # (4S, A)
    drawn, rest = projected[:_DRAWS], projected[_DRAWS:]
    factor = torch.linalg.cholesky(torch.cov(rest.T) + 1e-12 * torch.eye(len(axes)).to(rest))
    normal = noise.normal(_DRAWS, len(axes)).to(rest)
    best = rest.mean(0) + normal @ factor.T
    scale = rest.std(0)
    return energy_test(drawn / scale, best / scale, noise.rng)


def energy_test(a: Tensor, b: Tensor, rng: np.random.Generator, permutations: int = 199) -> float:
    """Return the p-value of the energy distance between two samples (Szekely & Rizzo 2004).

    Distances are sums over the axes, so the statistic is the sum of each axis's own energy
    distance. With Euclidean ones two modes that lie 3 sigma off their middle on one of 8 axes are
    seen in 1 of 20 samples of 256 draws, which is the level; so they are in 18 of 20.

    Args:
        a: (n, A).
        b: (m, A).
        rng: of the permutations.
        permutations: how many.
    """
    joined = torch.cat([a, b])
    distances = torch.cdist(joined, joined, p=1)  # (n+m, n+m)
    labels = torch.zeros(len(joined), permutations + 1, dtype=distances.dtype)
    for column in range(permutations + 1):
        order = np.arange(len(joined)) if column == 0 else rng.permutation(len(joined))
        labels[torch.from_numpy(order[: len(a)]), column] = 1.0
    labels = labels.to(distances)
    n, m = len(a), len(b)
    first, second = labels / n, (1 - labels) / m
    difference = first - second  # energy distance = -(difference' D difference)
    energy = -(difference * (distances @ difference)).sum(0)
    return float((energy >= energy[0]).double().mean())
