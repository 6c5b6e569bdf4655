"""What graphs must agree with: a model that takes one step at a time, or whatever answers whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from siserve.bundle.manifest import Tokens

from siserve_training.export.weights import FloatArray

__all__ = ["Answers", "PosteriorDraw", "Reference", "answers_of", "greedy"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PosteriorDraw:
    """A latent of q(z|x,c) and its log densities in nats: (R, D), (R,), (R,).

    A method without densities has NaN throughout in both.
    """

    z: FloatArray
    log_q_z: FloatArray
    log_p_z: FloatArray


class _Encodes(Protocol):
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


class Reference(_Encodes, Protocol):
    """A model in arrays, arrays in and out, shapes as in the graphs; it decodes step by step."""

    def first_state(self, c: FloatArray, z: FloatArray) -> FloatArray:
        """Return the decoder's state before ``<s>``, (R, H)."""

    def step(self, token: Ids, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""


@runtime_checkable
class Answers(_Encodes, Protocol):
    """The same, but it decodes whole responses."""

    def greedy(
        self, c: FloatArray, z: FloatArray, num_steps: int
    ) -> tuple[Ids, FloatArray, FloatArray]:
        """Choose the likeliest words: tokens and log-probs, (K, R), and the last states, (R, H)."""

    def score(self, c: FloatArray, z: FloatArray, words: Ids) -> FloatArray:
        """Return log-probs of the words after the first, (T, R) to (T-1, R); 0 after the end."""


def answers_of(reference: Reference | Answers, tokens: Tokens) -> Answers:
    """Let a model that goes step by step decode whole responses."""
    return reference if isinstance(reference, Answers) else _Stepping(reference, tokens)


class _Stepping:
    def __init__(self, reference: Reference, tokens: Tokens) -> None:
        self._reference, self._tokens = reference, tokens
        self.encode_context = reference.encode_context
        self.prior, self.posterior = reference.prior, reference.posterior

    def greedy(
        self, c: FloatArray, z: FloatArray, num_steps: int
    ) -> tuple[Ids, FloatArray, FloatArray]:
        return greedy(self._reference, self._tokens, c, z, num_steps)

    def score(self, c: FloatArray, z: FloatArray, words: Ids) -> FloatArray:
        state, last = self._reference.first_state(c, z), words[0]
        log_probs = []
        for token in words[1:]:
            logits, following = self._reference.step(last, state)
            ended = last == self._tokens.end
            target = np.where(ended, self._tokens.end, token)
            log_prob = _log_softmax(logits)[np.arange(len(z)), target]
            log_probs.append(np.where(ended, 0, log_prob))
            state, last = np.where(ended[:, None], state, following), target
        return np.stack(log_probs)


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
        log_prob = _log_softmax(logits)[np.arange(len(token)), token]
        state = np.where(ended[:, None], state, following)
        chosen.append(token)
        log_probs.append(np.where(ended, 0, log_prob))
        last = token
    return np.stack(chosen), np.stack(log_probs), state


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted: FloatArray = logits - logits.max(1, keepdims=True)
    log_softmax: FloatArray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_softmax
