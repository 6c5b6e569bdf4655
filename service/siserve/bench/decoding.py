"""Decode a fixed number of steps through the decoder that the engine runs, in the engine's chunks.

Rows are free: each takes the token that it draws at temperature 1. A row that ended within a chunk
goes on after it with some word. Within the chunk kernels on a CPU have no more work with it, so
their time is told for as many steps as were alive: what it took, times all steps over those. Other
decoders work as much for rows that ended. The contexts' encoding is not timed; the numbers that
tokens are drawn by are, which are drawn at once, as the engine draws them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.bench.roofline import StepWork
from siserve.bundle.errors import UsageError
from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import WEIGHTS_FILE
from siserve.bundle.verify import Bundle
from siserve.serving import noise
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.sessions import AnyArray, Sessions

__all__ = ["Decoding", "step_work"]

_SEED = 7
_TURNS, _TURN_TOKENS = 5, 12


class Decoding:
    """R rows that are decoded again and again.

    Args:
        sessions: of a bundle.
        manifest: of the same bundle.
        rows: R.
    """

    def __init__(self, sessions: Sessions, manifest: Manifest, rows: int) -> None:
        """Encode one context and draw a latent for each row."""
        seat = sessions.seat(None)
        self._decoder = seat or sessions.decoder
        self._end = manifest.tokens.end
        special = set(manifest.tokens.model_dump().values())
        self._word = next(id_ for id_ in range(manifest.sizes.vocabulary) if id_ not in special)
        self._chunk_steps = sessions.chunk_steps(rows)
        self._rows = np.arange(rows)
        c = np.repeat(_encode(sessions, manifest, self._word), rows, axis=0)  # (R, C)
        eps_z = noise.normals(_SEED, self._rows, manifest.sizes.prior_noise)
        (z,) = sessions.prior.run({"c": c, "eps_z": eps_z})
        self._state = (
            np.zeros((rows, 1), np.int32)
            if seat
            else np.zeros((rows, manifest.sizes.state), np.float32)
        )
        self._first = np.full(rows, manifest.tokens.start)
        self._given: dict[str, AnyArray] = {
            "c": c,
            "z": z,
            "temperature": np.ones(rows, dtype=np.float32),
            "top_k": np.zeros(rows, dtype=np.int64),
            "top_p": np.ones(rows, dtype=np.float32),
        }

    def seconds(self, steps: int) -> float:
        """Decode as many steps of every row and tell the time of all, had none of them ended."""
        token, state, alive = self._first, self._state, 0
        started = time.perf_counter()
        uniform = noise.uniforms(_SEED, self._rows, 0, steps)
        for first in range(0, steps, self._chunk_steps):
            chunk = uniform[first : first + self._chunk_steps]
            tokens, _, state = self._decoder.run(self._inputs(token, state, chunk))
            has_ended = tokens == self._end
            alive += has_ended.size - int(has_ended[:-1].sum())  # the step that ends a row is one
            token = np.where(has_ended[-1], self._word, tokens[-1])
        seconds = time.perf_counter() - started
        if isinstance(self._decoder, CpuDecoder):
            seconds *= steps * len(self._rows) / alive
        return seconds

    def _inputs(
        self, token: NDArray[np.int64], state: AnyArray, uniform: NDArray[np.float32]
    ) -> Mapping[str, AnyArray]:
        return {
            **self._given,
            "token": token,
            "state": state,
            "uniform": uniform,
            "forced": np.full(uniform.shape, -1),
        }


def step_work(bundle: Bundle) -> StepWork:
    """Count the weights that a step of a bundle's decoder multiplies.

    They are the products of its recurrent layer and of its output layer, by their names in the
    weights file. What makes the first state is needed once a response; and a word's product with
    the recurrent layer's weights can be looked up, so no floor holds it.

    Raises:
        UsageError: if the file names no such weights.
    """
    with bundle.file(WEIGHTS_FILE).open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    counts = [
        math.prod(told["shape"])
        for name, told in header.items()
        if name.startswith("decoder.") and name.endswith((".kernel", ".kernel_hh"))
        if ".init." not in name
        if told["dtype"] in ("F16", "F32")  # int8 copies of the same weights do not count again
    ]
    if not counts:
        raise UsageError(f"{WEIGHTS_FILE} of {bundle.path} names no weights of a decoder")
    return StepWork(sum(counts))


def _encode(sessions: Sessions, manifest: Manifest, word: int) -> AnyArray:
    """Encode a context of five turns, which are all one word: their encoding takes no time here."""
    utterances = np.full((1, _TURNS, _TURN_TOKENS), word)
    utterances[:, :, 0], utterances[:, :, -1] = manifest.tokens.start, manifest.tokens.end
    (c,) = sessions.context_encoder.run(
        {
            "utterances": utterances,
            "floor": np.arange(_TURNS)[None, :] % 2,
            "topic": np.zeros(1, dtype=np.int64),
            "profile": np.zeros((1, 8), dtype=np.float32),
        }
    )
    return c
