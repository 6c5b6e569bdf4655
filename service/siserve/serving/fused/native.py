"""What decoders and encoders on a CPU share: the compiled kernels, and weights laid out."""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import threading
import time
from enum import IntEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.serving.cores import give_way
from siserve.serving.fused.weights import Floats, NotFused, filled
from siserve.serving.graphs import AnyArray

__all__ = [
    "GATE_VECTORS",
    "LANES",
    "CpuLibrary",
    "CpuMemory",
    "Kind",
    "cpu_library",
    "in_blocks",
    "in_gates",
    "in_vectors",
    "kind_of",
    "place_of",
    "up_to",
]

LANES = 16  # numbers of a vector
GATE_VECTORS = 3  # of a block of r, z and n, as in products.hpp

#: What /proc/cpuinfo calls the instructions that the kernels are compiled to.
_NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
_TILES = ("amx_tile", "amx_int8")
_LIBRARY = "libsiserve_kernels.so.1"
_MOST_MEMBERS = 8  # of a team, as in team.hpp

_WEIGHT_LEVELS, _ZERO_POINT = np.float32(63), 128  # as decoder_int8.onnx has them
_LINE, _PAGE, _LARGE_PAGE = 1 << 6, 1 << 12, 1 << 21
_COLUMNS_AT_ONCE = 1024  # laid out together, so that they stay in a cache


class Kind(IntEnum):
    """How the weights of a matrix lie, as in products.hpp."""

    FLOAT32 = 0
    FLOAT16 = 1
    INTEGERS = 2


