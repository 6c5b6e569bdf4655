"""Graphs against the model: same inputs, same answers, or no bundle.

Differences are |graph - model| / max(1, |model|): absolute for numbers up to 1 and relative above,
because a log density of 200 dimensions is a number of hundreds, where float32 has steps of 3e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from siserve.bundle.manifest import Sizes, Tokens

from siserve_training.export.errors import ExportError
from siserve_training.export.graph_answers import GraphAnswers, open_graph
from siserve_training.export.random_inputs import RandomInputs
from siserve_training.export.reference import Answers, Reference, answers_of
from siserve_training.export.weights import FloatArray

__all__ = ["TOLERANCE", "Parity", "check_parity", "open_graph"]

TOLERANCE = 1e-5

#: (B contexts, U utterances, T tokens, R rows, A auxiliaries, topics and profiles known).
_SHAPES = ((1, 1, 3, 1, 0, False), (3, 9, 7, 5, 4, True), (4, 2, 40, 7, 30, True))
_GREEDY_STEPS = 40


@dataclass(frozen=True)
class Parity:
    """What was compared: the largest difference of each tensor, and how many greedy tokens."""

    differences: Mapping[str, float]
    num_greedy_tokens: int


def check_parity(
    folder: Path,
    reference: Reference | Answers,
    tokens: Tokens,
    sizes: Sizes,
    num_topics: int,
    context_ids: int = 0,
    seed: int = 0,
) -> Parity:
    """Run the graphs of a folder against a model on random inputs of several shapes.

    Args:
        folder: holds the four graphs, those that a bundle may have, and weights.safetensors.
        reference: the model, with its weights rounded as they were stored, or an earlier bundle.
        tokens: ids of the special tokens.
        sizes: sizes of the model.
        num_topics: known topics; ids go up to this number.
        context_ids: ids of the contexts' own tokenizer; 0 where they are words as in responses.
        seed: of the random inputs.

    Raises:
        ExportError: if a tensor differs by more than 1e-5 or a greedy token differs at all.
    """
    rng = np.random.default_rng(seed)
    random = RandomInputs(tokens, sizes.vocabulary, num_topics, context_ids, rng)
    graphs = GraphAnswers(folder, tokens, sizes)
    check = _Check(graphs, answers_of(reference, tokens), sizes, random)
    for shape in _SHAPES:
        check.run(*shape)
    return Parity(check.differences, check.num_greedy_tokens)


class _Check:
    """One run of the comparison; `differences` fills up as it goes."""

    def __init__(
        self, graphs: GraphAnswers, reference: Answers, sizes: Sizes, random: RandomInputs
    ) -> None:
        self._graphs = graphs
        self._reference = reference
        self._sizes = sizes
        self._random = random
        self.differences: dict[str, float] = {}
        self.num_greedy_tokens = 0

    def run(
        self, contexts: int, window: int, length: int, rows: int, aux: int, known: bool
    ) -> None:
        c = self._compare_context(contexts, window, length, known)
        c = c[self._random.rows(contexts, rows)]  # (R, C)
        z = self._compare_latents(c, length, aux)
        self._compare_greedy(c, z)
        words = self._random.utterances(rows, length).T  # (T, R)
        expected = self._reference.score(c, z, words)
        self._differ("log_probs", self._graphs.score(c, z, words), expected)

    def _compare_context(self, contexts: int, window: int, length: int, known: bool) -> FloatArray:
        inputs = self._random.contexts(contexts, window, length, known)
        c = self._graphs.encode_context(**inputs)
        expected = self._reference.encode_context(**inputs)
        self._differ("c", c, expected)
        if self._graphs.encodes_in_steps:
            self._differ("c in two steps", self._graphs.encode_in_steps(**inputs), expected)
        return c

    def _compare_latents(self, c: FloatArray, length: int, aux: int) -> FloatArray:
        rows = len(c)
        eps_z = self._random.normal(rows, self._sizes.prior_noise)  # (R, P)
        z = self._graphs.prior(c, eps_z)
        self._differ("prior z", z, self._reference.prior(c, eps_z))
        inputs: dict[str, Any] = {
            "c": c,
            "response": self._random.utterances(rows, length),
            "eps_lam": self._random.normal(rows, aux + 1, self._sizes.noise),
            "eps_z": eps_z[:, : self._sizes.latent],  # (R, D)
        }
        drawn, expected = self._graphs.posterior(**inputs), self._reference.posterior(**inputs)
        self._differ("posterior z", drawn.z, expected.z)
        self._differ_in_density("posterior log_q_z", drawn.log_q_z, expected.log_q_z)
        self._differ_in_density("posterior log_p_z", drawn.log_p_z, expected.log_p_z)
        if self._graphs.tells_mixture:
            of_mixture = self._graphs.mixture_density(c, inputs["response"], expected.z)
            self._differ("posterior mixture", of_mixture, expected.log_q_z)
        return z

    def _compare_greedy(self, c: FloatArray, z: FloatArray) -> None:
        words, log_probs, state = self._reference.greedy(c, z, _GREEDY_STEPS)
        got, got_log_probs, got_state = self._graphs.greedy(c, z, _GREEDY_STEPS)
        if not np.array_equal(got, words):
            step, row = np.argwhere(got != words)[0]
            raise ExportError(
                f"decoder.onnx decodes greedily to word {got[step, row]} where the model says "
                f"{words[step, row]} (row {row}, step {step}; log-probs so far differ by "
                f"{np.abs(got_log_probs - log_probs)[:step].max(initial=0.0):.2g}); nothing was "
                "written"
            )
        self._differ("log_probs", got_log_probs, log_probs)
        self.num_greedy_tokens += got.size
        self._differ("state_out", got_state, state)

    def _differ(self, name: str, got: FloatArray, expected: FloatArray) -> None:
        if got.shape != expected.shape:
            raise ExportError(f"{name} has shape {got.shape}, the model gives {expected.shape}")
        difference = float(np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name} of the graphs differs from the model's by {difference:.3g}, at most "
                f"{TOLERANCE:g} is allowed; nothing was written. Check that the checkpoint and "
                "the code are of one version, and export with dtype float32 if it is float16"
            )
        self.differences[name] = max(difference, self.differences.get(name, 0.0))

    def _differ_in_density(self, name: str, got: FloatArray, expected: FloatArray) -> None:
        """Compare log densities; a method that has none says NaN throughout, on both sides."""
        has_none = np.isnan(got).all() and np.isnan(expected).all()
        self._differ(name, *((np.zeros_like(a) if has_none else a) for a in (got, expected)))
