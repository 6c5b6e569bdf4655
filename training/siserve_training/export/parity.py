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
import onnxruntime
from numpy.typing import NDArray
from siserve.bundle.manifest import Sizes, Tokens
from siserve.bundle.tensors import (
    CONTEXT_ENCODER,
    DECODER,
    DIALOG_ENCODER,
    GRAPHS,
    OPTIONAL_GRAPHS,
    PRIOR,
    SI_SAMPLER,
    UTTERANCE_ENCODER,
    Graph,
)

from siserve_training.export.errors import ExportError
from siserve_training.export.random_inputs import RandomInputs
from siserve_training.export.reference import Reference, greedy, log_softmax
from siserve_training.export.weights import FloatArray

__all__ = [
    "TOLERANCE",
    "Parity",
    "check_parity",
    "open_graph",
]

TOLERANCE = 1e-5

Ids = NDArray[np.int64]

#: (B contexts, U utterances, T tokens, R rows, A auxiliaries, topics and profiles known).
_SHAPES = ((1, 1, 3, 1, 0, False), (3, 9, 7, 5, 4, True), (4, 2, 40, 7, 30, True))
_GREEDY_STEPS = 40
_CHUNK = 8


@dataclass(frozen=True)
class Parity:
    """What was compared: the largest difference of each tensor, and how many greedy tokens."""

    differences: Mapping[str, float]
    num_greedy_tokens: int


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on one CPU thread.

    Raises:
        ExportError: if onnxruntime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise ExportError(f"onnxruntime cannot open {path.name}: {error}") from error


def check_parity(
    folder: Path,
    reference: Reference,
    tokens: Tokens,
    sizes: Sizes,
    num_topics: int,
    context_ids: int = 0,
    seed: int = 0,
) -> Parity:
    """Run the graphs of a folder against a model on random inputs of several shapes.

    Args:
        folder: holds the four graphs, those that a bundle may have, and weights.safetensors.
        reference: the model, with its weights rounded as they were stored.
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
    check = _Check(folder, reference, tokens, sizes, random)
    for shape in _SHAPES:
        check.run(*shape)
    return Parity(check.differences, check.num_greedy_tokens)


class _Check:
    """One run of the comparison; `differences` fills up as it goes."""

    def __init__(
        self,
        folder: Path,
        reference: Reference,
        tokens: Tokens,
        sizes: Sizes,
        random: RandomInputs,
    ) -> None:
        self._sessions = {
            graph.file: open_graph(folder / graph.file)
            for graph in (*GRAPHS, *OPTIONAL_GRAPHS)
            if graph in GRAPHS or (folder / graph.file).exists()
        }
        self._reference = reference
        self._tokens = tokens
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
        self._compare_forced(c, z, length)

    def _compare_context(self, contexts: int, window: int, length: int, known: bool) -> FloatArray:
        inputs = self._random.contexts(contexts, window, length, known)
        c: FloatArray = self._run(CONTEXT_ENCODER, inputs)[0]
        expected = self._reference.encode_context(**inputs)
        self._differ("c", c, expected)
        if DIALOG_ENCODER.file in self._sessions:
            self._differ("c in two steps", self._encode_in_steps(**inputs), expected)
        return c

    def _encode_in_steps(
        self, utterances: Ids, floor: Ids, topic: Ids, profile: FloatArray
    ) -> FloatArray:
        is_real = utterances.any(axis=2)  # (B, U)
        vectors: FloatArray = self._run(UTTERANCE_ENCODER, {"ids": utterances[is_real]})[0]
        placed = np.full((*is_real.shape, vectors.shape[1]), 9.0, np.float32)  # ignored elsewhere
        placed[is_real] = vectors
        inputs = {
            "vectors": placed,
            "floor": floor,
            "num_utterances": is_real.sum(1),
            "topic": topic,
            "profile": profile,
        }
        c: FloatArray = self._run(DIALOG_ENCODER, inputs)[0]
        return c

    def _compare_latents(self, c: FloatArray, length: int, aux: int) -> FloatArray:
        rows = len(c)
        eps_z = self._random.normal(rows, self._sizes.prior_noise)  # (R, P)
        z: FloatArray = self._run(PRIOR, {"c": c, "eps_z": eps_z})[0]
        self._differ("prior z", z, self._reference.prior(c, eps_z))
        inputs: dict[str, Any] = {
            "c": c,
            "response": self._random.utterances(rows, length),
            "eps_lam": self._random.normal(rows, aux + 1, self._sizes.noise),
            "eps_z": eps_z[:, : self._sizes.latent],  # (R, D)
        }
        drawn = self._run(SI_SAMPLER, inputs)
        expected = self._reference.posterior(**inputs)
        self._differ("posterior z", drawn[0], expected.z)
        self._differ_in_density("posterior log_q_z", drawn[1], expected.log_q_z)
        self._differ_in_density("posterior log_p_z", drawn[2], expected.log_p_z)
        return z

    def _compare_greedy(self, c: FloatArray, z: FloatArray) -> None:
        tokens, log_probs, state = greedy(self._reference, self._tokens, c, z, _GREEDY_STEPS)
        got_state = np.full((len(z), self._sizes.state), 9.0, np.float32)  # ignored before <s>
        last = np.full(len(z), self._tokens.start)
        for start in range(0, _GREEDY_STEPS, _CHUNK):
            forced = np.full((_CHUNK, len(z)), -1)
            got, got_log_probs, got_state = self._decode(c, z, got_state, last, forced)
            expected = tokens[start : start + _CHUNK]
            if not np.array_equal(got, expected):
                step, row = np.argwhere(got != expected)[0]
                raise ExportError(
                    f"decoder.onnx decodes greedily to word {got[step, row]} where the model says "
                    f"{expected[step, row]} (row {row}, step {start + step}; log-probs so far "
                    f"differ by {self.differences.get('log_probs', 0.0):.2g}); nothing was written"
                )
            self._differ("log_probs", got_log_probs, log_probs[start : start + _CHUNK])
            last = got[-1]
            self.num_greedy_tokens += got.size
        self._differ("state_out", got_state, state)

    def _compare_forced(self, c: FloatArray, z: FloatArray, length: int) -> None:
        words = self._random.utterances(len(z), length).T  # (T, R)
        state, last = self._reference.first_state(c, z), words[0]
        expected = []
        for token in words[1:]:
            logits, following = self._reference.step(last, state)
            ended = last == self._tokens.end
            target = np.where(ended, self._tokens.end, token)
            log_prob = log_softmax(logits)[np.arange(len(z)), target]
            expected.append(np.where(ended, 0, log_prob))
            state, last = np.where(ended[:, None], state, following), target
        got = self._decode(c, z, np.zeros_like(state), words[0], words[1:])
        self._differ("log_probs", got[1], np.stack(expected))

    def _decode(
        self, c: FloatArray, z: FloatArray, state: FloatArray, last: Ids, forced: Ids
    ) -> list[Any]:
        rows = len(z)
        inputs = {
            "c": c,
            "z": z,
            "state": state.astype(np.float32),
            "token": last,
            "uniform": np.zeros(forced.shape, np.float32),
            "forced": forced,
            "temperature": np.zeros(rows, np.float32),
            "top_k": np.zeros(rows, np.int64),
            "top_p": np.ones(rows, np.float32),
        }
        return self._run(DECODER, inputs)

    def _run(self, graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        outputs = [tensor.name for tensor in graph.outputs]
        return list(self._sessions[graph.file].run(outputs, dict(inputs)))

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
