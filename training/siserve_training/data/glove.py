"""Reader of word vectors in GloVe's text format, ``word v1 v2 ...`` a line."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siserve_training.errors import CorpusError

__all__ = ["read_vectors"]


def read_vectors(path: Path, wanted: Container[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Read the vectors of some words, each (D,); words that the file lacks are left out.

    Args:
        path: the file, UTF-8.
        wanted: words to keep; none has a blank in it.

    Raises:
        CorpusError: if the file is missing or a wanted word's line is malformed.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected word vectors in GloVe's text format")
    found: dict[str, npt.NDArray[np.float64]] = {}
    width = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            word, _, numbers = line.decode("utf-8", errors="replace").partition(" ")
            if not width:
                width = len(numbers.split())
                if width < 2:  # word2vec's header: how many words, how wide
                    width = 0
                    continue
            if word in wanted:
                entries = numbers.split()
                if len(entries) <= width:  # more: an entry that is several words
                    found[word] = _parse(entries, width, f"{path}:{number}: after {word!r}")
    return found


def _parse(entries: list[str], width: int, place: str) -> npt.NDArray[np.float64]:
    try:
        vector = np.array(entries, dtype=np.float64)
    except ValueError:
        raise CorpusError(f"{place} expected {width} numbers, got {entries[:3]}") from None
    if len(vector) != width or not np.isfinite(vector).all():
        raise CorpusError(
            f"{place} expected {width} finite numbers, got {len(vector)} entries; "
            "fetch the file again"
        )
    return vector
