"""Diagonal Gaussians and mixtures of them, parametrised by mean and log-variance.

A density is anything with ``log_prob(z)``; objectives ask for no more than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Density", "DiagonalNormal", "Mixture", "SemiImplicit"]

_LOG_2PI = math.log(2 * math.pi)


class Density(Protocol):
    """A density over latents."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density in nats of each of J latents, (B, J, D) to (B, J)."""


@dataclass(frozen=True)
class DiagonalNormal:
    """N(mu, diag(exp(logvar))) over the last axis, in float32 or wider.

    Attributes:
        mu: means, (..., D).
        logvar: log-variances, (..., D).
    """

    mu: Tensor
    logvar: Tensor

    def rsample(self, eps_z: Tensor) -> Tensor:
        """Return mu + sigma * eps_z, differentiable in both parameters, (..., D)."""
        return self.mu + torch.exp(0.5 * self.logvar) * eps_z

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density in nats; leading axes broadcast, (...)."""
        squares = (z - self.mu).square() * torch.exp(-self.logvar)
        return -0.5 * (squares + self.logvar + _LOG_2PI).sum(-1)

    def kl(self, other: DiagonalNormal) -> Tensor:
        """Return KL(self || other) in nats, in closed form, (...)."""
        ratio = torch.exp(self.logvar - other.logvar)
        shift = (self.mu - other.mu).square() * torch.exp(-other.logvar)
        return 0.5 * (ratio + shift - 1 - (self.logvar - other.logvar)).sum(-1)

    def expand_draws(self) -> DiagonalNormal:
        """Add an axis for draws before the last: (B, D) to (B, 1, D)."""
        return DiagonalNormal(self.mu.unsqueeze(-2), self.logvar.unsqueeze(-2))

    def draws(self, start: int, stop: int | None = None) -> DiagonalNormal:
        """Take draws `start` to `stop` of the axis before the last."""
        return DiagonalNormal(self.mu[..., start:stop, :], self.logvar[..., start:stop, :])

    def each_of(self, z: Tensor) -> Tensor:
        """Return the log density of every latent under every component, (B, J, D) to (B, J, S).

        For S components a row, batch shape (B, S, D).
        """
        every = DiagonalNormal(self.mu.unsqueeze(-3), self.logvar.unsqueeze(-3))  # (B, 1, S, D)
        return every.log_prob(z.unsqueeze(-2))


@dataclass(frozen=True)
class Mixture:
    """S Gaussians a row, weighted.

    Explicit mixtures (paper eq. 6) have weights of their own. A semi-implicit density is estimated
    by fresh draws of its parameters with equal weights; that is unbiased for the density, so by
    Jensen too small for its logarithm.

    Attributes:
        components: batch shape (B, S, D).
        log_weights: in nats, sum to 1 over S, (B, S).
    """

    components: DiagonalNormal
    log_weights: Tensor

    @classmethod
    def uniform(cls, components: DiagonalNormal) -> Mixture:
        """Weigh all components alike."""
        shape = components.mu.shape[:-1]
        return cls(components, components.mu.new_full(shape, -math.log(shape[-1])))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density in nats, (B, J, D) to (B, J)."""
        each = self.components.each_of(z) + self.log_weights.unsqueeze(-2)  # (B, J, S)
        return torch.logsumexp(each, dim=-1)

    def choose(self, uniform: Tensor) -> DiagonalNormal:
        """Choose a component for each draw by inverse CDF, (B, J) uniforms to (B, J, D)."""
        ends = self.log_weights.exp().cumsum(-1)  # (B, S)
        last = self.log_weights.shape[-1] - 1
        index = torch.searchsorted(ends, uniform.contiguous(), right=True).clamp(max=last)
        index = index.unsqueeze(-1).expand(-1, -1, self.components.mu.shape[-1])  # (B, J, D)
        return DiagonalNormal(
            self.components.mu.gather(1, index), self.components.logvar.gather(1, index)
        )


@dataclass(frozen=True)
class SemiImplicit:
    """Estimate of a semi-implicit posterior's density by a mixture with the own lambda in it.

    Yin & Zhou 2018, Algorithm 1. Too large in expectation, so a bound that subtracts its logarithm
    stays a bound; leaving `own` out makes it too small and the bound false. Exact as K grows;
    log q(z|lambda) at K = 0.

    Attributes:
        own: q(z|lambda_j), the component that made each latent, batch shape (B, J, D).
        aux: q(z|lambda^(k)), independent of z and shared by the J latents, (B, K, D).
    """

    own: DiagonalNormal
    aux: DiagonalNormal

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the estimate in nats for latents drawn from `own`, (B, J, D) to (B, J)."""
        log_own = self.own.log_prob(z).unsqueeze(-1)  # (B, J, 1)
        components = torch.cat([log_own, self.aux.each_of(z)], dim=-1)  # (B, J, K+1)
        return torch.logsumexp(components, dim=-1) - math.log(components.shape[-1])
