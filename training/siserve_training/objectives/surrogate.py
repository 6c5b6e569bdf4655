"""The surrogate bound of a semi-implicit posterior, L_{beta,K}.

Paper eq. 14, after Yin & Zhou 2018, eq. 9. Eq. 14 as printed has two slips, corrected here: line 1
is E - R_ + B_K, not E + R_, and line 2 takes logs of p(z) and of the mixture. beta multiplies the
whole KL bracket, E - beta (R_ - B_K), so that beta = 0 is reconstruction alone and K to infinity
gives E - beta KL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from siserve_training.distributions import DiagonalNormal

__all__ = ["SurrogateBound", "surrogate_bound", "surrogate_log_q"]


def surrogate_log_q(z: Tensor, own: DiagonalNormal, aux: DiagonalNormal) -> Tensor:
    """Estimate log q(z|x) by a mixture over lambda that holds the lambda which made z.

    Yin & Zhou 2018, Algorithm 1. Too large in expectation, so the bound stays a bound; leaving
    `own` out makes it too small and the bound false. Exact as K grows; log q(z|lambda) at K = 0.

    Args:
        z: latents drawn from `own`, (B, J, D).
        own: q(z|lambda_j), batch shape (B, J, D).
        aux: q(z|lambda^(k)), independent of z and shared by the J latents, (B, K, D).

    Returns:
        Log density in nats, (B, J).
    """
    log_own = own.log_prob(z).unsqueeze(-1)  # (B, J, 1)
    pairwise = DiagonalNormal(aux.mu.unsqueeze(-3), aux.logvar.unsqueeze(-3))  # (B, 1, K, D)
    log_aux = pairwise.log_prob(z.unsqueeze(-2))  # (B, J, K)
    components = torch.cat([log_own, log_aux], dim=-1)  # (B, J, K+1)
    return torch.logsumexp(components, dim=-1) - math.log(components.shape[-1])


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


def surrogate_bound(
    z: Tensor,
    own: DiagonalNormal,
    aux: DiagonalNormal,
    prior: DiagonalNormal,
    log_p_x: Tensor,
    beta: float = 1.0,
) -> SurrogateBound:
    """Compute L_{beta,K} by Monte Carlo.

    Args:
        z: latents drawn from `own`, (B, J, D).
        own: q(z|lambda_j), batch shape (B, J, D).
        aux: q(z|lambda^(k)), batch shape (B, K, D), K >= 0.
        prior: p(z) or p(z|c), broadcasting to (B, J, D).
        log_p_x: log p(x|z_j), (B, J).
        beta: weight of the KL term.
    """
    log_q_z = surrogate_log_q(z, own, aux)  # (B, J)
    kl = (log_q_z - prior.log_prob(z)).mean(-1)
    log_p_x = log_p_x.mean(-1)
    gain = (own.log_prob(z) - log_q_z).mean(-1)
    return SurrogateBound(bound=log_p_x - beta * kl, log_p_x=log_p_x, kl=kl, gain=gain)
