"""The model that graphs must agree with, as parity sees it, and how it decodes greedily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from siserve.bundle.manifest import Tokens

from siserve_training.export.weights import FloatArray

__all__ = ["PosteriorDraw", "Reference", "greedy", "log_softmax"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PosteriorDraw:
    """A latent of q(z|x,c) and its log densities in nats: (R, D), (R,), (R,).

    A method without densities has NaN throughout in both.
    """

    z: FloatArray
    log_q_z: FloatArray
    log_p_z: FloatArray


class Reference(Protocol):
    """The model that the graphs must agree with; arrays in, arrays out, shapes as in the graphs."""

    def encode_context(
        self, utterances: Ids, floor: Ids, topic: Ids, profile: FloatArray
    ) -> FloatArray:
        """Return c, (B, C)."""

    def prior(self, c: FloatArray, eps_z: FloatArray) -> FloatArray:
        """Return z drawn from p(z|c), (R, D), by noise (R, P)."""

    def posterior(
        self, c: FloatArray, response: Ids, eps_lam: FloatArray, eps_z: FloatArray
    ) -> PosteriorDraw:
        """Draw from q(z|x,c) through the first row of eps_lam."""

    def first_state(self, c: FloatArray, z: FloatArray) -> FloatArray:
        """Return the decoder's state before ``<s>``, (R, H)."""

    def step(self, token: Ids, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""


def greedy(
    reference: Reference, tokens: Tokens, c: FloatArray, z: FloatArray, num_steps: int
) -> tuple[Ids, FloatArray, FloatArray]:
    """Decode a model greedily: tokens and log-probs, (K, R) each, and the last states, (R, H)."""
    state, last = reference.first_state(c, z), np.full(len(z), tokens.start)
    chosen, log_probs = [], []
    for _ in range(num_steps):
        logits, following = reference.step(last, state)
        allowed = logits.copy()
        allowed[:, [tokens.pad, tokens.unk, tokens.start, tokens.dialog_start]] = -np.inf
        allowed[last == tokens.start, tokens.end] = -np.inf
        ended = last == tokens.end
        token = np.where(ended, tokens.end, allowed.argmax(1))
        log_prob = log_softmax(logits)[np.arange(len(token)), token]
        state = np.where(ended[:, None], state, following)
        chosen.append(token)
        log_probs.append(np.where(ended, 0, log_prob))
        last = token
    return np.stack(chosen), np.stack(log_probs), state


def log_softmax(logits: FloatArray) -> FloatArray:
    """Return log probabilities of words, (R, V)."""
    shifted: FloatArray = logits - logits.max(1, keepdims=True)
    log_softmax: FloatArray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_softmax
