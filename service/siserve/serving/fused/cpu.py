"""Decoders by kernels of our own on CPUs with AVX-512 and VNNI, and AMX where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import DECODER
from siserve.serving.fused.native import (
    GATE_VECTORS,
    LANES,
    CpuLibrary,
    CpuMemory,
    Kind,
    in_blocks,
    in_gates,
    in_vectors,
    kind_of,
    place_of,
    up_to,
)
from siserve.serving.fused.weights import DecoderWeights, NotFused, filled, may_never_be_said
from siserve.serving.graphs import AnyArray

__all__ = ["CpuDecoder", "CpuTables"]

_OUTPUT_VECTORS, _FIRST_VECTORS = 4, 2  # of a block, as in steps.cpp
_LOWEST = -1e30
_LARGEST_TABLE = 1 << 26  # bytes of what words add to gates
_GIVEN = [tensor.name for tensor in DECODER.inputs]
_TAKEN = [tensor.name for tensor in DECODER.outputs]


class CpuTables:
    """What the decoders of a model share: all but the two large products.

    Raises:
        NotFused: if a table of what each word adds to the gates takes more than 64 MiB.
    """

    def __init__(self, weights: DecoderWeights, manifest: Manifest) -> None:
        sizes, tokens, w = manifest.sizes, manifest.tokens, weights
        units, condition = sizes.state, sizes.context + sizes.latent
        padded, words = up_to(units, LANES), up_to(sizes.vocabulary, LANES * _OUTPUT_VECTORS)
        if 4 * 3 * padded * sizes.vocabulary > _LARGEST_TABLE:
            raise NotFused(
                f"what {sizes.vocabulary} words add to the gates of {units} units takes more than "
                f"{_LARGEST_TABLE >> 20} MiB"
            )
        self.manifest, self.memory = manifest, CpuMemory()
        self.padded, self.words = padded, words
        hold = self.memory.hold
        barred = filled(np.zeros(sizes.vocabulary, np.float32), words, by=_LOWEST)
        barred[list(may_never_be_said(manifest))] = _LOWEST
        first = filled(w.first_kernel.T, up_to(units, LANES * _FIRST_VECTORS), condition)
        self.fields = {
            "units": padded,
            "model_units": units,
            "context": sizes.context,
            "latent": sizes.latent,
            "vocabulary": sizes.vocabulary,
            "words": words,
            "start": tokens.start,
            "end": tokens.end,
            "first": hold(in_vectors(first, _FIRST_VECTORS, 1)),
            "first_bias": hold(filled(w.first_bias, padded)),
            "of_words": hold(filled(w.of_words, len(w.of_words), 3, padded)),
            "barred": hold(barred),
            "is_barred": hold((barred < 0).reshape(-1, LANES * _OUTPUT_VECTORS).max(axis=1)),
        }


class CpuDecoder:
    """Answers as decoder.onnx or decoder_int8.onnx does; several threads may share it.

    Args:
        library: the kernels.
        tables: of the model.
        weights: of the model's decoder.
        has_integers: whether products are in 8-bit integers.
    """

    def __init__(
        self,
        library: CpuLibrary,
        tables: CpuTables,
        weights: DecoderWeights,
        has_integers: bool,
    ) -> None:
        self._library, self._tables = library, tables
        self._sizes: dict[Any, int] = {**tables.manifest.sizes.by_axis()}
        self._memory, self._num_words = CpuMemory(), tables.manifest.sizes.vocabulary
        padded, w = tables.padded, weights
        gates = in_gates(filled(w.gates, 3, padded, padded))
        # The biases of r and z are in what words add; the candidate's is not.
        gates_bias = np.zeros((3, padded), np.float32)
        gates_bias[2] = filled(w.candidate_bias, padded)
        output = filled(w.output, tables.words, padded)
        output_bias = filled(w.output_bias, tables.words, by=_LOWEST)
        kind = Kind.INTEGERS if has_integers else kind_of(gates, output)
        self._decoder = _Decoder(
            **tables.fields,
            kind=kind,
            may_use_tiles=library.may_use_tiles,
            gates=self._memory.hold(in_blocks(gates, in_gates(gates_bias), GATE_VECTORS, kind)),
            output=self._memory.hold(in_blocks(output, output_bias, _OUTPUT_VECTORS, kind)),
        )

    def allow(self, cores: int) -> None:
        """Let it and others like it take so many cores together; see CpuLibrary.allow."""
        self._library.allow(cores)

    def occupy(self, change: int) -> None:
        """Tell that one more, or less, of those who share it has work; see CpuLibrary.occupy."""
        self._library.occupy(change)

    def multiply(self, num_rows: int) -> None:
        """Do the output layer's product for so many rows, and nothing else, to measure its rate."""
        self._library.multiply(self._decoder, num_rows)

    def operations(self, num_rows: int) -> int:
        """Multiplications and additions of `multiply` that the model asks for."""
        return 2 * num_rows * self._sizes["H"] * self._num_words

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return tokens (K, R), log-probs (K, R) and states (R, H).

        Raises:
            ValueError: if a token is none of the vocabulary or a shape is not the graph's.
        """
        steps, rows = inputs["uniform"].shape
        sizes = {**self._sizes, "K": steps, "R": rows}
        given = [
            np.ascontiguousarray(inputs[tensor.name], dtype=tensor.dtype)
            for tensor in DECODER.inputs
        ]
        for values, tensor in zip(given, DECODER.inputs, strict=True):
            if values.shape != tuple([sizes[axis] for axis in tensor.axes]):
                raise ValueError(
                    f"{tensor.name}: {values.shape}, expected {tensor.axes} of {sizes}"
                )
        taken = [
            np.empty([sizes[axis] for axis in tensor.axes], tensor.dtype)
            for tensor in DECODER.outputs
        ]
        pointers = [place_of(array) for array in (*given, *taken)]
        self._library.run(self._decoder, _Chunk(steps, rows, *pointers))
        return taken


class _Decoder(ctypes.Structure):
    _numbers = (
        *("units", "model_units", "context", "latent", "vocabulary", "words", "start", "end"),
        *("kind", "may_use_tiles"),
    )
    _pointers = ("gates", "output", "first", "first_bias", "of_words", "barred", "is_barred")
    _fields_ = [
        *((name, ctypes.c_int32) for name in _numbers),
        *((name, ctypes.c_void_p) for name in _pointers),
    ]


class _Chunk(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("steps", "rows")),
        *((name, ctypes.c_void_p) for name in (*_GIVEN, *_TAKEN)),
    ]
