"""What measuring asks of a sentence VAE: of the torch model or of a bundle's graphs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.evaluation.system import Scorer
from siserve_training.models.draws import Encoded, Noise

__all__ = ["SentenceSystem"]


class SentenceSystem(Scorer[SentenceBatch], Protocol):
    """A sentence VAE; tensors are on its device."""

    training: bool

    @property
    def config(self) -> Any:
        """Sizes, as `LanguageModelConfig` names them."""

    @property
    def device(self) -> torch.device:
        """Where it takes its tensors."""

    @property
    def is_explicit(self) -> bool:
        """Whether the posterior is an explicit mixture."""

    def train(self, mode: bool = True) -> Any:
        """Choose between training and evaluation."""

    def prior(self, c: Tensor) -> DiagonalNormal:
        """Return p(z), batch shape (B, 1, D)."""

    def posterior_mixture(self, encoded: Encoded, noise: Noise) -> Mixture:
        """Return q(z|x) as a mixture: the explicit one, or that of drawn lambda."""
