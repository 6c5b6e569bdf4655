"""The paper's toy model (appendix C): ten sequences of ten bits, a latent in the plane."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.models.draws import Draws, Noise
from siserve_training.models.posterior import as_mixture, draw_each
from siserve_training.nets.gru import PackedLayout
from siserve_training.nets.heads import GaussianHead
from siserve_training.nets.language import LatentDecoder
from siserve_training.nets.output import token_log_probs

__all__ = ["SEQUENCES", "ToyVAE"]

#: Sequence n is the n-th unit vector.
SEQUENCES = 10
_LATENT = 2
_BIT_EMBEDDING = 8
_START = 0  # before the first bit; bit b is token 1 + b


class ToyVAE(nn.Module):
    """Two-layer network to q(z|n), LSTM over bits as p(x|z), prior N(0, I).

    Args:
        noise: size of eps_lam, 0 for the Gaussian VAE.
        told_bits: whether the LSTM is told the bits before, which is what teacher forcing does. It
            then models the ten sequences without z: log 10 nats, as with it. An LSTM that is told z
            alone pays 10 H(1/10) = 3.25 nats where it ignores z.
        hidden: units of each layer of the encoder, and of the LSTM.
    """

    def __init__(self, noise: int, told_bits: bool = False, hidden: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(SEQUENCES, hidden)
        self.posterior_net = GaussianHead(hidden, noise, hidden, _LATENT, logvar_clamp=10.0)
        self.embedding = nn.Embedding(3 if told_bits else 1, _BIT_EMBEDDING)
        self.decoder = LatentDecoder(_LATENT, _BIT_EMBEDDING, hidden, vocabulary=2)
        self.noise = noise
        self.told_bits = told_bits

    def mixture(self, eps_lam: Tensor) -> Mixture:
        """Return q(z|n) of every sequence by drawn lambda, noise (10, S, E)."""
        features = torch.tanh(self.first(torch.eye(SEQUENCES)))
        return as_mixture(self.posterior_net, features, eps_lam)

    def log_p_x(self, z: Tensor) -> Tensor:
        """Return log p(x_n|z) of every sequence under latents of its own, (10, J, 2) to (10, J)."""
        draws = z.shape[1]
        bits = torch.eye(SEQUENCES, dtype=torch.int64)
        given = torch.full_like(bits, _START)
        if self.told_bits:
            given[:, 1:] = 1 + bits[:, :-1]
        rows = torch.full((SEQUENCES * draws,), SEQUENCES)
        layout = PackedLayout.of(rows, z.device)
        texts = layout.rows // draws
        states = self.decoder(
            self.embedding.weight,
            given[texts, layout.steps],
            layout,
            self.decoder.first_state(z).flatten(0, 1),
        )
        log_p = token_log_probs(states, self.decoder.out, bits[texts, layout.steps])  # (N,)
        return log_p.new_zeros(len(rows)).index_add(0, layout.rows, log_p).view(-1, draws)

    def forward(self, noise: Noise) -> Draws:
        """Draw J latents of every sequence and score it under each."""
        drawn = draw_each(self.mixture(noise.eps_lam), False, noise.eps_z)
        zeros = torch.zeros(SEQUENCES, 1, _LATENT)
        return Draws(
            z=drawn.z,
            prior=DiagonalNormal(zeros, zeros),
            own=drawn.own,
            posterior=drawn.density,
            log_p_x=self.log_p_x(drawn.z),
            log_p_bow=None,
            tokens=torch.full((SEQUENCES,), SEQUENCES),
        )
