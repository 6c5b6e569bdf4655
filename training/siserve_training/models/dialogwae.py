"""DialogWAE of Gu et al. 2019: prior and posterior are generated, and matched by a critic.

A network turns c (the prior's), or [x, c] (the posterior's), into a Gaussian over a noise e, and a
generator turns e into z. Neither has a density. With several components the prior's noise is a
mixture (DialogWAE-GMP). The decoder starts from [z, c] itself. Noise is an argument.

Where the authors' code draws masks of dropout for each context apart, contexts of a batch that
share an utterance share its masks of words, because it is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from siserve_training.data.batches import DialogBatch
from siserve_training.distributions import DiagonalNormal
from siserve_training.models.dialog_model import DialogModel, DialogModelConfig
from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths, as_uniform
from siserve_training.nets.adversary import (
    Critic,
    LatentGenerator,
    NoiseNet,
    straight_through_choice,
)
from siserve_training.nets.dropout import Dropout
from siserve_training.nets.initial import initialise_as_gu
from siserve_training.nets.output import WordSample
from siserve_training.nets.recurrent import ResponseDecoder

__all__ = ["CriticScores", "DialogWAE", "DialogWAEConfig"]


@dataclass(frozen=True)
class CriticScores:
    """What the critic makes of J latents a pair.

    Attributes:
        of_prior: scores of latents of the prior, (B, J).
        of_posterior: scores of latents of the posterior, (B, J).
        gradient: of the sum of scores, at points between the two, (B, J, D); None unless asked.
    """

    of_prior: Tensor
    of_posterior: Tensor
    gradient: Tensor | None = None


class DialogWAEConfig(DialogModelConfig):
    """Sizes of a DialogWAE.

    Attributes:
        components: Gaussians of the prior's noise.
        gumbel_temperature: of the choice among them, in gradients.
        critic_hidden: layers of the critic.
        encoder_dropout: share of the units of words that is dropped before the encoder.
        utterance_dropout: share of the units of [utterance, floor] that is dropped.
        decoder_dropout: share of the units of words that is dropped before the decoder.
        keep_start_mark: whether ``<s>`` is encoded with an utterance.
        logvar_clamp: bound on the absolute log-variances, 0 for none.
    """

    model_type = "dialogwae"

    def __init__(
        self,
        components: int = 1,
        gumbel_temperature: float = 0.1,
        critic_hidden: int = 600,
        encoder_dropout: float = 0.5,
        utterance_dropout: float = 0.25,
        decoder_dropout: float = 0.5,
        keep_start_mark: bool = False,
        logvar_clamp: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.components = components
        self.gumbel_temperature = gumbel_temperature
        self.critic_hidden = critic_hidden
        self.encoder_dropout = encoder_dropout
        self.utterance_dropout = utterance_dropout
        self.decoder_dropout = decoder_dropout
        self.keep_start_mark = keep_start_mark
        self.logvar_clamp = logvar_clamp
        super().__init__(**kwargs)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes.

        In training eps_lam is the prior's noise, P numbers, and one more, which places the point
        between prior and posterior where the critic's gradient is looked at.
        """
        of_choice = self.components if self.components > 1 else 0
        return NoiseWidths(self.latent + of_choice + 1, self.latent, of_choice)


