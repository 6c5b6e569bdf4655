"""HRED: hierarchical encoder and decoder without a latent (Serban et al. 2016).

The response follows from the context alone. Encoders, condition vector and decoder are those of
the CVAE, so that the two differ by the latent only; TEXAR's implementation on the same corpus has
the same sizes, the same linear connector between context and decoder, and dropout.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from siserve_training.data.batches import DialogBatch
from siserve_training.models.dialog_model import DialogModel, DialogModelConfig
from siserve_training.models.draws import Encoded, Latents, Noise
from siserve_training.nets.dropout import Dropout
from siserve_training.nets.output import WordSample
from siserve_training.nets.recurrent import ResponseDecoder

__all__ = ["HRED", "HREDConfig"]


class HREDConfig(DialogModelConfig):
    """Sizes of an HRED.

    Attributes:
        decoder_hidden: hidden units of the decoder.
        encoder_dropout: share of the units of words that is dropped before the encoder.
        context_dropout: share of the units of c that is dropped.
        decoder_dropout: share of the units of words that is dropped before the decoder.
    """

    model_type = "hred"

    def __init__(
        self,
        decoder_hidden: int = 400,
        encoder_dropout: float = 0.0,
        context_dropout: float = 0.0,
        decoder_dropout: float = 0.0,
        latent: int = 1,
        **kwargs: Any,
    ) -> None:
        self.decoder_hidden = decoder_hidden
        self.encoder_dropout = encoder_dropout
        self.context_dropout = context_dropout
        self.decoder_dropout = decoder_dropout
        super().__init__(latent=latent, **kwargs)


class HRED(DialogModel):
    """Decoder p(x|c). What stands in for a latent is one number that is always 0.

    Its densities are said to be 1, so that the ELBO is log p(x|c) exactly.

    Args:
        config: the sizes.
    """

    config_class = HREDConfig
    is_deterministic = True
    encodes_responses = False

    def __init__(self, config: HREDConfig) -> None:
        super().__init__(config)
        self.decoder = ResponseDecoder(
            config.condition, config.word_embedding, config.decoder_hidden, config.vocabulary
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Return zeros, whatever the noise, (B, S, D)."""
        return torch.zeros_like(eps)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Return zeros with log densities of 0."""
        z = torch.zeros_like(noise.eps_z)  # (B, J, D)
        certain = z[..., 0]  # (B, J)
        return Latents(z, certain, certain, certain)

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return the decoder's state before ``<s>``, linear in c; z is not looked at, (..., H)."""
        return cast(Tensor, self.decoder.init(c))

    def forward(
        self, batch: DialogBatch, seed: int = 0, sample: WordSample | None = None
    ) -> Tensor:
        """Return log p(x|c) in nats, (B,).

        Args:
            batch: B pairs.
            seed: of the masks of dropout.
            sample: words over which the softmax is estimated; None for all.
        """
        generator = torch.Generator(batch.response.device).manual_seed(seed)
        of_encoder, of_context, of_decoder = (
            Dropout(rate, generator) if self.training and rate else None
            for rate in (
                self.config.encoder_dropout,
                self.config.context_dropout,
                self.config.decoder_dropout,
            )
        )
        c = self.encode(batch, of_encoder).c
        if of_context is not None:
            c = of_context(c)
        nothing = c.new_zeros(len(c), 1, self.config.latent)
        return self.log_p_x(batch, c, nothing, sample, of_decoder).squeeze(1)
