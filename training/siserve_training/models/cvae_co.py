"""CVAE-CO: a CVAE that learns with an autoencoder beside it (Shen et al. 2018).

The decoder is told a vector v at every step. The autoencoder's v is the response's own vector r;
the CVAE's is G(z), a tanh layer that learns to rebuild r from the latent. Scheduled sampling moves
the decoder from r to G(z), which alone is left at evaluation. Noise is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from siserve_training.data.batches import DialogBatch
from siserve_training.distributions import DiagonalNormal
from siserve_training.models.dialog_model import DialogModel, DialogModelConfig
from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths, as_uniform
from siserve_training.nets.collaborative import ConditionedDecoder, SoftplusHead
from siserve_training.nets.output import WordSample

__all__ = ["CVAECO", "CVAECOConfig", "LatentFit", "Likelihood"]

_BOUND = 0.08


@dataclass(frozen=True)
class Likelihood:
    """What the loss of encoders, decoder and prior is made of, in nats.

    Attributes:
        log_p_x: log p(x|v,c) under the scheduled mixture of r and G(z), (B, J).
        kl: KL of the posterior to the prior, in closed form, (B,).
    """

    log_p_x: Tensor
    kl: Tensor


@dataclass(frozen=True)
class LatentFit:
    """What the loss of prior, posterior and G is made of.

    Attributes:
        kl: KL of the posterior to the prior, nats, in closed form, (B,).
        distance: squared distance of r and G(z), (B, J).
    """

    kl: Tensor
    distance: Tensor


class CVAECOConfig(DialogModelConfig):
    """Sizes of a CVAE-CO.

    Attributes:
        post_hidden: tanh layers of the posterior.
        prior_hidden: tanh layers of the prior.
        decoder_hidden: hidden units of the decoder.
        logvar_clamp: bound on the absolute log-variances, 0 for none.
        response_tokens: tokens of the longest response, ``<s>`` and ``</s>`` counted.
    """

    model_type = "cvae-co"

    def __init__(
        self,
        post_hidden: int = 400,
        prior_hidden: int = 400,
        decoder_hidden: int = 400,
        logvar_clamp: float = 0.0,
        response_tokens: int = 40,
        **kwargs: Any,
    ) -> None:
        self.post_hidden = post_hidden
        self.prior_hidden = prior_hidden
        self.decoder_hidden = decoder_hidden
        self.logvar_clamp = logvar_clamp
        self.response_tokens = response_tokens
        super().__init__(**kwargs)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes; eps_lam chooses v, for the first state and for each token."""
        return NoiseWidths(self.response_tokens, self.latent)


