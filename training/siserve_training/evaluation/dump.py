"""Responses on disk, so that anybody's metric code can score them again.

``NAME.jsonl`` holds a JSON object a line, one for each context: ``context`` (list of
"speaker: text"), ``reference``, ``reference_ids`` (with ``<s>`` and ``</s>``), ``samples`` (texts)
and ``sample_ids`` (raw rows, all of one width). ``NAME.words.json`` is the vocabulary, a list whose
places are the ids; ``NAME.vectors.npy``, where there are embedding scores, the table they rest on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from siserve_training.errors import ResponseError
from siserve_training.evaluation.responses import ResponseSet, in_range

__all__ = [
    "read_dump",
    "read_vectors_table",
    "vectors_path",
    "words_path",
    "write_dump",
    "write_vectors",
]


def words_path(path: Path) -> Path:
    """Return the file of the vocabulary of a dump."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.words.json")


def vectors_path(path: Path) -> Path:
    """Return the file of the word vectors that a dump was scored with."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.vectors.npy")


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_dump(path: Path, responses: ResponseSet) -> None:
    """Write a set, its vocabulary first; each file is whole or absent."""
    with _whole(words_path(path)) as file:
        file.write((json.dumps(responses.words) + "\n").encode())
    with _whole(path) as file:
        for number, rows in enumerate(responses.samples.tolist()):
            record = {
                "context": responses.contexts[number],
                "reference": responses.reference_texts[number],
                "reference_ids": responses.references[number],
                "samples": responses.sample_texts[number],
                "sample_ids": rows,
            }
            file.write((json.dumps(record) + "\n").encode())


def read_dump(path: Path) -> ResponseSet:
    """Read what `write_dump` wrote.

    Raises:
        ResponseError: if a file is missing or a line malformed, with the line and what is wrong.
    """
    words = _read_words(words_path(path), path)
    contexts, references, samples = [], [], []
    shape: tuple[int, int] | None = None
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = _parse(line, len(words))
                found = (len(record["sample_ids"]), len(record["sample_ids"][0]))
                if shape is not None and found != shape:
                    raise ValueError(
                        f"expected {shape[0]} samples of {shape[1]} ids as on line 1, "
                        f"got {found[0]} of {found[1]}"
                    )
            except ValueError as error:
                raise ResponseError(f"{path}:{number}: {error}; write the dump again") from None
            shape = found
            contexts.append(tuple(record["context"]))
            references.append(tuple(record["reference_ids"]))
            samples.append(record["sample_ids"])
    if not samples:
        raise ResponseError(f"{path}: empty; expected one JSON object a line")
    try:
        rows = np.array(samples, dtype=np.int64)  # (N, R, W)
        return ResponseSet(tuple(contexts), tuple(references), rows, words)
    except ResponseError as error:
        raise ResponseError(f"{path}: {error}") from None


def _opened(path: Path) -> BinaryIO:
    if not path.is_file():
        raise ResponseError(f"{path}: no such file; expected a dump of responses")
    return path.open("rb")


def _read_words(path: Path, dump: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ResponseError(f"{path}: no such file; expected the vocabulary of {dump} beside it")
    try:
        words = json.loads(path.read_bytes())
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ResponseError(f"{path}: expected a JSON list of words; write the dump again")
    return tuple(words)


def _parse(line: bytes, size: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.object[error.start]:#04x})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError("expected an object")
    for key, is_right, what in (
        ("context", _are_texts(record.get("context")), "a list of strings"),
        ("reference", isinstance(record.get("reference"), str), "a string"),
        ("reference_ids", _are_ids(record.get("reference_ids"), size), f"ids below {size}"),
        ("samples", _are_texts(record.get("samples")), "a list of strings"),
        ("sample_ids", _are_rows(record.get("sample_ids"), size), f"rows of ids below {size}"),
    ):
        if not is_right:
            state = "another value" if key in record else "nothing"
            raise ValueError(f"{key}: expected {what}, got {state}")
    if len({len(row) for row in record["sample_ids"]}) > 1:
        raise ValueError("sample_ids: expected rows of one width")
    if len(record["samples"]) != len(record["sample_ids"]):
        raise ValueError(
            f"expected as many samples as sample_ids, got {len(record['samples'])} and "
            f"{len(record['sample_ids'])}"
        )
    return record


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_ids(value: Any, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(item) is int for item in value)
        and in_range(value, size)
    )


def _are_rows(value: Any, size: int) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_are_ids(row, size) for row in value)


def write_vectors(path: Path, vectors: npt.NDArray[np.float64]) -> None:
    """Write a table of word vectors, (V, D), in numpy's format; whole or absent."""
    with _whole(path) as file:
        np.save(file, vectors, allow_pickle=False)


def read_vectors_table(path: Path) -> npt.NDArray[np.float64]:
    """Read what `write_vectors` wrote.

    Raises:
        ResponseError: if it is no table of numbers.
    """
    with _opened(path) as file:
        try:
            table = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ResponseError(f"{path}: not an array of numpy's format ({error})") from None
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f":
        raise ResponseError(f"{path}: expected a table of floats, one row for each word")
    return table.astype(np.float64)
