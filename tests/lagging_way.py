"""A sentence VAE's training loss the way the lagging-encoder code computes it (He et al. 2019).

Plain PyTorch layers over one batch of sentences of one length: the library's LSTMs read word by
word, z stands beside every word's vector, the latents of a sentence are decoded one after another,
and all logits over all words are made in float32 and kept for the cross-entropy. A semi-implicit
posterior is put on top as research code would: the encoder's state is copied to every draw of the
noise, and the densities are torch.distributions'.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from siserve_training.models.language import LanguageModel, LanguageModelConfig
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = ["LaggingVAE"]


class LaggingVAE(nn.Module):
    """A VAE or SI-VAE out of plain layers, with the sizes and a copy of the weights of ours."""

    def __init__(self, ours: LanguageModel) -> None:
        super().__init__()
        sizes = self.sizes = cast(LanguageModelConfig, ours.config)
        self.reader = nn.ModuleDict(
            {
                "embedding": nn.Embedding(sizes.vocabulary, sizes.word_embedding, padding_idx=0),
                "lstm": nn.LSTM(sizes.word_embedding, sizes.encoder_hidden, batch_first=True),
            }
        )
        self.posterior_net = nn.ModuleDict()
        features = sizes.encoder_hidden + sizes.noise
        if sizes.post_hidden:
            self.posterior_net["hidden"] = nn.Linear(features, sizes.post_hidden)
        self.posterior_net["out"] = nn.Linear(sizes.post_hidden or features, 2 * sizes.latent)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.word_embedding, padding_idx=0)
        told = sizes.word_embedding + sizes.latent
        self.decoder = nn.ModuleDict(
            {
                "init": nn.Linear(sizes.latent, sizes.decoder_hidden, bias=False),
                "lstm": nn.LSTM(told, sizes.decoder_hidden, batch_first=True),
                "out": nn.Linear(sizes.decoder_hidden, sizes.vocabulary),
            }
        )
        self.word_dropout = nn.Dropout(sizes.word_dropout)
        self.output_dropout = nn.Dropout(sizes.output_dropout)
        self.load_state_dict(ours.state_dict())

    def posterior(self, ids: Tensor, eps_lam: Tensor) -> Normal:
        """Return q(z|lambda) of every draw of the noise, (B, T) and (B, S, E) to (B, S, D)."""
        _, (state, _) = self.reader["lstm"](self.reader["embedding"](ids))
        known = state[0].unsqueeze(1).expand(-1, eps_lam.shape[1], -1)  # (B, S, H)
        features = torch.cat([known, eps_lam], dim=-1)
        if "hidden" in self.posterior_net:
            features = torch.tanh(self.posterior_net["hidden"](features))
        mu, logvar = self.posterior_net["out"](features).chunk(2, dim=-1)
        if self.sizes.logvar_clamp:
            logvar = logvar.clamp(-self.sizes.logvar_clamp, self.sizes.logvar_clamp)
        return Normal(mu, torch.exp(0.5 * logvar))

    def log_p_x(self, ids: Tensor, z: Tensor) -> Tensor:
        """Decode one latent a sentence, (B, T) and (B, D) to (B,)."""
        words = self.word_dropout(self.embedding(ids[:, :-1]))  # (B, T-1, W)
        told = torch.cat([words, z.unsqueeze(1).expand(-1, words.shape[1], -1)], dim=-1)
        cell = self.decoder["init"](z).unsqueeze(0)  # (1, B, H)
        states, _ = self.decoder["lstm"](told, (torch.tanh(cell), cell))
        logits = self.decoder["out"](self.output_dropout(states))  # (B, T-1, V)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return -losses.view(len(ids), -1).sum(-1)

    def forward(self, ids: Tensor, eps_lam: Tensor, eps_z: Tensor, beta: float = 1.0) -> Tensor:
        """Return the loss -L_{beta,K}, the mean over the batch in nats.

        Args:
            ids: B sentences of one length with ``<s>`` and ``</s>``, (B, T).
            eps_lam: noise of J own and K auxiliary lambdas, own first, (B, J+K, E).
            eps_z: noise of the latents, (B, J, D).
            beta: weight of the KL term.
        """
        draws = eps_z.shape[1]  # J
        components = self.posterior(ids, eps_lam)
        mu, sigma = components.loc, components.scale  # (B, J+K, D)
        total = torch.zeros(len(ids))
        for draw in range(draws):
            own = Normal(mu[:, draw], sigma[:, draw])
            z = own.loc + own.scale * eps_z[:, draw]  # (B, D)
            log_own = own.log_prob(z).sum(-1)  # (B,)
            aux = Normal(mu[:, draws:], sigma[:, draws:])
            log_aux = aux.log_prob(z.unsqueeze(1)).sum(-1)  # (B, K)
            mixture = torch.cat([log_own.unsqueeze(-1), log_aux], dim=-1)  # (B, K+1)
            log_q_z = torch.logsumexp(mixture, dim=-1) - math.log(mixture.shape[-1])
            log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1)
            total = total + self.log_p_x(ids, z) - beta * (log_q_z - log_p_z)
        return -total.mean() / draws
