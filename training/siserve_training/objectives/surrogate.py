"""The bound L_{beta,K} of a latent-variable model, with a semi-implicit posterior or a plain one.

Paper eq. 14, after Yin & Zhou 2018, eq. 9. Eq. 14 as printed has two slips, corrected here: line 1
is E - R_ + B_K, not E + R_, and line 2 takes logs of p(z) and of the mixture. beta multiplies the
whole KL bracket, E - beta (R_ - B_K), so that beta = 0 is reconstruction alone and K to infinity
gives E - beta KL.

A semi-implicit prior stays within the bound too: log p(z|c) is estimated by a mixture of fresh
lambda, without one that made z, which by Jensen is too small in expectation. Both estimates err
to the same side: the KL comes out too large, the bound too low.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siserve_training.distributions import Density, DiagonalNormal, SemiImplicit

__all__ = ["SurrogateBound", "latent_bound", "surrogate_bound", "surrogate_log_q"]


def surrogate_log_q(z: Tensor, own: DiagonalNormal, aux: DiagonalNormal) -> Tensor:
    """Estimate log q(z|x) of a semi-implicit posterior, see `SemiImplicit`.

    Args:
        z: latents drawn from `own`, (B, J, D).
        own: q(z|lambda_j), batch shape (B, J, D).
        aux: q(z|lambda^(k)), batch shape (B, K, D).

    Returns:
        Log density in nats, (B, J).
    """
    return SemiImplicit(own, aux).log_prob(z)


@dataclass(frozen=True)
class SurrogateBound:
    """L_{beta,K} of each example and its parts, means over the J latents, all in nats and (B,).

    Attributes:
        bound: E log p(x|z) - beta * kl, differentiable.
        log_p_x: E log p(x|z), differentiable.
        kl: E[log q~(z) - log p(z)], an upper bound of the KL that falls to it with K; reported
            as the KL.
        gain: B_K = E[log q(z|lambda) - log q~(z)], what the mixture gains over its components.
    """

    bound: Tensor
    log_p_x: Tensor
    kl: Tensor
    gain: Tensor


def latent_bound(
    z: Tensor,
    own: DiagonalNormal,
    posterior: Density,
    prior: Density,
    log_p_x: Tensor,
    beta: float = 1.0,
    log_weights: Tensor | None = None,
) -> SurrogateBound:
    """Compute L_{beta,K} by Monte Carlo.

    Args:
        z: latents drawn from `own`, (B, J, D).
        own: the component that made each latent, batch shape (B, J, D).
        posterior: q(z|x) or its estimate.
        prior: p(z) or p(z|c) or its estimate.
        log_p_x: log p(x|z_j), (B, J).
        beta: weight of the KL term.
        log_weights: log share of each latent, (B, J); None for equal shares.
    """

    def mean(values: Tensor) -> Tensor:
        if log_weights is None:
            return values.mean(-1)
        return (log_weights.exp() * values).sum(-1)

    log_q_z = posterior.log_prob(z)  # (B, J)
    kl = mean(log_q_z - prior.log_prob(z))
    reconstruction = mean(log_p_x)
    gain = mean(own.log_prob(z) - log_q_z)
    return SurrogateBound(reconstruction - beta * kl, reconstruction, kl, gain)


def surrogate_bound(
    z: Tensor,
    own: DiagonalNormal,
    aux: DiagonalNormal,
    prior: Density,
    log_p_x: Tensor,
    beta: float = 1.0,
) -> SurrogateBound:
    """Compute L_{beta,K} of a semi-implicit posterior with K >= 0 auxiliaries, (B, K, D)."""
    return latent_bound(z, own, SemiImplicit(own, aux), prior, log_p_x, beta)
