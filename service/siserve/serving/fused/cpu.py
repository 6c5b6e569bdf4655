"""Decoders by kernels of our own on CPUs with AVX-512 and VNNI, and AMX where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
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
from siserve.serving.fused.weights import (
    DecoderWeights,
    Floats,
    NotFused,
    filled,
    may_never_be_said,
)
from siserve.serving.graphs import AnyArray

__all__ = ["CpuDecoder", "CpuRows", "CpuTables"]

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
        of_words = self.memory.room(sizes.vocabulary, 3, padded)
        w.put_of_words(of_words)
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
            "of_words": place_of(of_words),
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
        output_bias = filled(w.output_bias, tables.words, by=_LOWEST)
        kind = Kind.INTEGERS if has_integers else kind_of(gates, w.output)
        output = in_blocks(w.output, output_bias, _OUTPUT_VECTORS, kind, padded)
        self._decoder = _Decoder(
            **tables.fields,
            kind=kind,
            may_use_tiles=library.may_use_tiles,
            gates=self._memory.hold(in_blocks(gates, in_gates(gates_bias), GATE_VECTORS, kind)),
            output=self._memory.hold(output),
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

    def take_steps(self, rows: CpuRows, state: Floats, num_steps: int) -> Iterable[EndedRow]:
        """Take the next steps of rows where they lie; those that end leave.

        Args:
            rows: a table's; there is room for the steps.
            state: of the rows, (R, H); takes the states of those that go on, (R - ended, H).
            num_steps: how many, at least one.

        Returns:
            Those that ended, in their order.

        Raises:
            ValueError: if a token is none of the vocabulary; nothing is changed then.
        """
        return rows.told(self._library.take_steps(self._decoder, rows.at(state, num_steps)))

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


#: Its owner, its index among the owner's, its words, their log-probability, whether it was ended.
EndedRow = tuple[int, int, tuple[int, ...], float, bool]


class CpuRows:
    """The arrays of a table of rows, as siserve.serving.rows has them, for kernels.

    Args:
        records: room for rows, which begin with the first.
        c, z: of them, (room, C) and (room, D).
    """

    def __init__(self, records: AnyArray, c: Floats, z: Floats) -> None:
        self._held = records, c, z
        room, width = records["tokens"].shape
        self._told = np.empty((4, room), np.int64)
        self._sums, self._words = np.empty(room), np.empty(room * width, np.int64)
        fields: Mapping[str, Any] = records.dtype.fields or {}
        places = {name: fields[name][1] for name in _Table.of_records}
        pointers = zip(
            _Table.pointers,
            [place_of(array) for array in (*self._held, *self._told, self._sums, self._words)],
            strict=True,
        )
        self._table = _Table(bytes=records.itemsize, **places, **dict(pointers))

    def at(self, state: Floats, num_steps: int) -> _Table:
        """Return what kernels are given to take steps of the first rows, whose state is given."""
        table = self._table
        table.rows, table.steps, table.state = len(state), num_steps, place_of(state)
        return table

    def told(self, count: int) -> Iterable[EndedRow]:
        """Return the rows that ended in the last run."""
        owners, indices, lengths, has_ended = self._told[:, :count].tolist()
        words = iter(self._words[: sum(lengths)].tolist())
        said = [tuple(islice(words, length)) for length in lengths]
        sums = self._sums[:count].tolist()
        return zip(owners, indices, said, sums, map(bool, has_ended), strict=True)


class _Table(ctypes.Structure):
    of_records = (
        *("owner", "index", "limit", "step", "token", "top_k", "temperature", "top_p"),
        *("uniform", "log_probs", "tokens"),
    )
    pointers = ("records", "c", "z", "owners", "indices", "lengths", "has_ended", "sums", "words")
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "bytes", "steps", *of_records)),
        *((name, ctypes.c_void_p) for name in (*pointers, "state")),
    ]


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