class CpuLibrary:
    """The compiled kernels.

    Args:
        path: of the shared library.
        may_use_tiles: whether products may go through AMX, if the system allows that too.

    Raises:
        NotFused: if it was not made of the sources that came with this installation.
    """

    def __init__(self, path: Path, may_use_tiles: bool) -> None:
        library = ctypes.CDLL(str(path))
        self._run, self._multiply = library.siserve_run, library.siserve_multiply
        self._encode, self._draw = library.siserve_encode, library.siserve_draw
        self._draw_prior = library.siserve_draw_prior
        self._widen, self._narrow = library.siserve_widen, library.siserve_narrow
        self._are_halves = library.siserve_are_halves
        self._take_steps = library.siserve_take_steps
        self._take_steps.restype = ctypes.c_int64
        library.siserve_source.restype = ctypes.c_char_p
        if library.siserve_source().decode() != source_digest():
            raise NotFused(f"{path.name} was made of other sources; install siserve again")
        self.may_use_tiles = may_use_tiles and bool(library.siserve_ask_for_tiles())
        self._allow, self._help = library.siserve_allow, library.siserve_help
        self._occupy = library.siserve_occupy
        self._helpers: list[threading.Thread] = []

    def multiply(self, decoder: ctypes.Structure, num_rows: int) -> None:
        """Do the output layer's product for so many rows, and nothing else."""
        self._multiply(ctypes.byref(decoder), num_rows)

    def allow(self, cores: int) -> None:
        """Let all runs of decoders together take so many cores; no result depends on it.

        Each of those who have work (see `occupy`) has an equal part of them, up to eight.
        """
        self._allow(cores)
        while len(self._helpers) < min(cores, _MOST_MEMBERS) - 1:
            name = f"siserve-helper-{len(self._helpers)}"
            helper = threading.Thread(target=self._be_a_helper, name=name, daemon=True)
            helper.start()
            self._helpers.append(helper)

    def helped_seconds(self) -> float:
        """Tell the processor time of those who help runs, up to now."""
        clocks = [time.pthread_getcpuclockid(each.ident or 0) for each in self._helpers]
        return sum(map(time.clock_gettime, clocks))

    def occupy(self, change: int) -> None:
        """Count those who have work: 1 = one more, -1 = one less."""
        self._occupy(change)

    def _be_a_helper(self) -> None:
        give_way()
        self._help()

    def run(self, decoder: ctypes.Structure, chunk: ctypes.Structure) -> None:
        """Run a chunk; Python's lock is free meanwhile.

        Raises:
            ValueError: if a token is none of the vocabulary.
        """
        if self._run(ctypes.byref(decoder), ctypes.byref(chunk)):
            raise ValueError("a token is none of the vocabulary")

    def take_steps(self, decoder: ctypes.Structure, table: ctypes.Structure) -> int:
        """Take the next steps of a table's rows, and tell how many ended; see table.cpp.

        Raises:
            ValueError: if a token is none of the vocabulary.
        """
        ended = int(self._take_steps(ctypes.byref(decoder), ctypes.byref(table)))
        if ended < 0:
            raise ValueError("a token is none of the vocabulary")
        return ended

    def encode(self, gru: ctypes.Structure, sequences: ctypes.Structure) -> None:
        """Run a GRU over sequences.

        Raises:
            ValueError: if one is empty, their lengths are not those of all, or an input is unknown.
        """
        if self._encode(ctypes.byref(gru), ctypes.byref(sequences)):
            raise ValueError("no sequences of known inputs")

    def draw_prior(self, prior: ctypes.Structure, draws: ctypes.Structure) -> None:
        """Draw from a Gaussian prior."""
        self._draw_prior(ctypes.byref(prior), ctypes.byref(draws))

    def draw(
        self,
        keys: NDArray[np.uint64],
        indices: NDArray[np.int64],
        size: int,
        purpose: int,
        first_step: int,
        num_steps: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Draw what noise.py draws of responses' keys and indices, (R,).

        Returns:
            Normal numbers for a purpose, (R, size), and uniform ones of steps, (num_steps, R).
        """
        indices = np.ascontiguousarray(indices, np.int64)
        normals = np.empty((len(keys), size), np.float32)
        uniforms = np.empty((num_steps, len(keys)), np.float32)
        pointers = [place_of(array) for array in (indices, keys, normals, uniforms)]
        noise = _Noise(len(keys), size, purpose, first_step, num_steps, *pointers)
        self._draw(ctypes.byref(noise))
        return normals, uniforms

    def widened(self, values: NDArray[np.floating[Any]]) -> Floats:
        """Return numbers in float32."""
        if values.dtype != np.float16:
            return values.astype(np.float32, copy=False)
        halves, floats = np.ascontiguousarray(values), np.empty(values.shape, np.float32)
        self._widen(ctypes.c_int64(floats.size), *_pointers(halves, floats))
        return floats

    def narrowed(self, values: Floats) -> NDArray[np.float16]:
        """Return numbers in float16, rounded to the nearest, in the order that they lie in."""
        if values.flags.f_contiguous and not values.flags.c_contiguous:
            return self.narrowed(values.T).T
        floats = np.ascontiguousarray(values, np.float32)
        halves = np.empty(floats.shape, np.float16)
        self._narrow(ctypes.c_int64(floats.size), *_pointers(floats, halves))
        return halves

    def are_halves(self, values: Floats) -> bool:
        """Say whether float16 loses nothing of numbers."""
        given = np.ascontiguousarray(values.T if values.flags.f_contiguous else values, np.float32)
        return bool(self._are_halves(ctypes.c_int64(given.size), *_pointers(given)))


def _pointers(*arrays: AnyArray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(place_of(array)) for array in arrays]


class _Noise(ctypes.Structure):
    _numbers = ("responses", "size", "purpose", "first_step", "steps")
    _fields_ = [
        *((name, ctypes.c_int64) for name in _numbers),
        *((name, ctypes.c_void_p) for name in ("indices", "keys", "normals", "uniforms")),
    ]


def source_digest() -> str:
    """Return the digest of the kernels' sources, as hatch_build.py makes it."""
    folder = resources.files(__package__)
    sources = sorted(each.name for each in folder.iterdir() if each.name.endswith((".cpp", ".hpp")))
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in sources)).hexdigest()


_loading = threading.Lock()


def cpu_library() -> CpuLibrary:
    """Load the kernels that came with this installation, once, whichever thread asks first.

    Raises:
        NotFused: if there are none, or they are not for this CPU.
    """
    with _loading:
        return _load()


@cache
def _load() -> CpuLibrary:
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


class CpuMemory:
    """What the kernels point to, in large pages, of which the caches hold more."""

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []

    def hold(self, values: AnyArray) -> int:
        """Copy values to where a page starts, with room to read beyond them; tell where."""
        held = self._room(values.nbytes)
        held[:] = np.ascontiguousarray(values).view(np.uint8).ravel()
        return place_of(held)

    def room(self, *shape: int) -> Floats:
        """Make zeros where a page starts, with room to read beyond them, which are written to."""
        return self._room(4 * math.prod(shape)).view(np.float32).reshape(shape)

    def _room(self, size: int) -> NDArray[np.uint8]:
        align = _LARGE_PAGE if size >= _LARGE_PAGE else _PAGE
        room = mmap.mmap(-1, size + align + _PAGE, mmap.MAP_PRIVATE)
        if align == _LARGE_PAGE:
            room.madvise(mmap.MADV_HUGEPAGE)
        self._held.append(room)
        whole = np.frombuffer(room, np.uint8)
        first = -place_of(whole) % align
        return whole[first : first + size]


