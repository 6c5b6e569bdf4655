"""The sentence VAE: prior N(0, I), an LSTM encoder, an LSTM decoder that is told z at each step.

One network serves `vae`, `gmm-vae`, `si-vae` and `sa-vae`: components, noise or refinement steps
tell them apart. To the rest of the package a sentence is a response without a context; its
condition vector is one number that is always 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.models.draws import Draws, Encoded, Latents, Noise, NoiseWidths
from siserve_training.models.packed_texts import pack_texts
from siserve_training.models.posterior import as_mixture, draw_each, draw_latents, make_head
from siserve_training.models.refinement import Climb, Differences, Refinement, refine
from siserve_training.models.sentence_climb import SentenceClimb
from siserve_training.models.text_model import TextModel, TextModelConfig
from siserve_training.nets.dropout import Dropout
from siserve_training.nets.heads import GaussianHead
from siserve_training.nets.language import LatentDecoder, SentenceReader, initialise_uniform
from siserve_training.nets.output import WordSample, token_log_probs

__all__ = ["LanguageModel", "LanguageModelConfig"]


class LanguageModelConfig(TextModelConfig):
    """Sizes of a sentence VAE; the defaults are those of the paper's SI-VAE.

    Attributes:
        encoder_hidden: hidden units of the encoder.
        decoder_hidden: hidden units of the decoder.
        noise: size of eps_lam, 0 for a posterior that is no semi-implicit one.
        components: Gaussians of an explicit mixture posterior, 1 for none.
        post_hidden: tanh layer of the posterior, 0 for a linear one.
        logvar_clamp: bound on the absolute log-variances, 0 for none.
        noise_entry: "added" to what the posterior makes of the features, or "multiplied" with it.
        noise_gain: factor on the noise's weights at the start of training.
        start_logvar: log-variance of the conditional q(z|lambda) at the start of training.
        init_bound: weights start in U(-init_bound, init_bound).
        word_dropout: of the units of a word's vector that the decoder is told.
        output_dropout: of the units of a state before the output layer.
        refine_steps: SVI steps of a semi-amortised posterior, 0 for none.
        refine_rate: of these steps.
        refine_momentum: of these steps.
        refine_words: frequent words whose softmax guides them in training; 0 for all words.
    """

    model_type = "sentence-vae"

    def __init__(
        self,
        word_embedding: int = 512,
        latent: int = 32,
        encoder_hidden: int = 1024,
        decoder_hidden: int = 1024,
        noise: int = 100,
        components: int = 1,
        post_hidden: int = 1024,
        logvar_clamp: float = 0.0,
        noise_entry: str = "added",
        noise_gain: float = 1.0,
        start_logvar: float = 0.0,
        init_bound: float = 0.1,
        word_dropout: float = 0.5,
        output_dropout: float = 0.5,
        refine_steps: int = 0,
        refine_rate: float = 1 / 32,
        refine_momentum: float = 0.5,
        refine_words: int = 0,
        **kwargs: Any,
    ) -> None:
        self.encoder_hidden = encoder_hidden
        self.decoder_hidden = decoder_hidden
        self.noise = noise
        self.components = components
        self.post_hidden = post_hidden
        self.logvar_clamp = logvar_clamp
        self.noise_entry = noise_entry
        self.noise_gain = noise_gain
        self.start_logvar = start_logvar
        self.init_bound = init_bound
        self.word_dropout = word_dropout
        self.output_dropout = output_dropout
        self.refine_steps = refine_steps
        self.refine_rate = refine_rate
        self.refine_momentum = refine_momentum
        self.refine_words = refine_words
        super().__init__(word_embedding=word_embedding, latent=latent, **kwargs)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes; each refinement step has its own."""
        if self.refine_steps:
            return NoiseWidths(self.refine_steps * self.latent, self.latent)
        return NoiseWidths(self.noise if self.components == 1 else 1, self.latent)


@dataclass(frozen=True)
class _Dropouts:
    words: Dropout
    outputs: Dropout


