"""Encoders of utterances and dialogs by kernels of our own on CPUs with AVX-512, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
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
        *((name, ctypes.c_int32) for name in ("inputs", "units", "model_units", "kind")),
        *((name, ctypes.c_void_p) for name in ("of_inputs", "of_states")),
    ]


class _Sequences(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "steps", "stride", "is_backwards")),
        *((name, ctypes.c_void_p) for name in ("inputs", "lengths", "last")),
    ]


class _CpuGru:
    """One direction of a GRU.

    Args:
        library: the kernels.
        kernel, recurrence, bias: as ONNX's operator has them, (3 U, F), (3 U, U) and (6 U,).
    """

    def __init__(
        self, library: CpuLibrary, kernel: Floats, recurrence: Floats, bias: Floats
    ) -> None:
        self._library, self._memory = library, CpuMemory()
        self.units = recurrence.shape[1]
        self._inputs = kernel.shape[1]
        padded = up_to(self.units, LANES)
        of_inputs, of_states = bias.reshape(2, 3, self.units)[:, _FROM_ONNX]

        kind = kind_of(kernel, recurrence)

        def hold(matrix: Floats, width: int, biases: Floats) -> int:
            parts = matrix.reshape(3, self.units, -1)[_FROM_ONNX]
            laid_out = in_gates(filled(parts, 3, padded, width))
            told = in_gates(filled(biases, 3, padded))
            return self._memory.hold(in_blocks(laid_out, told, GATE_VECTORS, kind))

        self._gru = _Gru(
            inputs=self._inputs,
            units=padded,
            model_units=self.units,
            kind=kind,
            of_inputs=hold(kernel, self._inputs, of_inputs),
            of_states=hold(recurrence, padded, of_states),
        )

    def run(
        self,
        inputs: Floats,
        lengths: NDArray[np.int64],
        last: Floats,
        is_backwards: bool = False,
    ) -> None:
        """Run over rows of inputs.

        Args:
            inputs: (N, T, F).
            lengths: how many of a row count, 1 to T, (N,).
            last: takes the state after each row, (N, U); part of a wider array at most.
            is_backwards: from each row's last input to its first.
        """
        rows, steps, width = inputs.shape
        assert width == self._inputs and last.shape == (rows, self.units), "shapes of a GRU"
        assert not rows or 1 <= lengths.min() <= lengths.max() <= steps, "lengths of rows"
        given = np.ascontiguousarray(inputs, np.float32)
        told = np.ascontiguousarray(lengths, np.int64)
        self._library.encode(
            self._gru,
            _Sequences(
                rows,
                steps,
                last.strides[0] // last.itemsize,
                is_backwards,
                place_of(given),
                place_of(told),
                place_of(last),
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
        forward, backward = zip(*parts, strict=True)
        self._forward, self._backward = _CpuGru(library, *forward), _CpuGru(library, *backward)

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return vectors, (N, F), of ids, (N, T)."""
        ids = inputs["ids"]
        lengths = np.maximum((ids != 0).sum(axis=1), 1)
        units = self._forward.units
        vectors = np.empty((len(ids), 2 * units), np.float32)
        embedded = self._embedding[ids]  # (N, T, W)
        self._forward.run(embedded, lengths, vectors[:, :units])
        self._backward.run(embedded, lengths, vectors[:, units:], is_backwards=True)
        return [vectors]


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
        kernel, recurrence, bias = (
            _read(weights, f"context_encoder.gru.{part}")[0] for part in "WRB"
        )
        self._gru = _CpuGru(library, kernel, recurrence, bias)
        self._topics = None
        if "topic_embedding.weight" in weights:
            self._topics = _read(weights, "topic_embedding.weight")
        known = self._gru.units + (0 if self._topics is None else self._topics.shape[1])
        self._has_profile = context > known

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return c, (B, C)."""
        vectors, spoke = inputs["vectors"], inputs["floor"] == 1  # (B, U, F), (B, U)
        flags = np.stack([~spoke, spoke], axis=2).astype(np.float32)
        steps = np.concatenate([vectors, flags], axis=2)
        lengths = np.maximum(inputs["num_utterances"], 1)
        state = np.empty((len(vectors), self._gru.units), np.float32)
        self._gru.run(steps, lengths, state)
        parts = [] if self._topics is None else [self._topics[inputs["topic"]]]
        if self._has_profile:
            parts.append(inputs["profile"])
        return [np.concatenate([*parts, state], axis=1)]


def _read(weights: Weights, name: str) -> Floats:
    if name not in weights:
        raise NotFused(f"the encoder has no {name}")
    return weights[name].astype(np.float32)
