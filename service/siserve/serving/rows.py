"""The table of rows in flight: one response each, of all requests that a worker has.

Rows lie side by side in arrays, so that what a chunk takes and gives costs a few operations on
arrays, however many requests the rows belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest
from siserve.serving.sessions import AnyArray

__all__ = ["Ended", "NewRows", "RowTable"]


@dataclass(frozen=True)
class NewRows:
    """Rows that are to start, of one request or several.

    Attributes:
        owner: number of the request that a row belongs to, (R,).
        index: of a row among those of its owner, (R,).
        limit: most steps of a row, (R,).
        c: (R, C).
        z: (R, D).
        uniform: the numbers that tokens are drawn by, one for each step, (R, T).
        temperature, top_k, top_p: as in a request, (R,).
    """

    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    limit: NDArray[np.int64]
    c: AnyArray
    z: AnyArray
    uniform: NDArray[np.float32]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]


@dataclass(frozen=True)
class Ended:
    """A row that ended.

    Attributes:
        index: among the rows of its owner.
        tokens: ids without the end mark.
        log_prob: of these tokens and, if it ended, of the end mark, in nats.
        has_ended: whether the model ended it; False = cut at its limit.
    """

    owner: int
    index: int
    tokens: tuple[int, ...]
    log_prob: float
    has_ended: bool


class RowTable:
    """Rows of one worker; new ones are put behind the others."""

    def __init__(self, manifest: Manifest) -> None:
        """Begin without rows."""
        self._tokens = manifest.tokens
        self._kept: dict[str, AnyArray] = {}
        self._c = np.zeros((0, manifest.sizes.context), np.float32)
        self._z = np.zeros((0, manifest.sizes.latent), np.float32)
        self._sizes = manifest.sizes
        self._width = manifest.limits.response_tokens

    def __len__(self) -> int:
        """Count the rows that have not ended."""
        return len(self._kept["token"]) if self._kept else 0

    def add(self, new: NewRows) -> None:
        """Let rows start with the next chunk."""
        count, steps = new.uniform.shape
        if steps > self._width:
            self._widen(steps)
        uniform = np.zeros((count, self._width), np.float32)
        uniform[:, :steps] = new.uniform
        fresh: dict[str, AnyArray] = {
            "state": np.zeros((count, self._sizes.state), np.float32),
            "token": np.full(count, self._tokens.start),
            "temperature": new.temperature,
            "top_k": new.top_k,
            "top_p": new.top_p,
            "uniform": uniform,
            "step": np.zeros(count, np.int64),
            "limit": new.limit,
            "owner": new.owner,
            "index": new.index,
            "tokens": np.full((count, self._width), self._tokens.end),
            "log_probs": np.zeros((count, self._width), np.float32),
        }
        first = len(self)
        if first:
            fresh = {name: np.concatenate([self._kept[name], fresh[name]]) for name in fresh}
        self._kept = fresh
        self._tell_start(first, new.c, new.z)

    def inputs(self, num_steps: int) -> dict[str, AnyArray]:
        """Return the decoder's inputs for the next chunk."""
        kept, rows = self._kept, len(self)
        steps = np.minimum(kept["step"][:, None] + np.arange(num_steps), self._width - 1)  # (R, K)
        return {
            "c": self._c[:rows],
            "z": self._z[:rows],
            "uniform": np.take_along_axis(kept["uniform"], steps, axis=1).T,
            "forced": np.full((num_steps, rows), -1),
            **{name: kept[name] for name in ("state", "token", "temperature", "top_k", "top_p")},
        }

    def advance(self, tokens: AnyArray, log_probs: AnyArray, state: AnyArray) -> list[Ended]:
        """Keep what a chunk gave; rows that ended leave, and are returned.

        Args:
            tokens: (K, R).
            log_probs: (K, R).
            state: (R, H).
        """
        kept, num_steps = self._kept, len(tokens)
        places = kept["step"][:, None] + np.arange(num_steps)  # (R, K)
        rows, steps = np.nonzero(places < kept["limit"][:, None])
        kept["tokens"][rows, places[rows, steps]] = tokens.T[rows, steps]
        kept["log_probs"][rows, places[rows, steps]] = log_probs.T[rows, steps]
        kept["step"] = np.minimum(kept["step"] + num_steps, kept["limit"])
        kept["token"], kept["state"] = tokens[-1], state
        goes_on = (tokens[-1] != self._tokens.end) & (kept["step"] < kept["limit"])
        if goes_on.all():
            return []
        ended = self._ended(~goes_on)
        self._keep(goes_on)
        return ended

    def remove(self, owners: Sequence[int]) -> None:
        """Let the rows of some requests go."""
        if owners and self._kept:
            self._keep(~np.isin(self._kept["owner"], owners))

    def clear(self) -> None:
        """Let all rows go."""
        self._kept = {}

    def _ended(self, rows: NDArray[np.bool_]) -> list[Ended]:
        kept = {name: self._kept[name][rows] for name in ("owner", "index", "tokens", "step")}
        is_end = kept["tokens"] == self._tokens.end
        is_end &= np.arange(self._width) < kept["step"][:, None]
        has_ended = is_end.any(axis=1)
        lengths = np.where(has_ended, is_end.argmax(axis=1), kept["step"])  # the end mark left out
        counts = np.arange(self._width) < (lengths + has_ended)[:, None]
        log_probs = np.where(counts, self._kept["log_probs"][rows], 0.0)
        facts = zip(
            kept["owner"].tolist(),
            kept["index"].tolist(),
            kept["tokens"].tolist(),
            lengths.tolist(),
            log_probs.sum(axis=1, dtype=np.float64).tolist(),
            has_ended.tolist(),
            strict=True,
        )
        return [
            Ended(owner, index, tuple(tokens[:length]), log_prob, ended)
            for owner, index, tokens, length, log_prob, ended in facts
        ]

    def _keep(self, rows: NDArray[np.bool_]) -> None:
        self._kept = {name: values[rows] for name, values in self._kept.items()}

    def _tell_start(self, first: int, c: AnyArray, z: AnyArray) -> None:
        """Put c and z of new rows in their places: the decoder reads those of starting rows only.

        So these two do not move with the rows; what is left of earlier ones is never read.
        """
        stop = first + len(c)
        if stop > len(self._c):
            room = max(stop, 2 * len(self._c), 64)
            self._c, self._z = (_roomier(a, room) for a in (self._c, self._z))
        self._c[first:stop], self._z[first:stop] = c, z

    def _widen(self, width: int) -> None:
        for name in ("uniform", "tokens", "log_probs"):
            if self._kept:
                more = [(0, 0), (0, width - self._width)]
                self._kept[name] = np.pad(self._kept[name], more)
        self._width = width


def _roomier(values: AnyArray, rows: int) -> AnyArray:
    roomy = np.zeros((rows, values.shape[1]), values.dtype)
    roomy[: len(values)] = values
    return roomy
