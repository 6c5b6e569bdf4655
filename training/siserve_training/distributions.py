"""Diagonal Gaussians, parametrised by mean and log-variance as Zhao et al. 2017."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DiagonalNormal"]

_LOG_2PI = math.log(2 * math.pi)


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
