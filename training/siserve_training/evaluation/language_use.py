"""What people do with a sentence VAE: sample it, walk between two sentences, reconstruct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.data.sentence_batches import collate_sentences
from siserve_training.data.sentences import SentenceSet
from siserve_training.errors import ConfigError
from siserve_training.evaluation.system import Decoding, decode_rows
from siserve_training.models.draws import Noise
from siserve_training.models.language import LanguageModel
from siserve_training.tasks.prepared import RESPONSES, StepNoise

__all__ = ["SentenceModel"]

_NOISE_DRAWS = 200  # behind the mean of a semi-implicit posterior
_ROWS = 64


@dataclass(frozen=True, eq=False)
class SentenceModel:
    """A trained sentence VAE with its words.

    Attributes:
        model: in evaluation mode.
        text: its vocabulary.
        decoding: how sentences are decoded.
        seed: of all noise.
    """

    model: LanguageModel
    text: Text
    decoding: Decoding
    seed: int = 0

    def sample(self, count: int) -> list[str]:
        """Draw sentences from the prior.

        Raises:
            ConfigError: if the number cannot be meant.
        """
        if count < 1:
            raise ConfigError(f"-n must be at least 1, got {count}")
        noise = StepNoise.of(self.seed, RESPONSES, 0)
        return self.decode(noise.normal(count, self.model.config.latent))

    def interpolate(self, first: str, second: str, steps: int) -> list[str]:
        """Decode latents on the straight line between two sentences' posterior means.

        Bowman et al. 2016, section 5.2; the first and the last are reconstructions.

        Raises:
            ConfigError: if there are fewer than two steps, or a sentence has no words.
        """
        if steps < 2:
            raise ConfigError(f"--steps must be at least 2, the two ends, got {steps}")
        start, end = self.means([first, second])
        share = torch.linspace(0, 1, steps, device=start.device).unsqueeze(1)
        return self.decode(start + share * (end - start))

    def reconstruct(self, sentences: Sequence[str]) -> list[str]:
        """Decode each sentence's posterior mean."""
        return self.decode(self.means(sentences))

    @torch.no_grad()
    def means(self, sentences: Sequence[str]) -> Tensor:
        """Return posterior means, over noise that is the same for all, (N, D).

        Raises:
            ConfigError: if a sentence has no words.
        """
        for place, sentence in enumerate(sentences, start=1):
            if not sentence.strip():
                raise ConfigError(f"sentence {place} has no words; expected some, blanks between")
        ids = tuple(self.text.encode_utterances(list(sentences)))
        data = SentenceSet(ids, np.array([len(row) for row in ids]), 0)
        model = self.model
        draws = _NOISE_DRAWS if model.config.noise else 1
        draw = StepNoise.of(self.seed, RESPONSES, 1).normal
        shared = draw(1, draws, model.config.widths.lam).to(model.device)
        found = torch.empty(len(ids), model.config.latent, device=model.device)
        for row in range(len(ids)):  # rows of one length would save little here
            batch = collate_sentences(data, np.array([row])).to(model.device)
            noise = Noise(shared, shared[:, :, :0], shared[:, :, :0])
            mixture = model.posterior_mixture(model.encode(batch), noise)
            shares = mixture.log_weights.exp().unsqueeze(-1)
            found[row] = (shares * mixture.components.mu).sum(1)[0]
        return found

    @torch.no_grad()
    def decode(self, z: Tensor) -> list[str]:
        """Decode a sentence from each latent, (N, D)."""
        rng = StepNoise.of(self.seed, RESPONSES, 2).rng
        uniform = torch.from_numpy(
            rng.random((self.decoding.max_tokens, len(z)), dtype=np.float32)
        ).to(self.model.device)
        said: list[str] = []
        for start in range(0, len(z), _ROWS):
            rows = slice(start, start + _ROWS)
            part = z[rows].to(self.model.device)
            ids = decode_rows(
                self.model,
                self.text.tokens,
                self.model.no_condition(len(part)),
                part,
                self.decoding,
                uniform[:, rows],
            )
            said += [self.text.decode(row) for row in ids.tolist()]
        return said