def kind_of(*matrices: Floats) -> Kind:
    """Tell whether float16 loses nothing of some matrices; it takes half of the room."""
    is_exact = all(map(cpu_library().are_halves, matrices))
    return Kind.FLOAT16 if is_exact else Kind.FLOAT32


def in_blocks(
    matrix: Floats,
    bias: Floats,
    vectors: int,
    kind: Kind = Kind.FLOAT32,
    numbers: int | None = None,
) -> NDArray[np.uint8]:
    """Lay out a matrix and a bias as the kernels read them.

    Args:
        matrix: (columns, numbers to add up); columns and numbers that are missing are 0.
        bias: (columns,).
        vectors: of 16 columns, that make a block.
        kind: of the matrix's numbers.
        numbers: how many there shall be; None = as the matrix has.
    """
    weights: NDArray[Any] = cpu_library().narrowed(matrix) if kind is Kind.FLOAT16 else matrix
    lay_out = _in_integers if kind is Kind.INTEGERS else _as_they_are
    at_once = vectors * LANES * max(1, _COLUMNS_AT_ONCE // (vectors * LANES))
    parts = []
    for first in range(0, len(bias), at_once):
        of_columns = bias[first : first + at_once]
        given = weights[first : first + at_once]
        part = filled(given, len(of_columns), numbers or matrix.shape[1])
        parts.append(lay_out(part, of_columns, vectors))
    return np.concatenate(parts)


def _as_they_are(weights: NDArray[Any], bias: Floats, vectors: int) -> NDArray[np.uint8]:
    return _joined(in_vectors(weights, vectors, 1), vectors, bias)


def _in_integers(matrix: Floats, bias: Floats, vectors: int) -> NDArray[np.uint8]:
    """Lay out a matrix in 8-bit integers, by the rounding of decoder_int8.onnx."""
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))  # (columns,)
    scales = np.maximum(largest, np.float32(1e-30)) * (np.float32(1) / _WEIGHT_LEVELS)
    shares = matrix / scales[:, None]
    levels = np.rint(shares, out=shares).astype(np.int8)
    sums = _ZERO_POINT * levels.sum(axis=1, dtype=np.int32)
    return _joined(in_vectors(levels, vectors, 4), vectors, scales, sums, bias)


def in_gates(parts: Floats) -> Floats:
    """Order rows of gates, (3, units, ...), 16 units after the other: (3 units, ...)."""
    apart = parts.reshape(3, -1, LANES, *parts.shape[2:])
    return np.ascontiguousarray(apart.swapaxes(0, 1)).reshape(-1, *parts.shape[2:])


def in_vectors(matrix: NDArray[Any], vectors: int, group: int) -> NDArray[Any]:
    """Order a matrix, (columns, numbers), to (blocks, groups, vectors, 16, group)."""
    columns, numbers = matrix.shape
    apart = matrix.reshape(-1, vectors, LANES, numbers // group, group)
    return np.ascontiguousarray(apart.transpose(0, 3, 1, 2, 4))


def _joined(weights: NDArray[Any], vectors: int, *of_columns: NDArray[Any]) -> NDArray[np.uint8]:
    """Put before each block what is told of its columns; blocks start with cache lines."""
    parts = [*(told.reshape(-1, vectors * LANES) for told in of_columns), weights]
    by_block = [
        np.ascontiguousarray(part).view(np.uint8).reshape(len(weights), -1) for part in parts
    ]
    missing = -sum(part.shape[1] for part in by_block) % _LINE
    return np.concatenate([*by_block, np.zeros((len(weights), missing), np.uint8)], axis=1)


def place_of(values: AnyArray) -> int:
    """Tell where an array begins, in a fifth of the time that array.ctypes takes."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(values))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it may not be written to, has gaps or holds nothing
        return int(values.__array_interface__["data"][0])


def up_to(size: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-size // multiple) * multiple
