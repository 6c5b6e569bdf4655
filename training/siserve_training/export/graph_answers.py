"""The graphs of a folder as they answer: run by onnxruntime, one CPU thread each."""

from __future__ import annotations

from collections.abc import Mapping
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
    POSTERIOR,
    PRIOR,
    SI_SAMPLER,
    UTTERANCE_ENCODER,
    Graph,
)

from siserve_training.export.errors import ExportError
from siserve_training.export.reference import PosteriorDraw
from siserve_training.export.weights import FloatArray

__all__ = ["GraphAnswers", "open_graph"]

Ids = NDArray[np.int64]

_CHUNK = 8
_OF_SOME = (UTTERANCE_ENCODER, DIALOG_ENCODER, POSTERIOR)
#: Stands in numbers that a graph must not look at.
_UNUSED = 9.0


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


class GraphAnswers:
    """The graphs of a bundle, or of a folder that will be one; see Answers.

    Args:
        folder: holds the graphs and their weights.
        tokens: ids of the special tokens.
        sizes: of the model.

    Raises:
        ExportError: if onnxruntime refuses a graph.
    """

    def __init__(self, folder: Path, tokens: Tokens, sizes: Sizes) -> None:
        self._tokens, self._sizes = tokens, sizes
        present = [g for g in (*GRAPHS, *_OF_SOME) if g in GRAPHS or (folder / g.file).exists()]
        self._sessions = {graph.file: open_graph(folder / graph.file) for graph in present}

    @property
    def encodes_in_steps(self) -> bool:
        """Whether the context encoder is there in two steps as well."""
        return DIALOG_ENCODER.file in self._sessions

    @property
    def tells_mixture(self) -> bool:
        """Whether the posterior is there as an explicit mixture."""
        return POSTERIOR.file in self._sessions

    def encode_context(
        self, utterances: Ids, floor: Ids, topic: Ids, profile: FloatArray
    ) -> FloatArray:
        """Return c by the whole encoder, (B, C)."""
        inputs = {"utterances": utterances, "floor": floor, "topic": topic, "profile": profile}
        c: FloatArray = self._run(CONTEXT_ENCODER, inputs)[0]
        return c

    def encode_in_steps(
        self, utterances: Ids, floor: Ids, topic: Ids, profile: FloatArray
    ) -> FloatArray:
        """Return c by the two graphs of the encoder's steps, (B, C)."""
        is_real = utterances.any(axis=2)  # (B, U)
        vectors: FloatArray = self._run(UTTERANCE_ENCODER, {"ids": utterances[is_real]})[0]
        placed = np.full((*is_real.shape, vectors.shape[1]), _UNUSED, np.float32)
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

    def prior(self, c: FloatArray, eps_z: FloatArray) -> FloatArray:
        """Return z drawn from p(z|c), (R, D), by noise (R, P)."""
        z: FloatArray = self._run(PRIOR, {"c": c, "eps_z": eps_z})[0]
        return z

    def posterior(
        self, c: FloatArray, response: Ids, eps_lam: FloatArray, eps_z: FloatArray
    ) -> PosteriorDraw:
        """Draw from q(z|x,c) through the first row of eps_lam."""
        inputs = {"c": c, "response": response, "eps_lam": eps_lam, "eps_z": eps_z}
        return PosteriorDraw(*self._run(SI_SAMPLER, inputs))

    def mixture_density(self, c: FloatArray, response: Ids, z: FloatArray) -> FloatArray:
        """Return the log density of the explicit mixture that is told, (R, D) to (R,)."""
        mu, logvar, log_weights = self._run(POSTERIOR, {"c": c, "response": response})
        squares = (z[:, None] - mu) ** 2 * np.exp(-logvar)  # (R, S, D)
        of_each = -0.5 * (squares + logvar + np.log(2 * np.pi)).sum(-1, dtype=np.float64)
        log_q: FloatArray = np.logaddexp.reduce(of_each + log_weights, axis=-1)
        return log_q

    def greedy(
        self, c: FloatArray, z: FloatArray, num_steps: int
    ) -> tuple[Ids, FloatArray, FloatArray]:
        """Choose the likeliest words, a chunk at a time."""
        state = np.full((len(z), self._sizes.state), _UNUSED, np.float32)  # ignored before <s>
        last, chosen, log_probs = np.full(len(z), self._tokens.start), [], []
        for start in range(0, num_steps, _CHUNK):
            forced = np.full((min(_CHUNK, num_steps - start), len(z)), -1)
            words, each, state = self._decode(c, z, state, last, forced)
            last = words[-1]
            chosen.append(words)
            log_probs.append(each)
        return np.concatenate(chosen), np.concatenate(log_probs), state

    def score(self, c: FloatArray, z: FloatArray, words: Ids) -> FloatArray:
        """Return log-probs of the words after the first, (T, R) to (T-1, R)."""
        state = np.zeros((len(z), self._sizes.state), np.float32)
        log_probs: FloatArray = self._decode(c, z, state, words[0], words[1:])[1]
        return log_probs

    def _decode(
        self, c: FloatArray, z: FloatArray, state: FloatArray, last: Ids, forced: Ids
    ) -> list[Any]:
        rows = len(z)
        inputs = {
            "c": c,
            "z": z,
            "state": state,
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
