"""A table of vectors on disk that is filled once, may be broken off, and is then memory-mapped.

The file is a safetensors one with a single tensor, `vectors`. While it is being filled it has
another name, and a note beside it counts the batches that are safely written. Two processes that
fill the same table write the same numbers, so neither needs to wait for the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Halves", "Ints", "VectorFile"]

Ints = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]

Table = np.memmap[tuple[int, int], np.dtype[np.float16]]

_BATCHES_A_NOTE = 50


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors in float16.

    Args:
        path: of the complete file.
        rows: number of vectors.
        width: size of a vector.
    """

    path: Path
    rows: int
    width: int

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".partial")

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".done")

    @property
    def _size(self) -> int:
        return len(self._header) + 2 * self.rows * self.width

    @property
    def _header(self) -> bytes:
        entry = {
            "dtype": "F16",
            "shape": [self.rows, self.width],
            "data_offsets": [0, 2 * self.rows * self.width],
        }
        text = json.dumps({"vectors": entry}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def is_complete(self) -> bool:
        """Whether the file is there as a whole."""
        return self.path.is_file() and self.path.stat().st_size == self._size

    def read(self) -> Halves:
        """Map the complete file into memory, (rows, width)."""
        return self._map(self.path, "r")

    def fill(self, batches: Iterable[Ints], encode: Callable[[Ints], Halves]) -> Halves:
        """Complete the file, from where it was broken off if it was, and map it into memory.

        Args:
            batches: which rows are written together; the same at every attempt.
            encode: called with the rows of a batch, returns their vectors, (rows, width).
        """
        if not self.is_complete:
            done = self._begin()
            table = self._map(self._partial, "r+")
            for number, rows in enumerate(batches):
                if number < done:
                    continue
                table[rows] = encode(rows)
                if number % _BATCHES_A_NOTE == _BATCHES_A_NOTE - 1:
                    table.flush()
                    self._note.write_text(str(number + 1))
            table.flush()
            with suppress(FileNotFoundError):  # another process was quicker
                os.replace(self._partial, self.path)
            self._note.unlink(missing_ok=True)
        return self.read()

    def _begin(self) -> int:
        """Make the partial file unless it is there; return the batches that it holds."""
        if self._partial.is_file() and self._partial.stat().st_size == self._size:
            with suppress(FileNotFoundError, ValueError):
                return int(self._note.read_text())
            return 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._note.unlink(missing_ok=True)
        with self._partial.open("wb") as file:
            file.write(self._header)
            file.truncate(self._size)
        return 0

    def _map(self, path: Path, mode: Literal["r", "r+"]) -> Table:
        table: Table = np.memmap(path, np.float16, mode, len(self._header), (self.rows, self.width))
        return table
