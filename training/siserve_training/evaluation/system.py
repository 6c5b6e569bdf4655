"""What evaluation asks of a trained system, be it a model of ours or an exported bundle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from siserve.bundle.text import SpecialTokens
from torch import Tensor

from siserve_training.data.batches import DialogBatch
from siserve_training.errors import ConfigError
from siserve_training.models.cvae import CVAE
from siserve_training.models.dialog_model import DialogModel
from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths
from siserve_training.models.text_model import TextModel

__all__ = ["Decoding", "ModelSystem", "Scorer", "System", "choose_words", "decode_rows"]


@dataclass(frozen=True)
class Decoding:
    """How responses are decoded.

    Attributes:
        max_tokens: width of a row, ``</s>`` counted.
        temperature: 0 = the likeliest word for each latent, as the peers decode.
        stop_at_end: whether pads follow ``</s>``; if not, rows are decoded to their full width,
            and what follows the end is junk that the peers' metrics count in part.
    """

    max_tokens: int = 40
    temperature: float = 0.0
    stop_at_end: bool = True

    def __post_init__(self) -> None:
        """Check numbers where a wrong one would decode something else than was meant."""
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")


BatchT = TypeVar("BatchT", contravariant=True)


class Scorer(Protocol[BatchT]):
    """Draws latents and scores texts; every model does, and every system."""

    has_densities: bool

    def encode(self, batch: BatchT) -> Encoded:
        """Encode contexts and responses."""

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c), (B, C) and (B, S, P) to (B, S, D)."""

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents a pair from q(z|x,c)."""

    def log_p_x(self, batch: BatchT, c: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z,c) in nats, c (B, C) or (B, J, C), z (B, J, D), to (B, J)."""


class System(Scorer[DialogBatch], Protocol):
    """A system that can be measured. Tensors are on its device; noise is N(0, 1)."""

    widths: NoiseWidths
    is_deterministic: bool
    device: torch.device
    marks: tuple[int, ...]  # ids that are no words

    def decode(self, c: Tensor, z: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
        """Decode a response from each row's latent.

        Args:
            c: (R, C).
            z: (R, D).
            decoding: how.
            uniform: in [0, 1), (max_tokens, R); not looked at where the temperature is 0.

        Returns:
            Ids without ``<s>``, (R, max_tokens).
        """


class ModelSystem:
    """A model of ours.

    Args:
        model: any dialog model; put into evaluation mode.
        tokens: ids of the marks.
    """

    def __init__(self, model: DialogModel, tokens: SpecialTokens) -> None:
        self.model: DialogModel = model
        model.train(False)
        self.widths: NoiseWidths = model.config.widths
        self.has_densities = model.has_densities
        self.is_deterministic = model.is_deterministic
        self.device = next(model.parameters()).device
        self.tokens = tokens
        self.marks: tuple[int, ...] = (
            tokens.pad,
            tokens.unk,
            tokens.start,
            tokens.end,
            tokens.dialog_start,
        )

    @property
    def mixtures(self) -> CVAE | None:
        """The model if its posterior is a mixture whose parts can be looked at."""
        return self.model if isinstance(self.model, CVAE) else None

    def encode(self, batch: DialogBatch) -> Encoded:
        """Encode contexts and responses."""
        return self.model.encode(batch)

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c)."""
        return self.model.draw_prior(c, eps)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw from q(z|x,c)."""
        return self.model.draw_posterior(encoded, noise)

    def log_p_x(self, batch: DialogBatch, c: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z,c)."""
        return self.model.log_p_x(batch, c, z)

    def decode(self, c: Tensor, z: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
        """Decode step by step; rows that have ended leave the batch."""
        return decode_rows(self.model, self.tokens, c, z, decoding, uniform)


def decode_rows(
    model: TextModel,
    tokens: SpecialTokens,
    c: Tensor,
    z: Tensor,
    decoding: Decoding,
    uniform: Tensor,
) -> Tensor:
    """Decode a text from each row's latent; rows that have ended leave the batch.

    Args:
        model: in evaluation mode.
        tokens: ids of the marks; none but ``</s>`` is generated, as in the service.
        c: (R, C).
        z: (R, D).
        decoding: how.
        uniform: in [0, 1), (max_tokens, R); not looked at where the temperature is 0.

    Returns:
        Ids without ``<s>``, (R, max_tokens).
    """
    ids = torch.zeros(len(c), decoding.max_tokens, dtype=torch.int64, device=c.device)
    state = model.first_state(c, z)  # (R, H)
    token = torch.full((len(c),), tokens.start, device=c.device)
    active = torch.arange(len(c), device=c.device)
    for step in range(decoding.max_tokens):
        logits, state = model.step(token, state)
        chosen = uniform[step, active]
        token = choose_words(logits, tokens, decoding.temperature, chosen, step == 0)
        ids[active, step] = token
        if decoding.stop_at_end:
            goes_on = token != tokens.end
            active, token, state = active[goes_on], token[goes_on], state[goes_on]
            if not len(active):
                break
    return ids


def choose_words(
    logits: Tensor, tokens: SpecialTokens, temperature: float, uniform: Tensor, is_first: bool
) -> Tensor:
    """Choose a word a row, (R, V) to (R,); no text is empty. The logits are changed."""
    logits[:, list(tokens.never_generated)] = -torch.inf
    if is_first:
        logits[:, tokens.end] = -torch.inf
    if temperature == 0:
        return logits.argmax(-1)
    ends = torch.softmax(logits / temperature, dim=-1).cumsum(-1)
    target = uniform.unsqueeze(1) * ends[:, -1:]
    return torch.searchsorted(ends, target, right=True).squeeze(1).clamp(max=ends.shape[1] - 1)
