"""Systems whose answers can be worked out by hand, to test what is measured of any system."""

from __future__ import annotations

import math

import torch
from siserve_training.models.draws import Encoded, Latents, NoiseWidths
from torch.nn.functional import pad

WIDTH = 40


def padded(ids):
    """Ids as a vector that is as wide in every batch, (B, T) to (B, 40)."""
    return pad(ids, (0, WIDTH - ids.shape[1])).float()


class PlainSystem:
    """Finds all responses equally likely and says one word; subclasses know better."""

    widths = NoiseWidths(0, 1)
    has_densities = False
    is_deterministic = False
    device = torch.device("cpu")
    marks: tuple[int, ...] = (0, 1, 2, 3, 4)

    def encode(self, batch):
        last = batch.context[torch.arange(len(batch)), batch.context_lengths - 1]
        return Encoded(padded(batch.utterances[last]), self.responses(batch))

    def responses(self, batch):
        return padded(batch.utterances[batch.response])

    def draw_prior(self, c, eps):
        return eps[..., :1]

    def log_p_x(self, batch, c, z):
        c = c if c.dim() == 3 else c.unsqueeze(1).expand(-1, z.shape[1], -1)
        return self.score(self.responses(batch).unsqueeze(1), c, z.squeeze(2))

    def draw_posterior(self, encoded, noise):
        none = torch.full_like(noise.eps_z[..., 0], torch.nan)  # no densities
        return Latents(noise.eps_z, none, none, none)

    def score(self, x, c, z):
        return torch.zeros_like(z)

    def decode(self, c, z, decoding, uniform):
        return pad(torch.tensor([[5, 3]]), (0, decoding.max_tokens - 2)).repeat(len(c), 1)


class Copying(PlainSystem):
    """A response is the likelier, the more of its words stand where the last utterance has them."""

    def score(self, x, c, z):
        return -(x != c).sum(-1).float() + z  # z is the same under every context


class Deaf(PlainSystem):
    """What is likely does not depend on the context."""

    def score(self, x, c, z):
        return -x.sum(-1) + z


class OfDialogs(PlainSystem):
    """Knows a context's dialog alone, and there prefers the later contexts to the right one."""

    def encode(self, batch):
        c = torch.stack([batch.dialog.float(), batch.context_lengths.float()], dim=1)
        return Encoded(c, self.responses(batch))

    def log_p_x(self, batch, c, z):
        c = c if c.dim() == 3 else c.unsqueeze(1).expand(-1, z.shape[1], -1)
        is_own = c[..., 0] == batch.dialog.unsqueeze(1)
        return torch.where(is_own, 100 + c[..., 1], 0.0)


class Telling(PlainSystem):
    """Answers with the right response, then a word that tells the latent."""

    def encode(self, batch):
        return Encoded(self.responses(batch), self.responses(batch))

    def decode(self, c, z, decoding, uniform):
        ids = c[:, 1:].long()  # without <s>
        words = ids.masked_fill(ids == 3, 0)  # without </s>
        lengths = (words != 0).sum(1)
        words[torch.arange(len(c)), lengths] = 5 + (1000 * z[:, 0].abs()).long() % 7
        return pad(words, (0, decoding.max_tokens - words.shape[1]))


class Conjugate(PlainSystem):
    """z ~ N(0, 1) and x ~ N(z, 1) for x a number of the response, so that all is known."""

    has_densities = True

    def responses(self, batch):
        return 3 * torch.sin(super().responses(batch).sum(1, keepdim=True))  # (B, 1)

    def score(self, x, c, z):
        return log_normal(z, x.squeeze(-1), 1.0)

    def draw_posterior(self, encoded, noise):
        mean, variance = encoded.response / 2, 0.5  # (B, 1)
        z = mean.unsqueeze(1) + math.sqrt(variance) * noise.eps_z
        log_q_z = log_normal(z.squeeze(2), mean, variance)
        return Latents(z, log_q_z, log_normal(z.squeeze(2), 0.0, 1.0), log_q_z)

    def exact(self, batch):
        """Return log p(x|c), the density of N(0, 2)."""
        return log_normal(self.responses(batch).squeeze(1), 0.0, 2.0)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))
