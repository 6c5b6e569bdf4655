"""Losses of a latent-variable model whose prior is matched by a critic (Gu et al. 2019, DialogWAE).

The autoencoder minimises cross-entropy; a critic tells latents of the posterior from latents of
the prior, and both generators move until it cannot (Arjovsky et al. 2017; Gulrajani et al. 2017).
Scores are (B, J); the sign is that of the authors' code: the critic scores the prior higher.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["critic_gap", "gradient_penalty", "nll_per_token"]


def nll_per_token(log_p_x: Tensor, tokens: Tensor) -> Tensor:
    """Average the negative log-likelihood over all tokens of a batch, in nats.

    Args:
        log_p_x: log p(x|z,c) summed over tokens, (B, J).
        tokens: of each response, (B,).
    """
    return -log_p_x.mean(1).sum() / tokens.sum()


def critic_gap(of_prior: Tensor, of_posterior: Tensor) -> Tensor:
    """Return E D(prior) - E D(posterior): the critic raises it, the generators lower it."""
    return of_prior.mean() - of_posterior.mean()


def gradient_penalty(gradient: Tensor, per_sample: bool = True) -> Tensor:
    """Return E (|grad D| - 1)^2 (Gulrajani et al. 2017, eq. 3).

    Args:
        gradient: of the sum of all scores in each latent, (B, J, D).
        per_sample: False for the gradient of the scores' mean, as DialogWAE's code has it; norms
            are then smaller by the number of latents, and the penalty hardly feels the critic.
    """
    norms = gradient.flatten(0, -2).norm(dim=1)  # (B J,)
    if not per_sample:
        norms = norms / len(norms)
    penalty: Tensor = (norms - 1).square().mean()
    return penalty