class DialogWAE(DialogModel):
    """Generated prior and posterior, their critic, and the decoder p(x|z,c).

    Args:
        config: the sizes.
    """

    config_class = DialogWAEConfig
    has_densities = False

    def __init__(self, config: DialogWAEConfig) -> None:
        super().__init__(config)
        condition, latent = config.condition, config.latent
        clamp = config.logvar_clamp
        self.prior_net = NoiseNet(condition, latent, config.components, clamp)
        self.prior_generator = LatentGenerator(latent)
        self.posterior_net = NoiseNet(config.response + condition, latent, 1, clamp)
        self.posterior_generator = LatentGenerator(latent)
        self.critic = Critic(latent + condition, config.critic_hidden)
        self.decoder = ResponseDecoder(
            0, config.word_embedding, latent + condition, config.vocabulary
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        initialise_as_gu(module)

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return [z, c], the decoder's state before ``<s>``."""
        return torch.cat([z.to(c.dtype), c], dim=-1)

    def encode_utterances(
        self, utterances: Tensor, lengths: Tensor, dropout: Dropout | None = None
    ) -> Tensor:
        """Encode utterances without their ``<s>``, unless it is to be kept, (Q, T) to (Q, F)."""
        if not self.config.keep_start_mark:
            utterances, lengths = utterances[:, 1:], lengths - 1
        return super().encode_utterances(utterances, lengths, dropout)

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c), (B, C) and noise (B, S, P) to (B, S, D).

        The first D columns of eps make the noise e, the others choose its component.
        """
        return cast(Tensor, self.prior_generator(self._draw_noise(self.prior_net, c, eps)))

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents a pair from q(z|x,c)."""
        z = self._posterior(encoded, noise)
        none = torch.full_like(z[..., 0], torch.nan)  # (B, J)
        return Latents(z, none, none, none)

    def _posterior(self, encoded: Encoded, noise: Noise) -> Tensor:
        features = torch.cat([encoded.response, encoded.c], dim=-1)
        e = self._draw_noise(self.posterior_net, features, noise.eps_z)
        return cast(Tensor, self.posterior_generator(e))

    def _draw_noise(self, net: NoiseNet, features: Tensor, eps: Tensor) -> Tensor:
        """Draw e from a Gaussian or a mixture, (B, F) and (B, S, P) to (B, S, D)."""
        mu, logvar, logits = net(features)
        gaussians = DiagonalNormal(mu.float(), logvar.float())  # (B, K, D)
        eps_z, of_choice = eps[..., : self.config.latent], eps[..., self.config.latent :]
        if logits is None:
            return gaussians.rsample(eps_z)
        share = straight_through_choice(
            logits.float(), as_uniform(of_choice), self.config.gumbel_temperature
        )  # (B, S, K)
        sigma = torch.exp(0.5 * gaussians.logvar)
        return share @ gaussians.mu + (share @ sigma) * eps_z

    def forward(
        self,
        batch: DialogBatch,
        noise: Noise,
        part: str,
        seed: int = 0,
        sample: WordSample | None = None,
    ) -> Tensor | CriticScores:
        """Compute what one part of the training step needs.

        Args:
            batch: B pairs.
            noise: of the batch.
            part: "autoencoder", or "generators" or "critic", for which the encoders stand still
                and drop nothing.
            seed: of the masks of dropout.
            sample: words over which the softmax is estimated; None for all.

        Returns:
            log p(x|z,c) of J latents of the posterior, (B, J); for the others, the critic's scores.
        """
        if part == "autoencoder":
            return self._reconstruct(batch, noise, seed, sample)
        with torch.no_grad():
            encoded = self.encode(batch)
        draws = noise.eps_z.shape[1]
        prior_width = self.config.prior_width
        own = noise.eps_lam[:, :draws]  # (B, J, P + 1)
        eps_prior, uniform = own[..., :prior_width], as_uniform(own[..., prior_width:])
        with torch.set_grad_enabled(part == "generators" and torch.is_grad_enabled()):
            z = self._posterior(encoded, noise)
            z_prior = self.draw_prior(encoded.c, eps_prior)
        gradient = None
        if part == "critic":
            gradient = self.critic.gradient(uniform * z_prior + (1 - uniform) * z, encoded.c)
        of_prior, of_posterior = (self.critic(latents, encoded.c) for latents in (z_prior, z))
        return CriticScores(of_prior, of_posterior, gradient)

    def _reconstruct(
        self, batch: DialogBatch, noise: Noise, seed: int, sample: WordSample | None
    ) -> Tensor:
        if not self.training:
            encoded = self.encode(batch)
            z = self._posterior(encoded, noise)
            return self.log_p_x(batch, encoded.c, z, sample)
        generator = torch.Generator(noise.eps_z.device).manual_seed(seed)
        rates = self.config
        encoded = self.encode(
            batch,
            of_words=Dropout(rates.encoder_dropout, generator),
            of_utterances=Dropout(rates.utterance_dropout, generator),
        )
        z = self._posterior(encoded, noise)
        of_given = Dropout(rates.decoder_dropout, generator)
        return self.log_p_x(batch, encoded.c, z, sample, of_given)
