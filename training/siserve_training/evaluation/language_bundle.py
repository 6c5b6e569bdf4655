"""A bundle of task lm as evaluation sees it: the ONNX graphs alone, no torch model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from siserve.bundle.tensors import POSTERIOR, TOKENIZER_FILE
from siserve.bundle.text import Text
from siserve.bundle.verify import Bundle, open_bundle
from torch import Tensor

from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.data.sentences import SentenceCorpus, SentenceSet
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.errors import ConfigError
from siserve_training.evaluation.bundle_system import BundleSystem, config_of_bundle
from siserve_training.evaluation.language import LanguageSubject, open_language_run
from siserve_training.models.draws import Encoded, Latents, Noise
from siserve_training.models.language import LanguageModelConfig

__all__ = ["BUNDLE_NOISE_DRAWS", "BundledSentences", "open_language", "open_language_bundle"]

#: M of a bundle's active units: its sampler reads the sentence anew for every draw.
BUNDLE_NOISE_DRAWS = 100


@dataclass(frozen=True)
class _Texts:
    """Sentences as `BundleSystem.log_p_x` looks at them: each is a response of its own."""

    utterances: Tensor
    response: Tensor
    response_lengths: Tensor


class BundledSentences:
    """The graphs of a sentence VAE with one lambda for each draw of the noise.

    The sampler gives z = mu + sigma eps for a given eps, so two runs tell mu and sigma; an explicit
    mixture has a graph that tells it. A refined posterior is the encoder's here, as in the bundle.

    Args:
        bundle: one that has been checked.
    """

    has_densities = True
    training = False

    def __init__(self, bundle: Bundle) -> None:
        self.graphs = BundleSystem(bundle)
        self.is_explicit = self.graphs.is_explicit
        self.config = LanguageModelConfig(
            noise=0 if self.is_explicit else self.graphs.widths.lam,
            components=self.graphs.components,
            latent=bundle.manifest.sizes.latent,
        )
        self.device = self.graphs.device

    def train(self, mode: bool = True) -> BundledSentences:
        """Stay as it is: graphs are always in evaluation mode."""
        return self

    def encode(self, batch: SentenceBatch) -> Encoded:
        """Keep the ids, which are what the sampler takes, (B, T)."""
        return Encoded(torch.zeros(len(batch), 1), batch.ids, batch)

    def prior(self, c: Tensor) -> DiagonalNormal:
        """Return N(0, I), batch shape (B, 1, D)."""
        zeros = torch.zeros(len(c), 1, self.config.latent)
        return DiagonalNormal(zeros, zeros)

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Return the noise itself, (B, S, D)."""
        return self.graphs.draw_prior(c, eps)

    def posterior_mixture(self, encoded: Encoded, noise: Noise) -> Mixture:
        """Return q(z|x) as a mixture, the explicit one or that over drawn lambda, (B, S, E)."""
        if self.is_explicit:
            return self.graphs.mixture(encoded, noise.eps_lam)
        rows, draws, _ = noise.eps_lam.shape
        copies = encoded.response.repeat_interleave(draws, dim=0)  # (B S, T)
        each = Encoded(torch.zeros(len(copies), 1), copies)
        eps_lam = noise.eps_lam.flatten(0, 1).unsqueeze(1)  # (B S, 1, E)
        ends = []
        for value in (0.0, 1.0):
            eps_z = torch.full((len(copies), 1, self.config.latent), value)
            drawn = self.graphs.draw_posterior(each, Noise(eps_lam, eps_z, eps_z[:, :, :0]))
            ends.append(drawn.z.view(rows, draws, -1))
        mu, sigma = ends[0], ends[1] - ends[0]
        return Mixture.uniform(DiagonalNormal(mu, 2 * sigma.log()))

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents; K = S - J of the S draws of eps_lam are auxiliaries."""
        auxiliaries = noise.eps_lam.shape[1] - noise.eps_z.shape[1]
        eps_prior = noise.eps_lam[:, : auxiliaries + 1, :0]  # the prior wants none
        return self.graphs.draw_posterior(encoded, Noise(noise.eps_lam, noise.eps_z, eps_prior))

    def log_p_x(self, batch: SentenceBatch, c: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) by decoding with every token forced, (B, J)."""
        texts: Any = _Texts(batch.ids, torch.arange(len(batch)), batch.response_lengths)
        return self.graphs.log_p_x(texts, c, z)


def open_language(
    folder: Path, data: Path, split: str, checkpoint: str = "best", skip_bad_lines: bool = False
) -> LanguageSubject:
    """Open a run or a bundle of task lm, whichever the folder holds.

    Raises:
        ConfigError, RunError, CorpusError, BundleError: as those that open one of them.
    """
    if (folder / "config.json").is_file():
        return open_language_run(folder, data, split, checkpoint, skip_bad_lines)
    if checkpoint != "best":
        raise ConfigError("--checkpoint chooses a state of a run; a bundle has one, leave it out")
    return open_language_bundle(folder, data, split, skip_bad_lines)


def open_language_bundle(
    folder: Path, data: Path, split: str, skip_bad_lines: bool = False
) -> LanguageSubject:
    """Check a bundle of task lm, open its graphs and read a split with its vocabulary.

    Raises:
        BundleError, CorpusError: if the bundle or the corpus cannot be read.
        ConfigError: if the split cannot be meant, or the graphs do not tell the posterior.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if manifest.method == "gmm-vae" and not bundle.has(POSTERIOR.file):
        raise ConfigError(
            f"{folder}: this bundle of gmm-vae has no {POSTERIOR.file}, so it does not tell the "
            "weights of its mixture; export it again, `siserve export BUNDLE --out DIR`"
        )
    text = Text.from_file(bundle.file(TOKENIZER_FILE), manifest.limits.utterance_tokens)
    sentences = SentenceSet.of(SentenceCorpus(data, skip_bad_lines).read(split)[0], text)
    state, model = f"version {manifest.version}", BundledSentences(bundle)
    config = config_of_bundle(manifest, model.graphs.components)
    return LanguageSubject(manifest.name, state, config, model, text, sentences)
