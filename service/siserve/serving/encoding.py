"""Encode contexts: an utterance once for as long as its vector is kept, many dialogs at a time.

A dialog that grows by a turn has one utterance that is new; the vectors of the others are kept by
their tokens, whichever dialog they came from. A vector and a c are the same to the last bit whether
they were kept or computed, alone or beside others, so that a seed gives one answer: see
tests/parity/test_encoder_in_steps.py.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from siserve.serving.fused.cpu_encoder import CpuDialogEncoder, CpuUtteranceEncoder
from siserve.serving.sessions import AnyArray, Sessions

__all__ = ["Context", "ContextEncoder", "Utterance", "runs_of"]

#: Ids from <s> to </s>.
Utterance = tuple[int, ...]
Vector = NDArray[np.float32]

#: Time of one run of GRUs over n rows of T tokens, in units of a row and token:
#: T * (n + _STEP_COST) + _RUN_COST, fitted at 300 units a direction on one core with AVX-512.
_STEP_COST = 1.3
_RUN_COST = 7.0
#: More rows would only take more memory.
_MAX_ROWS = 64


class Context(NamedTuple):
    """A dialog as the context encoder takes it.

    Attributes:
        utterances: ids from <s> to </s>, oldest first.
        floors: 1 where the responder spoke; as long as `utterances`.
        topic: id of the topic, 0 = unknown.
    """

    utterances: tuple[Utterance, ...]
    floors: tuple[int, ...]
    topic: int = 0


class ContextEncoder:
    """Encodes contexts by the graphs of one model; any number of threads may share it.

    Args:
        sessions: of the model. Without graphs of the two steps nothing can be kept.
        pad: id of padding.
        capacity: most vectors that are kept, those used last; 0 = none. One of 600 numbers takes
            3.4 kB with its key.
        heard: told by each call how many utterances needed no work, because they were kept or
            stand twice, and how many were encoded.
    """

    def __init__(
        self,
        sessions: Sessions,
        pad: int,
        capacity: int = 0,
        heard: Callable[[int, int], None] | None = None,
    ) -> None:
        self._sessions = sessions
        self._pad = pad
        self._heard = heard
        self._kept = _Kept(capacity)

    def encode(self, contexts: Sequence[Context]) -> AnyArray:
        """Return c of each context, (B, C)."""
        told = [utterance for context in contexts for utterance in context.utterances]
        if self._sessions.dialog_encoder is None:
            self._tell(len(told), len(told))
            (c,) = self._sessions.context_encoder.run(self._whole(contexts))
            return c
        vectors = self._kept.find(told)
        missing = [utterance for utterance in dict.fromkeys(told) if utterance not in vectors]
        self._tell(len(told), len(missing))
        if missing:
            made = self._encode_utterances(missing)
            self._kept.put({utterance: made[utterance] for utterance in missing})  # newest last
            vectors |= made
        return self._encode_dialogs(contexts, [vectors[utterance] for utterance in told])

    def __len__(self) -> int:
        """Count the vectors that are kept."""
        return len(self._kept)

    def _tell(self, num_told: int, num_missing: int) -> None:
        if self._heard is not None:
            self._heard(num_told - num_missing, num_missing)

    def _encode_utterances(self, utterances: Sequence[Utterance]) -> dict[Utterance, Vector]:
        encoder = self._sessions.utterance_encoder
        assert encoder is not None
        made: dict[Utterance, Vector] = {}
        runs: Iterable[Sequence[Utterance]]
        if isinstance(encoder, CpuUtteranceEncoder):  # which has no work with padding
            starts = range(0, len(utterances), _MAX_ROWS)
            runs = [utterances[start : start + _MAX_ROWS] for start in starts]
        else:
            runs = runs_of(utterances)
        for together in runs:
            if isinstance(encoder, CpuUtteranceEncoder):
                vectors = encoder.encode(together)  # (N, F)
            else:
                (vectors,) = encoder.run({"ids": _padded(together, self._pad)})
            made |= {ids: vector.copy() for ids, vector in zip(together, vectors, strict=True)}
        return made

    def _encode_dialogs(self, contexts: Sequence[Context], vectors: Sequence[Vector]) -> AnyArray:
        """Return c of contexts, whose utterances' vectors follow each other, (B, C)."""
        encoder = self._sessions.dialog_encoder
        assert encoder is not None
        counts = [len(context.utterances) for context in contexts]
        if isinstance(encoder, CpuDialogEncoder):
            floors = [floor for context in contexts for floor in context.floors]
            return encoder.encode(vectors, floors, counts, [context.topic for context in contexts])
        window = max(counts)
        placed = np.zeros((len(contexts), window, len(vectors[0])), np.float32)  # (B, U, F)
        placed[np.arange(window) < np.array(counts)[:, None]] = vectors
        given = {"vectors": placed, "num_utterances": np.array(counts)}
        (c,) = encoder.run({**given, **_beside(contexts, window)})
        return c

    def _whole(self, contexts: Sequence[Context]) -> dict[str, AnyArray]:
        window = max(len(context.utterances) for context in contexts)
        told = [u for c in contexts for u in (*c.utterances, *[()] * (window - len(c.utterances)))]
        utterances = _padded(told, self._pad).reshape(len(contexts), window, -1)  # (B, U, T)
        return {"utterances": utterances, **_beside(contexts, window)}


def runs_of(utterances: Iterable[Utterance]) -> list[list[Utterance]]:
    """Divide utterances into runs of similar length, so that padding costs least.

    A run takes as many steps as its longest row has tokens; more runs cost more steps that few rows
    share. The division is the cheapest one, by dynamic programming over the sorted lengths.
    """
    rows = sorted(utterances, key=len)
    cost, first = [0.0], [0]
    for stop, longest in enumerate(map(len, rows), 1):
        cost.append(math.inf)
        first.append(0)
        for start in range(max(0, stop - _MAX_ROWS), stop):
            whole = cost[start] + longest * (stop - start + _STEP_COST) + _RUN_COST
            if whole < cost[stop]:
                cost[stop], first[stop] = whole, start
    runs, stop = [], len(rows)
    while stop:
        runs.append(rows[first[stop] : stop])
        stop = first[stop]
    return runs


class _Kept:
    """Vectors by utterance, those used last; safe to share between threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[Utterance, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def find(self, utterances: Iterable[Utterance]) -> dict[Utterance, Vector]:
        """Return those that are kept; they count as used."""
        found = {}
        with self._lock:
            for utterance in utterances:
                vector = self._vectors.get(utterance)
                if vector is not None:
                    self._vectors.move_to_end(utterance)
                    found[utterance] = vector
        return found

    def put(self, vectors: Mapping[Utterance, Vector]) -> None:
        """Keep vectors, and let go of those that were not used for longest."""
        with self._lock:
            self._vectors |= vectors
            while len(self._vectors) > self._capacity:
                self._vectors.popitem(last=False)


def _beside(contexts: Sequence[Context], window: int) -> dict[str, AnyArray]:
    """Return what the encoder is told beside the utterances."""
    return {
        "floor": _padded([context.floors for context in contexts], 0, window),  # (B, U)
        "topic": np.array([context.topic for context in contexts]),
        "profile": np.zeros((len(contexts), 8), np.float32),
    }


def _padded(rows: Sequence[Sequence[int]], fill: int, width: int = 0) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(width, *map(len, rows))), fill)
    for row, numbers in zip(padded, rows, strict=True):
        row[: len(numbers)] = numbers
    return padded
