"""Decoders by kernels of our own on CPUs with AVX-512 and VNNI, and AMX where there is one."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import DECODER
from siserve.serving.fused.weights import (
    DecoderWeights,
    Floats,
    NotFused,
    filled,
    may_never_be_said,
)
from siserve.serving.graphs import AnyArray

__all__ = ["CpuDecoder", "CpuLibrary", "CpuTables", "cpu_library"]

#: What /proc/cpuinfo calls the instructions that the kernels are compiled to.
_NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_TILES = ("amx_tile", "amx_int8")
_LIBRARY, _SOURCE = "libsiserve_steps.so", "steps.cpp"

_LANES = 16  # numbers of a vector
_GATE_VECTORS, _OUTPUT_VECTORS, _FIRST_VECTORS = 3, 4, 2  # of a block, as in steps.cpp
_LOWEST = -1e30
_WEIGHT_LEVELS, _ZERO_POINT = np.float32(63), 128  # as decoder_int8.onnx has them
_PAGE, _LARGE_PAGE = 1 << 12, 1 << 21
_LARGEST_TABLE = 1 << 26  # bytes of what words add to gates
_LEAST_ROWS = 2  # of a thread
_GIVEN = [tensor.name for tensor in DECODER.inputs]
_TAKEN = [tensor.name for tensor in DECODER.outputs]


class CpuLibrary:
    """The compiled kernels.

    Args:
        path: of the shared library.
        may_use_tiles: whether products may go through AMX, if the system allows that too.

    Raises:
        NotFused: if it was not made of the source that lies beside it.
    """

    def __init__(self, path: Path, may_use_tiles: bool) -> None:
        library = ctypes.CDLL(str(path))
        self._run = library.siserve_run
        library.siserve_source.restype = ctypes.c_char_p
        source = (resources.files(__package__) / _SOURCE).read_bytes()
        if library.siserve_source().decode() != hashlib.sha256(source).hexdigest():
            raise NotFused(f"{path.name} was not made of {_SOURCE}; install siserve again")
        self.may_use_tiles = may_use_tiles and bool(library.siserve_ask_for_tiles())

    def run(self, decoder: ctypes.Structure, chunk: ctypes.Structure) -> None:
        """Run a chunk; Python's lock is free meanwhile.

        Raises:
            ValueError: if a token is none of the vocabulary.
        """
        if self._run(ctypes.byref(decoder), ctypes.byref(chunk)):
            raise ValueError("a token is none of the vocabulary")


@cache
def cpu_library() -> CpuLibrary:
    """Load the kernels that came with this installation.

    Raises:
        NotFused: if there are none, or they are not for this CPU.
    """
    path = Path(str(resources.files(__package__) / _LIBRARY))
    if not path.exists():
        raise NotFused("this installation was made without a C++ compiler for x86-64")
    flags = _cpu_flags()
    missing = [flag for flag in _NEEDED if flag not in flags]
    if missing:
        raise NotFused(f"the CPU has no {missing[0]}")
    try:
        return CpuLibrary(path, all(flag in flags for flag in _TILES))
    except OSError as error:
        raise NotFused(str(error)) from None


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    told = next((line for line in lines if line.startswith("flags")), "")
    return set(told.partition(":")[2].split())


class CpuTables:
    """What the decoders of a model share: all but the two large products.

    Raises:
        NotFused: if a table of what each word adds to the gates takes more than 64 MiB.
    """

    def __init__(self, weights: DecoderWeights, manifest: Manifest) -> None:
        sizes, tokens, w = manifest.sizes, manifest.tokens, weights
        units, condition = sizes.state, sizes.context + sizes.latent
        padded, words = _up(units, _LANES), _up(sizes.vocabulary, _LANES * _OUTPUT_VECTORS)
        if 4 * 3 * padded * sizes.vocabulary > _LARGEST_TABLE:
            raise NotFused(
                f"what {sizes.vocabulary} words add to the gates of {units} units takes more than "
                f"{_LARGEST_TABLE >> 20} MiB"
            )
        self.manifest, self.memory = manifest, _Memory()
        self.padded, self.words = padded, words
        hold = self.memory.hold
        barred = filled(np.zeros(sizes.vocabulary, np.float32), words, by=_LOWEST)
        barred[list(may_never_be_said(manifest))] = _LOWEST
        first = filled(w.first_kernel.T, _up(units, _LANES * _FIRST_VECTORS), condition)
        self.fields = {
            "units": padded,
            "model_units": units,
            "context": sizes.context,
            "latent": sizes.latent,
            "vocabulary": sizes.vocabulary,
            "words": words,
            "start": tokens.start,
            "end": tokens.end,
            "first": hold(_in_vectors(first, _FIRST_VECTORS, 1)),
            "first_bias": hold(filled(w.first_bias, padded)),
            "of_words": hold(filled(w.of_words, len(w.of_words), 3, padded)),
            "barred": hold(barred),
            "is_barred": hold((barred < 0).reshape(-1, _LANES * _OUTPUT_VECTORS).max(axis=1)),
        }


class CpuDecoder:
    """Answers as decoder.onnx or decoder_int8.onnx does; several threads may share it.

    Args:
        library: the kernels.
        tables: of the model.
        weights: of the model's decoder.
        has_integers: whether products are in 8-bit integers.
        threads: that share the rows of a run.
    """

    def __init__(
        self,
        library: CpuLibrary,
        tables: CpuTables,
        weights: DecoderWeights,
        has_integers: bool,
        threads: int = 1,
    ) -> None:
        self._library, self._tables = library, tables
        self._sizes: dict[Any, int] = {**tables.manifest.sizes.by_axis()}
        self._memory = _Memory()
        padded, w = tables.padded, weights
        by_gate = filled(w.gates, 3, padded, padded).reshape(3, -1, _LANES, padded)
        gates = by_gate.transpose(1, 0, 2, 3).reshape(3 * padded, padded)
        # The biases of r and z are in what words add; the candidate's is not.
        gates_bias = np.zeros((padded // _LANES, 3, _LANES), np.float32)
        gates_bias[:, 2] = filled(w.candidate_bias, padded).reshape(-1, _LANES)
        output = filled(w.output, tables.words, padded)
        output_bias = filled(w.output_bias, tables.words, by=_LOWEST)
        in_blocks = _in_blocks_of_integers if has_integers else _in_blocks
        self._decoder = _Decoder(
            **tables.fields,
            has_integers=has_integers,
            may_use_tiles=library.may_use_tiles,
            gates=self._memory.hold(in_blocks(gates, gates_bias, _GATE_VECTORS)),
            output=self._memory.hold(in_blocks(output, output_bias, _OUTPUT_VECTORS)),
        )
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "siserve-decoder") if threads > 1 else None

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
        pointers = [array.ctypes.data for array in (*given, *taken)]
        shares = max(1, min(self._threads, rows // _LEAST_ROWS))
        borders = [rows * share // shares for share in range(shares + 1)]
        own, *others = (
            _Chunk(steps, rows, first, stop - first, *pointers)
            for first, stop in zip(borders, borders[1:], strict=False)
        )
        pool = self._pool
        waited = [pool.submit(self._library.run, self._decoder, each) for each in others if pool]
        self._library.run(self._decoder, own)
        for other in waited:
            other.result()
        return taken


class _Decoder(ctypes.Structure):
    _numbers = (
        *("units", "model_units", "context", "latent", "vocabulary", "words", "start", "end"),
        *("has_integers", "may_use_tiles"),
    )
    _pointers = ("gates", "output", "first", "first_bias", "of_words", "barred", "is_barred")
    _fields_ = [
        *((name, ctypes.c_int32) for name in _numbers),
        *((name, ctypes.c_void_p) for name in _pointers),
    ]


class _Chunk(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("steps", "rows", "first_row", "num_rows")),
        *((name, ctypes.c_void_p) for name in (*_GIVEN, *_TAKEN)),
    ]


class _Memory:
    """What the kernels point to, in large pages, of which the caches hold more."""

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []

    def hold(self, values: AnyArray) -> int:
        """Copy values to where a page starts, with room to read beyond them; tell where."""
        align = _LARGE_PAGE if values.nbytes >= _LARGE_PAGE else _PAGE
        room = mmap.mmap(-1, values.nbytes + align + _PAGE, mmap.MAP_PRIVATE)
        if align == _LARGE_PAGE:
            room.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(room, np.uint8)
        first = -whole.ctypes.data % align
        whole[first : first + values.nbytes] = np.ascontiguousarray(values).view(np.uint8).ravel()
        self._held.append(room)
        return int(whole.ctypes.data) + first


def _in_blocks(matrix: Floats, bias: Floats, vectors: int) -> NDArray[np.uint8]:
    """Lay out a matrix, (columns, numbers to add up), and a bias as steps.cpp reads them."""
    return _joined(_in_vectors(matrix, vectors, 1), vectors, bias)


def _in_blocks_of_integers(matrix: Floats, bias: Floats, vectors: int) -> NDArray[np.uint8]:
    """The same in 8-bit integers, by the rounding of decoder_int8.onnx."""
    largest = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30))  # (columns,)
    scales = largest * (np.float32(1) / _WEIGHT_LEVELS)
    levels = np.rint(matrix / scales[:, None]).astype(np.int8)
    sums = _ZERO_POINT * levels.sum(axis=1, dtype=np.int32)
    return _joined(_in_vectors(levels, vectors, 4), vectors, scales, sums, bias)


def _in_vectors(matrix: NDArray[Any], vectors: int, group: int) -> NDArray[Any]:
    """Order a matrix, (columns, numbers), to (blocks, groups, vectors, 16, group)."""
    columns, numbers = matrix.shape
    apart = matrix.reshape(-1, vectors, _LANES, numbers // group, group)
    return np.ascontiguousarray(apart.transpose(0, 3, 1, 2, 4))


def _joined(weights: NDArray[Any], vectors: int, *of_columns: NDArray[Any]) -> NDArray[np.uint8]:
    """Put before each block what is told of its columns."""
    parts = [*(told.reshape(-1, vectors * _LANES) for told in of_columns), weights]
    return np.concatenate(
        [np.ascontiguousarray(part).view(np.uint8).reshape(len(weights), -1) for part in parts], 1
    )


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
