"""The conditional VAE of Zhao et al. 2017 with Gaussian, mixture and semi-implicit densities.

One network serves `cvae`, `cvae-bow`, `gmm-cvae` and `si-cvae`; they differ in the recognition
network. With noise in its input q(z|x,c) is semi-implicit, the paper's SI-CVAE; with several
components it is the explicit mixture of paper eq. 6; with neither it is Zhao et al.'s Gaussian.
The prior may be semi-implicit too. Noise is an argument; generation uses the prior alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from siserve_training.data.batches import DialogBatch
from siserve_training.distributions import Density, DiagonalNormal, Mixture
from siserve_training.models.dialog_model import DialogModel, DialogModelConfig
from siserve_training.models.draws import Draws, Encoded, Latents, Noise, NoiseWidths
from siserve_training.models.posterior import as_mixture, draw_each, draw_latents, make_head
from siserve_training.nets.heads import BagOfWords, GaussianHead
from siserve_training.nets.output import WordSample, bag_log_probs
from siserve_training.nets.recurrent import ResponseDecoder

__all__ = ["CVAE", "CVAEConfig"]


class CVAEConfig(DialogModelConfig):
    """Sizes of a conditional VAE; the defaults are those of the paper's SI-CVAE.

    Attributes:
        noise: size of eps_lam, 0 for a posterior that is no semi-implicit one.
        components: Gaussians of an explicit mixture posterior, 1 for none.
        prior_noise: noise in the prior's input, 0 for a Gaussian prior.
        post_hidden: tanh layer of the posterior, 0 for the literal single linear layer, under
            which mu and logvar are affine in the noise.
        prior_hidden: tanh layer of the prior.
        decoder_hidden: hidden units of the decoder.
        bow_hidden: tanh layer of the bag-of-words head, 0 to leave the head out.
        logvar_clamp: bound on the absolute log-variances, 0 for none.
        noise_entry: "added" to what the posterior makes of the features, or "multiplied" with it.
        noise_gain: factor on the noise's weights at the start of training.
        start_logvar: log-variance of the conditional q(z|lambda) at the start of training.
    """

    model_type = "cvae"

    def __init__(
        self,
        noise: int = 100,
        components: int = 1,
        prior_noise: int = 0,
        post_hidden: int = 400,
        prior_hidden: int = 400,
        decoder_hidden: int = 400,
        bow_hidden: int = 0,
        logvar_clamp: float = 0.0,
        noise_entry: str = "added",
        noise_gain: float = 1.0,
        start_logvar: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.noise = noise
        self.components = components
        self.prior_noise = prior_noise
        self.post_hidden = post_hidden
        self.prior_hidden = prior_hidden
        self.decoder_hidden = decoder_hidden
        self.bow_hidden = bow_hidden
        self.logvar_clamp = logvar_clamp
        self.noise_entry = noise_entry
        self.noise_gain = noise_gain
        self.start_logvar = start_logvar
        super().__init__(**kwargs)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes."""
        own = self.noise if self.components == 1 else 1
        return NoiseWidths(own, self.latent, self.prior_noise)


