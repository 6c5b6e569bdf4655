"""The table of rows in flight: one response each, of all requests that a worker has.

A row is a record, and records lie side by side in one array, so that what a chunk takes and gives
costs a few operations on arrays, however many requests the rows belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest
from siserve.serving.fused.cpu import CpuDecoder, CpuRows
from siserve.serving.graphs import AnyArray, Runs

__all__ = ["Ended", "NewRows", "Row", "RowTable"]

_GIVEN = ("owner", "index", "limit", "temperature", "top_k", "top_p")


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


class Row(NamedTuple):
    """One response.

    Attributes:
        tokens: ids without special tokens.
        log_prob: natural log probability of the tokens and, if it ended, of the end mark.
        ended: whether the model ended it; False = cut at its limit.
    """

    tokens: tuple[int, ...]
    log_prob: float
    ended: bool


class Ended(NamedTuple):
    """A row that ended, and its place among those of its owner."""

    owner: int
    place: int
    row: Row


class RowTable:
    """Rows of one worker: new ones are put behind the others, the last ones fill gaps.

    So what a chunk moves is a row for each that ended, not all that go on.

    Args:
        manifest: of the bundle.
        no_states: states of no row, as the decoder takes and gives them; None = (0, H).
    """

    def __init__(self, manifest: Manifest, no_states: AnyArray | None = None) -> None:
        """Begin without rows."""
        self._tokens = manifest.tokens
        self._room = np.zeros(0, _record(manifest.limits.response_tokens))
        self._rows = self._room[:0]
        if no_states is None:
            no_states = np.zeros((0, manifest.sizes.state), np.float32)
        self._state = no_states
        self._c = np.zeros((0, manifest.sizes.context), np.float32)
        self._z = np.zeros((0, manifest.sizes.latent), np.float32)
        self._most_steps = manifest.limits.response_tokens
        self._in_place: CpuRows | None = None  # as kernels see the room

    def __len__(self) -> int:
        """Count the rows that have not ended."""
        return len(self._rows)

    def add(self, new: NewRows) -> None:
        """Let rows start with the next chunk."""
        count, steps = new.uniform.shape
        first, stop = len(self), len(self) + count
        self._most_steps = max(self._most_steps, steps)
        self._reserve(stop, steps)
        fresh = self._room[first:stop]
        fresh[:] = np.zeros((), self._room.dtype)
        for name in _GIVEN:
            fresh[name] = getattr(new, name)
        fresh["token"], fresh["tokens"] = self._tokens.start, self._tokens.end
        fresh["uniform"][:, :steps] = new.uniform
        self._rows = self._room[:stop]
        fresh_states = np.zeros((count, self._state.shape[1]), self._state.dtype)
        self._state = np.concatenate([self._state, fresh_states])
        self._c[first:stop], self._z[first:stop] = new.c, new.z

    def take_steps(self, decoder: Runs, num_steps: int) -> list[Ended]:
        """Let a decoder take the next steps; rows that ended leave, and are returned."""
        if not isinstance(decoder, CpuDecoder):
            return self.advance(*decoder.run(self.inputs(num_steps)))
        self._reserve(len(self), self._most_steps + num_steps)
        if self._in_place is None:
            self._in_place = CpuRows(self._room, self._c, self._z)
        told = decoder.take_steps(self._in_place, self._state, num_steps)
        ended = [
            Ended(owner, index, Row(tokens, log_prob, has_ended))
            for owner, index, tokens, log_prob, has_ended in told
        ]
        count = len(self) - len(ended)
        self._rows, self._state = self._rows[:count], self._state[:count]
        return ended

    def inputs(self, num_steps: int) -> dict[str, AnyArray]:
        """Return the decoder's inputs for the next chunk."""
        count = len(self)
        self._reserve(count, self._most_steps + num_steps)
        rows = self._rows
        return {
            "c": self._c[:count],
            "z": self._z[:count],
            "state": self._state,
            "uniform": np.ascontiguousarray(rows["uniform"][self._places(num_steps)].T),
            "forced": np.full((num_steps, count), -1),
            **{name: rows[name].copy() for name in ("token", "temperature", "top_k", "top_p")},
        }

    def advance(self, tokens: AnyArray, log_probs: AnyArray, state: AnyArray) -> list[Ended]:
        """Keep what a chunk gave; rows that ended leave, and are returned.

        Args:
            tokens: (K, R).
            log_probs: (K, R).
            state: (R, H), or what stands for it; it is the table's from now on.
        """
        rows, places = self._rows, self._places(len(tokens))
        rows["tokens"][places], rows["log_probs"][places] = tokens.T, log_probs.T
        rows["step"] += len(tokens)
        rows["token"], self._state = tokens[-1], state
        goes_on = (tokens[-1] != self._tokens.end) & (rows["step"] < rows["limit"])
        if goes_on.all():
            return []
        ended = self._ended(rows[~goes_on])
        self._keep(goes_on)
        return ended

    def remove(self, owners: Sequence[int]) -> None:
        """Let the rows of some requests go."""
        if owners:
            self._keep(~np.isin(self._rows["owner"], owners))

    def clear(self) -> None:
        """Let all rows go."""
        self._keep(np.zeros(len(self), bool))

    def _places(self, num_steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Index the next steps of each row, (R, K)."""
        steps = self._rows["step"]
        return np.arange(len(steps))[:, None], steps[:, None] + np.arange(num_steps)

    def _ended(self, rows: NDArray[Any]) -> list[Ended]:
        """Read rows that ended; what they said after the end mark or their limit does not count."""
        is_told = np.arange(rows["tokens"].shape[1]) < rows["limit"][:, None]
        is_word = is_told & (rows["tokens"] != self._tokens.end)  # none after an end mark
        lengths = is_word.sum(axis=1)
        log_probs = rows["log_probs"].sum(axis=1, where=is_told, dtype=np.float64)  # 0 after it
        said = rows["tokens"][is_word].tolist()
        facts = zip(
            rows["owner"].tolist(),
            rows["index"].tolist(),
            lengths.cumsum().tolist(),
            lengths.tolist(),
            log_probs.tolist(),
            (lengths < rows["limit"]).tolist(),
            strict=True,
        )
        return [
            Ended(owner, index, Row(tuple(said[stop - length : stop]), log_prob, has_ended))
            for owner, index, stop, length, log_prob, has_ended in facts
        ]

    def _keep(self, goes_on: NDArray[np.bool_]) -> None:
        """Let rows go, and put the last ones into their places."""
        count = int(goes_on.sum())
        gaps, movers = np.flatnonzero(~goes_on[:count]), count + np.flatnonzero(goes_on[count:])
        moved = self._rows[movers]
        self._rows[gaps], self._state[gaps] = moved, self._state[movers]
        if not moved["step"].all():  # of a row that has begun the decoder reads neither
            self._c[gaps], self._z[gaps] = self._c[movers], self._z[movers]
        self._rows, self._state = self._rows[:count], self._state[:count]

    def _reserve(self, num_rows: int, width: int) -> None:
        """Make room for so many rows, and for so many steps of each."""
        room, held = len(self._room), self._room["tokens"].shape[1]
        if num_rows <= room and width <= held:
            return
        room = room if num_rows <= room else max(num_rows, 2 * room, 64)
        old, count = self._rows, len(self)
        self._room = np.zeros(room, _record(max(width, held)))
        self._rows = self._room[:count]
        self._rows["tokens"] = self._tokens.end
        for name in old.dtype.names or ():
            self._rows[name][..., : old[name].shape[-1]] = old[name]
        self._c, self._z = (_roomier(values, room) for values in (self._c, self._z))
        self._in_place = None


def _record(width: int) -> np.dtype[Any]:
    """What is kept of a row between two chunks, with room for `width` steps."""
    numbers = [(name, np.int64) for name in ("owner", "index", "limit", "step", "token", "top_k")]
    shares = [(name, np.float32) for name in ("temperature", "top_p")]
    of_steps = [("uniform", np.float32), ("log_probs", np.float32), ("tokens", np.int64)]
    return np.dtype([*numbers, *shares, *((name, kind, (width,)) for name, kind in of_steps)])


def _roomier(values: AnyArray, rows: int) -> AnyArray:
    roomy = np.zeros((rows, values.shape[1]), values.dtype)
    roomy[: len(values)] = values
    return roomy
