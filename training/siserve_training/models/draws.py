"""What goes into a conditional model besides text, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.distributions import Density, DiagonalNormal

__all__ = ["Draws", "Encoded", "Latents", "Noise", "NoiseWidths", "as_uniform"]


@dataclass(frozen=True)
class NoiseWidths:
    """How many N(0, 1) numbers a model wants for one draw.

    Attributes:
        lam: E, for the parameters of the posterior.
        z: D, for a latent.
        prior: what the prior takes beyond D, 0 for a Gaussian one.
    """

    lam: int
    z: int
    prior: int = 0


@dataclass(frozen=True)
class Noise:
    """All noise of a batch, N(0, 1).

    Attributes:
        eps_lam: of J own and K auxiliary draws, own first, (B, J+K, E).
        eps_z: of the latents, (B, J, D).
        eps_prior: of K+1 fresh draws of the prior's parameters, (B, K+1, P - D).
    """

    eps_lam: Tensor
    eps_z: Tensor
    eps_prior: Tensor

    @classmethod
    def draw(
        cls,
        normal: Callable[[int, int, int], Tensor],
        pairs: int,
        num_latents: int,
        num_aux: int,
        widths: NoiseWidths,
    ) -> Noise:
        """Draw the noise of B pairs, J latents and K auxiliaries by `normal(*shape)`."""
        return cls(
            eps_lam=normal(pairs, num_latents + num_aux, widths.lam),
            eps_z=normal(pairs, num_latents, widths.z),
            eps_prior=normal(pairs, num_aux + 1, widths.prior),
        )

    def rows(self, chosen: slice) -> Noise:
        """Take the noise of some pairs."""
        return Noise(self.eps_lam[chosen], self.eps_z[chosen], self.eps_prior[chosen])

    def to(self, device: torch.device) -> Noise:
        """Move the noise."""
        return Noise(self.eps_lam.to(device), self.eps_z.to(device), self.eps_prior.to(device))


def as_uniform(eps: Tensor) -> Tensor:
    """Turn N(0, 1) numbers into numbers that are uniform in (0, 1)."""
    uniform: Tensor = torch.special.ndtr(eps)
    return uniform


@dataclass(frozen=True)
class Encoded:
    """A batch's context and response as vectors.

    Attributes:
        c: condition vector, (B, C).
        response: response vector, (B, F).
        text: what was encoded, for a posterior that is refined on it; None elsewhere.
    """

    c: Tensor
    response: Tensor
    text: SentenceBatch | None = None


@dataclass(frozen=True)
class Latents:
    """Latents of the posterior with their log densities in nats, NaN where there is none.

    Attributes:
        z: (B, J, D).
        log_q_z: log q(z|x,c), (B, J).
        log_p_z: log p(z|c), (B, J).
        log_own_z: log density of the component that made z, (B, J).
    """

    z: Tensor
    log_q_z: Tensor
    log_p_z: Tensor
    log_own_z: Tensor


@dataclass(frozen=True)
class Draws:
    """J latents for each pair, where they came from, and how well they explain the response.

    Attributes:
        z: latents, (B, J, D).
        prior: p(z|c).
        own: the Gaussian that made each latent, (B, J, D).
        posterior: q(z|x,c).
        log_p_x: log p(x|z,c) in nats, summed over tokens, (B, J).
        log_p_bow: log-likelihood of the response as a bag of words, (B, J), or None.
        tokens: predicted tokens of each response, (B,).
        log_weights: log share of each latent in means over J, (B, J); None for equal shares.
    """

    z: Tensor
    prior: Density
    own: DiagonalNormal
    posterior: Density
    log_p_x: Tensor
    log_p_bow: Tensor | None
    tokens: Tensor
    log_weights: Tensor | None = None
