"""Sizes of a model as its weights tell them, by the axes of a bundle's graphs."""

from __future__ import annotations

from dataclasses import dataclass

from siserve.bundle.manifest import Sizes

from siserve_training.export.weights import Parameters

__all__ = ["AxisSizes"]


@dataclass(frozen=True)
class AxisSizes:
    """The axes that are sizes of a model.

    Attributes:
        condition: C.
        latent: D.
        noise: E of the sampler, at least 1.
        state: H, all that the decoder carries from step to step.
        prior: P.
    """

    condition: int
    latent: int
    noise: int
    state: int
    prior: int

    def by_axis(self) -> dict[str, int]:
        """Return sizes by the letters that the tensors' axes have."""
        return {
            "C": self.condition,
            "D": self.latent,
            "E": self.noise,
            "H": self.state,
            "P": self.prior,
        }

    def manifest(self, p: Parameters) -> Sizes:
        """Return what a manifest says of the sizes; only weights that a graph took are counted."""
        vocabulary, word_embedding = p.shape("embedding.weight")
        return Sizes(
            vocabulary=vocabulary,
            word_embedding=word_embedding,
            context=self.condition,
            latent=self.latent,
            noise=self.noise,
            prior_noise=self.prior,
            state=self.state,
            num_parameters=p.count_used(),
        )