class CVAE(DialogModel):
    """Prior p(z|c), posterior q(z|x,c) and decoder p(x|z,c).

    Args:
        config: the sizes.
    """

    config_class = CVAEConfig

    def __init__(self, config: CVAEConfig) -> None:
        super().__init__(config)
        self.prior_net = GaussianHead(
            config.condition,
            config.prior_noise,
            config.prior_hidden,
            config.latent,
            config.logvar_clamp,
        )
        self.posterior_net = make_head(
            config.condition + config.response,
            config.post_hidden,
            config.latent,
            config.logvar_clamp,
            config.noise,
            config.components,
            multiplies=config.noise_entry == "multiplied",
        )
        condition = config.condition + config.latent
        self.decoder = ResponseDecoder(
            condition, config.word_embedding, config.decoder_hidden, config.vocabulary
        )
        if config.bow_hidden:
            self.bow_head = BagOfWords(condition, config.bow_hidden, config.vocabulary)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GaussianHead) and module is self.posterior_net:
            module.start_noise(self.config.noise_gain, self.config.start_logvar)

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of q(z|x,c) alone, which Algorithm 1's inner steps train."""
        return list(self.posterior_net.parameters())

    def prior(self, c: Tensor, eps_prior: Tensor) -> DiagonalNormal:
        """Return p(z|c), or p(z|lambda) for draws of a semi-implicit prior's noise.

        Args:
            c: (B, C).
            eps_prior: (B, S, P - D); without noise the S draws are alike.

        Returns:
            Batch shape (B, S, D).
        """
        mu, logvar = self.prior_net(c, eps_prior)
        return DiagonalNormal(mu.float(), logvar.float())

    def prior_density(self, c: Tensor, eps_prior: Tensor) -> Density:
        """Return p(z|c): exact where it is Gaussian, else estimated with fresh lambda."""
        if not self.config.prior_noise:
            return self.prior(c, eps_prior[:, :1])
        return Mixture.uniform(self.prior(c, eps_prior))

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c); the first D columns of eps make z, (B, S, P) to (B, S, D)."""
        eps_z, eps_prior = eps.split([self.config.latent, self.config.prior_noise], dim=-1)
        return self.prior(c, eps_prior).rsample(eps_z)

    def conditional(self, encoded: Encoded, eps_lam: Tensor) -> DiagonalNormal:
        """Return q(z|lambda) for each draw of the noise, (B, S, E) to batch shape (B, S, D)."""
        features = torch.cat([encoded.c, encoded.response], dim=-1)
        mu, logvar = self.posterior_net(features, eps_lam)
        return DiagonalNormal(mu.float(), logvar.float())

    @property
    def is_explicit(self) -> bool:
        """Whether the posterior is an explicit mixture."""
        return bool(self.config.components > 1)

    def mixture(self, encoded: Encoded, eps_lam: Tensor) -> Mixture:
        """Return q(z|x,c) as a mixture: the explicit one, or that of the drawn lambda."""
        features = torch.cat([encoded.c, encoded.response], dim=-1)
        return as_mixture(self.posterior_net, features, eps_lam)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents from q(z|x,c); K = S - J of the S draws of eps_lam are auxiliaries."""
        drawn = draw_latents(self.mixture(encoded, noise.eps_lam), self.is_explicit, noise)
        log_p_z = self.prior_density(encoded.c, noise.eps_prior).log_prob(drawn.z)
        log_q_z, log_own_z = drawn.density.log_prob(drawn.z), drawn.own.log_prob(drawn.z)
        return Latents(drawn.z, log_q_z, log_p_z, log_own_z)

    def log_p_bow(
        self, batch: DialogBatch, c: Tensor, z: Tensor, sample: WordSample | None = None
    ) -> Tensor:
        """Return the bag-of-words log-likelihood of the response, (B, J)."""
        draws = z.shape[1]
        condition = torch.cat([c.unsqueeze(1).expand(-1, draws, -1), z.to(c.dtype)], dim=-1)
        features = self.bow_head(condition)  # (B, J, H)
        words = batch.utterances[batch.response][:, 1:]  # (B, T-1)
        log_p = bag_log_probs(features, self.bow_head.out, words, sample)  # (B, J, T-1)
        return torch.where((words != 0).unsqueeze(1), log_p, 0.0).sum(-1)

    def forward(
        self,
        batch: DialogBatch,
        noise: Noise,
        bow: bool = False,
        sample: WordSample | None = None,
    ) -> Draws:
        """Draw latents from the posterior and decode the response from each.

        An explicit mixture gives one latent of every component, to be weighted by the component's
        share, so that the shares get gradients too.

        Args:
            batch: B pairs.
            noise: of the batch.
            bow: whether to score the bag of words too.
            sample: words over which the softmax is estimated; None for all.
        """
        encoded = self.encode(batch)
        drawn = draw_each(self.mixture(encoded, noise.eps_lam), self.is_explicit, noise.eps_z)
        return Draws(
            z=drawn.z,
            prior=self.prior_density(encoded.c, noise.eps_prior),
            own=drawn.own,
            posterior=drawn.density,
            log_p_x=self.log_p_x(batch, encoded.c, drawn.z, sample),
            log_p_bow=self.log_p_bow(batch, encoded.c, drawn.z, sample) if bow else None,
            tokens=batch.response_lengths,
            log_weights=drawn.log_weights,
        )
