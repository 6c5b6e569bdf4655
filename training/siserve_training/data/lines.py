"""Corpora are read a line at a time; a line that is wrong is told with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from siserve_training.errors import CorpusError

__all__ = ["parsed_lines", "refuse"]

Parsed = TypeVar("Parsed")


def refuse(error: CorpusError) -> None:
    """Take a malformed line for the end of the reading."""
    raise error


def parsed_lines(
    path: Path, parse: Callable[[bytes], Parsed], on_bad_line: Callable[[CorpusError], None]
) -> Iterator[Parsed]:
    """Parse the lines of a file lazily; blank ones are none.

    Args:
        path: the file.
        parse: of one line; its ValueError says what is wrong with the line.
        on_bad_line: called with a `CorpusError` for each malformed line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse(line)
            except ValueError as error:
                on_bad_line(
                    CorpusError(f"{path}:{number}: {error}; mend the line or pass --skip-bad-lines")
                )