class LanguageModel(TextModel):
    """Posterior q(z|x) and decoder p(x|z) of sentences.

    Args:
        config: the sizes.
    """

    config_class = LanguageModelConfig
    main_input_name = "ids"

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        self.reader = SentenceReader(
            config.vocabulary, config.word_embedding, config.encoder_hidden
        )
        self.posterior_net = make_head(
            config.encoder_hidden,
            config.post_hidden,
            config.latent,
            config.logvar_clamp,
            config.noise,
            config.components,
            multiplies=config.noise_entry == "multiplied",
        )
        self.embedding = nn.Embedding(config.vocabulary, config.word_embedding, padding_idx=0)
        self.decoder = LatentDecoder(
            config.latent, config.word_embedding, config.decoder_hidden, config.vocabulary
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        initialise_uniform(module, self.config.init_bound)
        if isinstance(module, GaussianHead):
            module.start_noise(self.config.noise_gain, self.config.start_logvar)

    @property
    def is_explicit(self) -> bool:
        """Whether the posterior is an explicit mixture."""
        return bool(self.config.components > 1)

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of q(z|x), which Algorithm 1's inner steps train."""
        return [*self.reader.parameters(), *self.posterior_net.parameters()]

    def no_condition(self, rows: int) -> Tensor:
        """Return the condition vector of a sentence, (rows, 1)."""
        return self.embedding.weight.new_zeros(rows, 1)

    def encode(self, batch: SentenceBatch) -> Encoded:
        """Encode sentences, longest first."""
        features = self.encode_utterances(batch.ids, batch.lengths)
        return Encoded(self.no_condition(len(batch)), features, batch)

    def encode_utterances(self, utterances: Tensor, lengths: Tensor) -> Tensor:
        """Encode sentences, longest first, (B, T) and (B,) to (B, H)."""
        features: Tensor = self.reader(utterances, lengths)
        return features

    def prior(self, c: Tensor) -> DiagonalNormal:
        """Return N(0, I), batch shape (B, 1, D)."""
        zeros = torch.zeros(len(c), 1, self.config.latent, device=c.device)
        return DiagonalNormal(zeros, zeros)

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Return the noise itself, (B, S, D)."""
        return eps

    def mixture(self, encoded: Encoded, eps_lam: Tensor) -> Mixture:
        """Return the encoder's q(z|x) as a mixture: the explicit one, or that of drawn lambda."""
        return as_mixture(self.posterior_net, encoded.response, eps_lam)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents from q(z|x); K = S - J of the S draws of eps_lam are auxiliaries."""
        mixture = self.posterior_mixture(encoded, noise)
        drawn = draw_latents(mixture, self.is_explicit, noise)
        log_q_z, log_own_z = drawn.density.log_prob(drawn.z), drawn.own.log_prob(drawn.z)
        log_p_z = self.prior(encoded.c).log_prob(drawn.z)
        return Latents(drawn.z, log_q_z, log_p_z, log_own_z)

    def posterior_mixture(
        self,
        encoded: Encoded,
        noise: Noise,
        beta: float = 1.0,
        sample: WordSample | None = None,
    ) -> Mixture:
        """Return q(z|x) as a mixture, refined on the sentences where the method refines.

        Args:
            encoded: sentences; without their text a refined posterior is the encoder's.
            noise: of the batch; a refinement's steps take the first row of eps_lam.
            beta: weight of the KL term in what refinement climbs.
            sample: words over which it estimates the softmax; None for all.
        """
        mixture = self.mixture(encoded, noise.eps_lam)
        if not self.config.refine_steps or encoded.text is None:
            return mixture
        start = mixture.components.draws(0, 1)
        eps = noise.eps_lam[:, 0].unflatten(-1, (self.config.refine_steps, -1))
        config = self.config
        lam = refine(
            self.climb(encoded.text, beta, sample),
            torch.cat([start.mu, start.logvar], dim=-1)[:, 0],
            eps,
            Refinement(config.refine_steps, config.refine_rate, config.refine_momentum),
        )
        mu, logvar = lam.unsqueeze(1).expand(-1, noise.eps_lam.shape[1], -1).chunk(2, dim=-1)
        return Mixture.uniform(DiagonalNormal(mu, logvar))

    def climb(self, batch: SentenceBatch, beta: float, sample: WordSample | None = None) -> Climb:
        """Return the bound of sentences that refinement climbs; see `posterior_mixture`."""
        c = self.no_condition(len(batch))
        prior = self.prior(c)
        if c.device.type == "cpu":
            return SentenceClimb(batch, self.embedding, self.decoder, prior, beta, sample)

        def bound(lam: Tensor, eps_z: Tensor) -> Tensor:
            q = DiagonalNormal(*lam.chunk(2, dim=-1))  # (B, S, D)
            return self.log_p_x(batch, c, q.rsample(eps_z), sample) - beta * q.kl(prior)

        return Differences(bound, [*self.embedding.parameters(), *self.decoder.parameters()])

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return what the decoder carries into its first step, (..., 2H+D)."""
        return self.decoder.first_state(z)

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and what is carried on, (R, 2H+D)."""
        return self.decoder.step(self.embedding(token), state)

    def log_p_x(
        self,
        batch: SentenceBatch,
        c: Tensor,
        z: Tensor,
        sample: WordSample | None = None,
        dropouts: _Dropouts | None = None,
    ) -> Tensor:
        """Return log p(x|z) summed over tokens after ``<s>``, (B, J).

        Args:
            batch: B sentences.
            c: not looked at.
            z: (B, J, D).
            sample: words over which the softmax is estimated; None for all.
            dropouts: of training. The J rows of a sentence are told words under the same masks.
        """
        told = pack_texts(
            batch.ids,
            batch.response_lengths,
            self.embedding,
            z.shape[1],
            dropouts.words if dropouts else None,
            share_masks=True,
        )
        carried = self.decoder.first_state(z).flatten(0, 1)  # (B J, 2H+D)
        states = self.decoder(told.words, told.places, told.layout, carried)
        if dropouts:
            states = dropouts.outputs(states)
        return told.sums(token_log_probs(states, self.decoder.out, told.targets, sample))

    def forward(
        self,
        batch: SentenceBatch,
        noise: Noise,
        seed: int = 0,
        sample: WordSample | None = None,
        beta: float = 1.0,
    ) -> Draws:
        """Draw latents from the posterior and decode the sentences from each.

        Args:
            batch: B sentences.
            noise: of the batch.
            seed: of dropout's masks and of the words that guide a refinement.
            sample: words over which the softmax is estimated; None for all.
            beta: weight of the KL term, which a refinement climbs with.
        """
        encoded = self.encode(batch)
        guide = self._guide(batch, seed) if self.config.refine_steps else None
        mixture = self.posterior_mixture(encoded, noise, beta, guide)
        drawn = draw_each(mixture, self.is_explicit, noise.eps_z)
        dropouts = self._dropouts(seed, drawn.z.device) if self.training else None
        return Draws(
            z=drawn.z,
            prior=self.prior(encoded.c),
            own=drawn.own,
            posterior=drawn.density,
            log_p_x=self.log_p_x(batch, encoded.c, drawn.z, sample, dropouts),
            log_p_bow=None,
            tokens=batch.response_lengths,
            log_weights=drawn.log_weights,
        )

    def _dropouts(self, seed: int, device: torch.device) -> _Dropouts | None:
        rates = (self.config.word_dropout, self.config.output_dropout)
        if not any(rates):
            return None
        generator = torch.Generator(device).manual_seed(seed)
        words, outputs = (Dropout(rate, generator) for rate in rates)
        return _Dropouts(words, outputs)

    def _guide(self, batch: SentenceBatch, seed: int) -> WordSample | None:
        """Draw the words that a refinement looks at; its result is scored over all words."""
        frequent = self.config.refine_words
        if not frequent or not self.training:
            return None
        words = torch.unique(batch.ids).cpu()
        rng = np.random.default_rng(seed)
        drawn = WordSample.draw(self.config.vocabulary, frequent, frequent // 2, words, rng)
        return drawn.to(batch.ids.device)
