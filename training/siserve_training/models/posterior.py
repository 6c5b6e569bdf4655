"""Posteriors of one network: a Gaussian, an explicit mixture (paper eq. 6), a semi-implicit one.

Which it is shows in the head: several components make the mixture, noise in its input makes the
semi-implicit posterior, and with neither it is a Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siserve_training.distributions import Density, DiagonalNormal, Mixture, SemiImplicit
from siserve_training.models.draws import Noise, as_uniform
from siserve_training.nets.heads import GaussianHead, MixtureHead

__all__ = ["PosteriorDraws", "as_mixture", "draw_each", "draw_latents", "make_head"]


def make_head(
    features: int,
    hidden: int,
    latent: int,
    logvar_clamp: float,
    noise: int = 0,
    components: int = 1,
    multiplies: bool = False,
) -> GaussianHead | MixtureHead:
    """Make the network of q(z|x); see `GaussianHead` and `MixtureHead`."""
    if components > 1:
        return MixtureHead(features, hidden, latent, components, logvar_clamp)
    return GaussianHead(features, noise, hidden, latent, logvar_clamp, multiplies=multiplies)


def as_mixture(head: GaussianHead | MixtureHead, features: Tensor, eps_lam: Tensor) -> Mixture:
    """Return q(z|x) as a mixture: the explicit one, or that of the drawn lambda.

    Args:
        head: the network.
        features: (B, F).
        eps_lam: (B, S, E); not looked at by an explicit mixture.
    """
    if isinstance(head, MixtureHead):
        mu, logvar, log_weights = head(features)
        return Mixture(DiagonalNormal(mu.float(), logvar.float()), log_weights.float())
    mu, logvar = head(features, eps_lam)
    return Mixture.uniform(DiagonalNormal(mu.float(), logvar.float()))


@dataclass(frozen=True)
class PosteriorDraws:
    """J latents and where they came from.

    Attributes:
        z: (B, J, D).
        own: the Gaussian that made each, (B, J, D).
        density: q(z|x), or its estimate.
        log_weights: log share of each latent in means over J, (B, J); None for equal shares.
    """

    z: Tensor
    own: DiagonalNormal
    density: Density
    log_weights: Tensor | None = None


def draw_each(mixture: Mixture, explicit: bool, eps_z: Tensor) -> PosteriorDraws:
    """Draw as training does: of an explicit mixture one latent a component, weighted by its share.

    The shares get gradients so. Of the S drawn lambda of the others the first J make latents.

    Args:
        mixture: S components.
        explicit: whether it is an explicit one; S is J then.
        eps_z: (B, J, D).
    """
    if explicit:
        own = mixture.components
        return PosteriorDraws(own.rsample(eps_z), own, mixture, mixture.log_weights)
    return _semi_implicit(mixture, eps_z)


def draw_latents(mixture: Mixture, explicit: bool, noise: Noise) -> PosteriorDraws:
    """Draw J latents from q(z|x); K = S - J of the S draws of eps_lam are auxiliaries."""
    if not explicit:
        return _semi_implicit(mixture, noise.eps_z)
    draws = noise.eps_z.shape[1]
    own = mixture.choose(as_uniform(noise.eps_lam[:, :draws, 0]))
    return PosteriorDraws(own.rsample(noise.eps_z), own, mixture)


def _semi_implicit(mixture: Mixture, eps_z: Tensor) -> PosteriorDraws:
    draws = eps_z.shape[1]
    own = mixture.components.draws(0, draws)
    density = SemiImplicit(own, mixture.components.draws(draws))
    return PosteriorDraws(own.rsample(eps_z), own, density)
