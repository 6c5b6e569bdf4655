"""How much a latent tells of its data: mutual information under the aggregated posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from siserve_training.distributions import Mixture

__all__ = ["mutual_information"]


def mutual_information(z: Tensor, mixture: Mixture, rows: int = 64) -> float:
    """Estimate I(x; z) over B examples, as He et al. 2019's code does, for mixtures.

    log q(z_i|x_j) is the log density under the S components of x_j, the one that made z_i among
    them for j = i, in both terms. The estimate cannot exceed about log B.

    Args:
        z: one latent of each example, drawn from a component of its own, (B, D).
        mixture: q(z|x) of each example, batch shape (B, S, D).
        rows: latents that are scored at once.

    Returns:
        Nats.
    """
    mu, logvar = (part.flatten(0, 1).double() for part in _parameters(mixture))  # (B*S, D)
    count, draws = mixture.log_weights.shape
    precision = torch.exp(-logvar)
    # the square, multiplied out: products of matrices, in float64 for what cancels
    rest = (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(-1)  # (B*S,)
    log_weights, pieces = mixture.log_weights.double(), []
    for part in z.double().split(rows):
        squares = part.square() @ precision.t() - 2 * part @ (mu * precision).t() + rest
        each = (-0.5 * squares).view(-1, count, draws)  # (rows, B, S)
        pieces.append(torch.logsumexp(each + log_weights, dim=-1))
    log_q = torch.cat(pieces)  # (B, B): z_i under x_j
    aggregated = torch.logsumexp(log_q, dim=1) - math.log(count)
    return float((log_q.diagonal() - aggregated).mean())


def _parameters(mixture: Mixture) -> tuple[Tensor, Tensor]:
    return mixture.components.mu, mixture.components.logvar
