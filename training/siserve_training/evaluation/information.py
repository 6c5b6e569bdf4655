"""How much a latent tells of its data: mutual information under the aggregated posterior."""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.batches import DialogBatch
from siserve_training.data.pairs import PairSet
from siserve_training.distributions import Mixture
from siserve_training.evaluation.system import Scorer
from siserve_training.models.draws import Encoded, NoiseWidths
from siserve_training.tasks.prepared import validation_batches

__all__ = ["TellsMixture", "information_of", "mutual_information"]


class TellsMixture(Scorer[DialogBatch], Protocol):
    """What scores responses and tells its posterior."""

    def mixture(self, encoded: Encoded, eps_lam: Tensor) -> Mixture:
        """Return q(z|x,c) as a mixture: the explicit one, or that of the drawn lambda."""


@torch.no_grad()
def information_of(
    scorer: TellsMixture,
    widths: NoiseWidths,
    pairs: PairSet,
    config: TrainConfig,
    device: torch.device,
    count: int,
) -> float:
    """Estimate the mutual information of latents and pairs, in nats, at most log `count`.

    Args:
        scorer: a model in evaluation mode, or a system.
        widths: of its noise.
        pairs: the split.
        config: J, K and the seed.
        device: where the scorer takes its tensors.
        count: evenly spread pairs.
    """
    batch = next(validation_batches(pairs, config, widths, count, count)).to(device)
    encoded = scorer.encode(cast(DialogBatch, batch.pairs))
    latents = scorer.draw_posterior(encoded, batch.noise)
    return mutual_information(latents.z[:, 0], scorer.mixture(encoded, batch.noise.eps_lam))


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
