"""What every model of text is to the rest of the package: latents, and a decoder to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths

__all__ = ["TextModel", "TextModelConfig"]


class TextModelConfig(PreTrainedConfig):
    """Sizes that every model has.

    Attributes:
        vocabulary: number of word ids.
        word_embedding: size of a word vector.
        latent: D.
    """

    def __init__(
        self,
        vocabulary: int = 10_002,
        word_embedding: int = 200,
        latent: int = 200,
        **kwargs: Any,
    ) -> None:
        self.vocabulary = vocabulary
        self.word_embedding = word_embedding
        self.latent = latent
        super().__init__(**kwargs)

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes."""
        return NoiseWidths(0, self.latent)

    @property
    def prior_width(self) -> int:
        """P, the numbers that a latent of the prior is drawn from."""
        return self.widths.z + self.widths.prior


class TextModel(PreTrainedModel, ABC):
    """A prior, a posterior and a decoder; each task has its own way to encode and to score.

    Args:
        config: the sizes.
    """

    config_class: type[TextModelConfig] = TextModelConfig
    base_model_prefix = ""
    #: Whether prior and posterior have densities; without them there is no ELBO.
    has_densities = True
    #: Whether the text follows from the context alone, without a latent.
    is_deterministic = False
    embedding: nn.Embedding

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every module, the parts of a module before itself.

        transformers' own walk passes over modules that hold their parameters in parts alone.
        """
        for module in reversed(list(self.modules())):
            self._init_weights(module)

    @abstractmethod
    def _init_weights(self, module: nn.Module) -> None: ...

    @abstractmethod
    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c), (B, C) and noise (B, S, P) to (B, S, D)."""

    @abstractmethod
    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents a pair from q(z|x,c)."""

    @abstractmethod
    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return the decoder's state before ``<s>``; leading axes of c and z agree, (..., H)."""

    @abstractmethod
    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of q(z|x,c) alone, which Algorithm 1's inner steps train."""
        return []

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of a pretrained part that is tuned, which learn more slowly."""
        return []
