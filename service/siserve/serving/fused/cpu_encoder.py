"""Encoders of utterances and dialogs by kernels of our own on CPUs with AVX-512, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.serving.fused.native import (
    GATE_VECTORS,
    LANES,
    CpuLibrary,
    CpuMemory,
    in_blocks,
    in_gates,
    kind_of,
    place_of,
    up_to,
)
from siserve.serving.fused.weights import Floats, NotFused, filled
from siserve.serving.graphs import AnyArray

__all__ = ["CpuDialogEncoder", "CpuUtteranceEncoder"]

Weights = Mapping[str, NDArray[np.floating[Any]]]

_FROM_ONNX = [1, 0, 2]  # gates r, z, n of ONNX's z, r, h


class _Gru(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("inputs", "units", "model_units", "directions", "kind")
        ),
        *((name, ctypes.c_void_p) for name in ("of_inputs", "of_states")),
    ]


class _Sequences(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "count", "num_known", "stride")),
        *((name, ctypes.c_void_p) for name in ("known", "places", "lengths", "last")),
    ]


class _CpuGru:
    """A GRU of one direction, or of two, forwards and backwards.

    Args:
        library: the kernels.
        kernel, recurrence, bias: as ONNX's operator has them, (W, 3 U, F), (W, 3 U, U) and
            (W, 6 U) of W directions.
    """

    def __init__(
        self, library: CpuLibrary, kernel: Floats, recurrence: Floats, bias: Floats
    ) -> None:
        self._library, self._memory = library, CpuMemory()
        ways, _, units = recurrence.shape
        self.units = ways * units
        self._inputs, padded = kernel.shape[2], up_to(units, LANES)
        biases = bias.reshape(ways, 2, 3, units)[:, :, _FROM_ONNX]
        kind = kind_of(kernel, recurrence)

        def hold(matrix: Floats, width: int, biases: Floats) -> int:
            parts = matrix.reshape(ways, 3, units, -1)[:, _FROM_ONNX]
            laid_out = [in_gates(filled(part, 3, padded, width)) for part in parts]
            told = [in_gates(filled(part, 3, padded)) for part in biases]
            blocks = in_blocks(np.concatenate(laid_out), np.concatenate(told), GATE_VECTORS, kind)
            return self._memory.hold(blocks)

        self._gru = _Gru(
            inputs=self._inputs,
            units=padded,
            model_units=units,
            directions=ways,
            kind=kind,
            of_inputs=hold(kernel, self._inputs, biases[:, 0]),
            of_states=hold(recurrence, padded, biases[:, 1]),
        )

    def run(
        self,
        known: Floats,
        places: NDArray[np.int64] | None,
        lengths: NDArray[np.int64],
        last: Floats,
        column: int = 0,
    ) -> None:
        """Run over rows of inputs, those of a row behind those of the row before.

        Args:
            known: inputs, (K, F).
            places: numbers of the inputs among those known, (N,); None = all of them in order.
            lengths: how many inputs a row has, at least one, (R,).
            last: takes what each direction comes to in each row, (R, ...), from `column` on.

        Raises:
            ValueError: if lengths do not add up to N, one is 0, or a place is beyond K.
        """
        (rows, width), start = last.shape, place_of(last) + column * last.itemsize
        known = np.ascontiguousarray(known, np.float32)
        lengths = np.ascontiguousarray(lengths, np.int64)
        places = None if places is None else np.ascontiguousarray(places, np.int64)
        assert known.shape[1] == self._inputs and len(lengths) == rows, "shapes of a GRU"
        assert column + self.units <= width, "room for states"
        self._library.encode(
            self._gru,
            _Sequences(
                rows,
                len(known if places is None else places),
                len(known),
                width,
                place_of(known),
                None if places is None else place_of(places),
                place_of(lengths),
                start,
            ),
        )


class CpuUtteranceEncoder:
    """Answers as utterance_encoder.onnx does; several threads may share it.

    Args:
        library: the kernels.
        weights: the content of weights.safetensors.

    Raises:
        NotFused: if utterances are not encoded by a bidirectional GRU.
    """

    def __init__(self, library: CpuLibrary, weights: Weights) -> None:
        self._embedding = _read(weights, "embedding.weight")
        parts = [_read(weights, f"utterance_encoder.gru.{part}") for part in "WRB"]
        if len(parts[0]) != 2:
            raise NotFused("its utterance_encoder.gru is not bidirectional")
        self._gru = _CpuGru(library, *parts)

    def encode(self, utterances: Sequence[Sequence[int]]) -> Floats:
        """Return vectors, (N, F), of utterances of at least one id each.

        Raises:
            ValueError: if one is empty or an id is none of the vocabulary.
        """
        ids = np.array(list(chain.from_iterable(utterances)), np.int64)
        return self._encode(ids, np.array(list(map(len, utterances)), np.int64))

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return vectors, (N, F), of ids, (N, T)."""
        ids = inputs["ids"]
        lengths = np.maximum((ids != 0).sum(axis=1), 1)
        return [self._encode(ids[np.arange(ids.shape[1]) < lengths[:, None]], lengths)]

    def _encode(self, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
        vectors = np.empty((len(lengths), self._gru.units), np.float32)
        self._gru.run(self._embedding, ids, lengths, vectors)
        return vectors


class CpuDialogEncoder:
    """Answers as dialog_encoder.onnx does; several threads may share it.

    Args:
        library: the kernels.
        weights: the content of weights.safetensors.
        context: size of c.

    Raises:
        NotFused: if dialogs are not encoded by a GRU.
    """

    def __init__(self, library: CpuLibrary, weights: Weights, context: int) -> None:
        parts = [_read(weights, f"context_encoder.gru.{part}") for part in "WRB"]
        self._gru = _CpuGru(library, *parts)
        self._topics = np.zeros((0, 0), np.float32)
        if "topic_embedding.weight" in weights:
            self._topics = _read(weights, "topic_embedding.weight")
        self._context = context
        self._profile = self._topics.shape[1]
        self._has_profile = context > self._profile + self._gru.units

    def encode(
        self,
        vectors: Sequence[Floats],
        floors: Sequence[int],
        counts: Sequence[int],
        topics: Sequence[int],
    ) -> Floats:
        """Return c, (B, C), of dialogs without profiles.

        Args:
            vectors: of all utterances, those of a dialog behind those of the dialog before.
            floors: of them, 1 where the responder spoke.
            counts: how many utterances a dialog has, at least one.
            topics: ids of the dialogs' topics.
        """
        told = np.concatenate(vectors).reshape(len(vectors), -1)
        return self._encode(told, np.array(floors) == 1, np.array(counts), np.array(topics))

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return c, (B, C)."""
        vectors, spoke = inputs["vectors"], inputs["floor"] == 1  # (B, U, F), (B, U)
        lengths = np.maximum(inputs["num_utterances"], 1)
        is_told = np.arange(vectors.shape[1]) < lengths[:, None]  # (B, U)
        c = self._encode(vectors[is_told], spoke[is_told], lengths, inputs["topic"])
        if self._has_profile:
            c[:, self._profile : -self._gru.units] = inputs["profile"]
        return [c]

    def _encode(
        self,
        vectors: Floats,
        spoke: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        topics: NDArray[np.int64],
    ) -> Floats:
        steps = np.concatenate([vectors, ~spoke[:, None], spoke[:, None]], axis=1, dtype=np.float32)
        c = np.zeros((len(lengths), self._context), np.float32)
        if self._profile:
            c[:, : self._profile] = self._topics[topics]
        self._gru.run(steps, None, lengths, c, self._context - self._gru.units)
        return c


def _read(weights: Weights, name: str) -> Floats:
    if name not in weights:
        raise NotFused(f"the encoder has no {name}")
    return weights[name].astype(np.float32, copy=False)
