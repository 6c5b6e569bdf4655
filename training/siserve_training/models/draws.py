"""What a conditional model returns for a batch: distributions and log-likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siserve_training.distributions import DiagonalNormal

__all__ = ["Draws", "Encoded"]


@dataclass(frozen=True)
class Encoded:
    """A batch's context and response as vectors.

    Attributes:
        c: condition vector, (B, C).
        response: response vector, (B, F).
    """

    c: Tensor
    response: Tensor


@dataclass(frozen=True)
class Draws:
    """J latents for each pair, where they came from, and how well they explain the response.

    Attributes:
        z: latents, (B, J, D).
        prior: p(z|c), batch shape (B, 1, D).
        own: q(z|lambda_j), the component that made each latent, (B, J, D).
        aux: q(z|lambda^(k)), auxiliaries that made none, (B, K, D).
        log_p_x: log p(x|z,c) in nats, summed over tokens, (B, J).
        log_p_bow: log-likelihood of the response as a bag of words, (B, J), or None.
        tokens: predicted tokens of each response, (B,).
    """

    z: Tensor
    prior: DiagonalNormal
    own: DiagonalNormal
    aux: DiagonalNormal
    log_p_x: Tensor
    log_p_bow: Tensor | None
    tokens: Tensor
