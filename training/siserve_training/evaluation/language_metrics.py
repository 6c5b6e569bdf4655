"""Measures of a sentence VAE from its posteriors (He et al. 2019; Burda et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.evaluation.information import mutual_information

__all__ = ["ACTIVE_FROM", "ActiveUnits", "active_units", "gaussian_information", "over_batches"]

#: A unit is active if the variance of its posterior mean over the data is at least this.
ACTIVE_FROM = 0.01


@dataclass(frozen=True)
class ActiveUnits:
    """Units of the latent whose posterior mean moves with the sentence.

    Attributes:
        count: AU.
        variance: unbiased, over sentences, of each unit's posterior mean, (D,).
    """

    count: int
    variance: Tensor


def active_units(means: Tensor) -> ActiveUnits:
    """Count active units (Burda et al. 2016).

    Args:
        means: of each sentence's posterior, (N, D). Where they are averages over noise, the noise
            must be the same for all sentences: its own variance would count as movement.
    """
    variance = means.var(0)
    return ActiveUnits(int((variance >= ACTIVE_FROM).sum()), variance)


def gaussian_information(q: DiagonalNormal, z: Tensor) -> float:
    """Estimate I(x; z) over B sentences with Gaussian posteriors, at most about log B nats.

    He et al. 2019: E log q(z|x) in closed form, less log of the mean posterior at one z a sentence.

    Args:
        q: of each sentence, batch shape (B, D).
        z: drawn from it, (B, D).
    """
    own = q.log_prob(z)
    from_draws = mutual_information(
        z, Mixture.uniform(DiagonalNormal(q.mu.unsqueeze(1), q.logvar.unsqueeze(1)))
    )
    negative_entropy = q.log_prob(q.mu) - 0.5 * q.mu.shape[-1]  # E log q(z|x)
    return from_draws + float((negative_entropy - own).mean())


def over_batches(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Average what was found of batches, each weighted by its sentences."""
    return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