class CVAECO(DialogModel):
    """Gaussian prior p(z|c) and posterior q(z|x,c), G, and the decoder p(x|G(z),c).

    Args:
        config: the sizes.
    """

    config_class = CVAECOConfig
    decoder: ConditionedDecoder

    def __init__(self, config: CVAECOConfig) -> None:
        super().__init__(config)
        self.prior_net = SoftplusHead(
            config.condition, config.prior_hidden, config.latent, config.logvar_clamp
        )
        self.posterior_net = SoftplusHead(
            config.response + config.condition,
            config.post_hidden,
            config.latent,
            config.logvar_clamp,
        )
        self.rebuild_net = nn.Linear(config.latent, config.response)
        self.decoder = ConditionedDecoder(
            config.response + config.condition,
            config.word_embedding,
            config.decoder_hidden,
            config.vocabulary,
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionedDecoder):
            nn.init.uniform_(module.out.weight, -_BOUND, _BOUND)

    def latent_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of posterior and G, which the likelihood does not train."""
        return [*self.posterior_net.parameters(), *self.rebuild_net.parameters()]

    def prior(self, c: Tensor) -> DiagonalNormal:
        """Return p(z|c), (B, C) to batch shape (B, D)."""
        return DiagonalNormal(*self.prior_net(c))

    def posterior(self, encoded: Encoded) -> DiagonalNormal:
        """Return q(z|x,c), batch shape (B, D)."""
        return DiagonalNormal(*self.posterior_net(_features(encoded)))

    def rebuild(self, z: Tensor) -> Tensor:
        """Return G(z), (..., D) to (..., F)."""
        return torch.tanh(self.rebuild_net(z))

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c), (B, C) and (B, S, D) to (B, S, D)."""
        return self.prior(c).expand_draws().rsample(eps)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents a pair from q(z|x,c)."""
        q = self.posterior(encoded).expand_draws()
        z = q.rsample(noise.eps_z)  # (B, J, D)
        log_q_z = q.log_prob(z)
        return Latents(z, log_q_z, self.prior(encoded.c).expand_draws().log_prob(z), log_q_z)

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return the decoder's state before ``<s>``, with v = G(z) and c beside it."""
        return self.decoder.first_state(c, self.rebuild(z).to(c.dtype))

    def forward(
        self,
        batch: DialogBatch,
        noise: Noise,
        rate: float,
        parts: tuple[str, ...],
        sample: WordSample | None = None,
    ) -> tuple[Likelihood | None, LatentFit | None]:
        """Compute what the asked losses need; each trains its own group of parameters only.

        Args:
            batch: B pairs.
            noise: of the batch.
            rate: probability that the decoder is told G(z), not r.
            parts: "likelihood", "latent" or both.
            sample: words over which the softmax is estimated; None for all.
        """
        if parts == ("latent",):
            with torch.no_grad():
                encoded = self.encode(batch)
        else:
            encoded = self.encode(batch)
        return (
            self._likelihood(batch, encoded, noise, rate, sample)
            if "likelihood" in parts
            else None,
            self._latent_fit(encoded, noise) if "latent" in parts else None,
        )

    def _likelihood(
        self,
        batch: DialogBatch,
        encoded: Encoded,
        noise: Noise,
        rate: float,
        sample: WordSample | None,
    ) -> Likelihood:
        """Gradients pass through posterior and G to the encoders, not into their weights."""
        q = DiagonalNormal(*_frozen(self.posterior_net, _features(encoded)))
        z = q.expand_draws().rsample(noise.eps_z)  # (B, J, D)
        rebuilt = torch.tanh(_frozen(self.rebuild_net, z))  # (B, J, F)
        draws = z.shape[1]
        is_rebuilt = as_uniform(noise.eps_lam[:, :draws]) < rate  # (B, J, T)
        log_p_x = self._mixed_log_p_x(batch, encoded, rebuilt, is_rebuilt, sample)
        return Likelihood(log_p_x, q.kl(self.prior(encoded.c)))

    def _mixed_log_p_x(
        self,
        batch: DialogBatch,
        encoded: Encoded,
        rebuilt: Tensor,
        is_rebuilt: Tensor,
        sample: WordSample | None,
    ) -> Tensor:
        """Score responses where each step is told r, or G(z) where it says so, (B, J)."""
        pairs, draws, _ = rebuilt.shape
        c, r = (v.unsqueeze(1).expand(-1, draws, -1) for v in (encoded.c, encoded.response))
        each = [self.decoder.first_state(c, v.to(c.dtype)).flatten(0, 1) for v in (r, rebuilt)]
        chosen = is_rebuilt.flatten(0, 1).long() * (pairs * draws)  # (R, T), 0 is r
        told = self.pack_responses(batch, draws)
        layout = told.layout
        states = self.decoder.mixed(
            told.words,
            told.places,
            layout,
            torch.cat(each),  # (2R, H')
            chosen[:, 0] + torch.arange(pairs * draws, device=chosen.device),
            chosen[layout.rows, layout.steps + 1] + layout.rows,
        )
        return self.score_states(states, told, sample)

    def _latent_fit(self, encoded: Encoded, noise: Noise) -> LatentFit:
        still = Encoded(encoded.c.detach(), encoded.response.detach())
        q = self.posterior(still)
        rebuilt = self.rebuild(q.expand_draws().rsample(noise.eps_z))  # (B, J, F)
        distance = (still.response.unsqueeze(1) - rebuilt).float().square().sum(-1)
        return LatentFit(q.kl(self.prior(still.c)), distance)


def _features(encoded: Encoded) -> Tensor:
    return torch.cat([encoded.response, encoded.c], dim=-1)


def _frozen(module: nn.Module, features: Tensor) -> Any:
    """Apply a module as if its weights were constants."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, weights, (features,))
