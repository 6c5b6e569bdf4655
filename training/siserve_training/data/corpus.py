"""Dialog corpora: JSON lines in, dialogs out, every malformed line named.

A line is one dialog, an object with ``utts``: a list of ``[speaker, text, ...]``. Topic and
speakers' fields are optional (Zhao et al. 2017's release of Switchboard has them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siserve_training.data.lines import parsed_lines, refuse
from siserve_training.errors import CorpusError

__all__ = ["SPLITS", "Dialog", "DialogCorpus", "Profile", "Utterance", "read_dialogs"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Utterance:
    """What one speaker said in one turn."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Profile:
    """A speaker as Zhao et al. feed him: four numbers, each 0 where unknown.

    `education` keeps the corpus's codes 1 to 3 (and 9 for unknown) divided by 3.
    """

    age: float
    education: float
    is_male: float
    is_female: float

    def numbers(self) -> tuple[float, float, float, float]:
        """Return age/100, education/3, is_male, is_female."""
        return (self.age / 100, self.education / 3, self.is_male, self.is_female)


@dataclass(frozen=True)
class Dialog:
    """A conversation: its utterances in order, and what is known of it."""

    utterances: tuple[Utterance, ...]
    topic: str | None = None
    profiles: dict[str, Profile] = field(default_factory=dict)


@dataclass(frozen=True)
class DialogCorpus:
    """A folder with train.jsonl, valid.jsonl and test.jsonl.

    Args:
        folder: the folder.
        skip_bad_lines: count malformed lines instead of refusing the corpus.

    Raises:
        CorpusError: if the folder or one of its splits is missing.
    """

    folder: Path
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        """Check that every split is there before anything is read or written."""
        if not self.folder.is_dir():
            raise CorpusError(
                f"{self.folder}: no such folder; expected one with "
                "train.jsonl, valid.jsonl and test.jsonl"
            )
        missing = [f"{name}.jsonl" for name in SPLITS if not self.path(name).is_file()]
        if missing:
            raise CorpusError(
                f"{self.folder}: {', '.join(missing)} missing; a dialog corpus needs "
                "train.jsonl, valid.jsonl and test.jsonl"
            )

    def path(self, split: str) -> Path:
        """Return the file of a split."""
        return self.folder / f"{split}.jsonl"

    def read(self, split: str) -> tuple[list[Dialog], int]:
        """Return the dialogs of a split and the number of lines that were skipped.

        Raises:
            CorpusError: if a line is malformed (unless `skip_bad_lines`) or no dialog is left.
        """
        skipped: list[CorpusError] = []
        on_bad_line = skipped.append if self.skip_bad_lines else refuse
        dialogs = list(read_dialogs(self.path(split), on_bad_line))
        if not dialogs:
            raise CorpusError(
                f"{self.path(split)}: no dialog in it; expected one JSON object a line"
            )
        return dialogs, len(skipped)


def read_dialogs(
    path: Path, on_bad_line: Callable[[CorpusError], None] = refuse
) -> Iterator[Dialog]:
    """Read dialogs lazily from a JSON-lines file in UTF-8.

    Args:
        path: the file.
        on_bad_line: called with a `CorpusError` for each malformed line; raises it by default.
    """
    yield from parsed_lines(path, parse_dialog, on_bad_line)


def parse_dialog(line: bytes) -> Dialog:
    """Parse one line; ValueError says in words what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.object[error.start]:#04x})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict) or not isinstance(record.get("utts"), list):
        raise ValueError("expected an object with a list `utts`")
    utterances = tuple(_utterance(item, place) for place, item in enumerate(record["utts"]))
    if len(utterances) < 2:
        raise ValueError(f"expected at least 2 utterances, got {len(utterances)}")
    speakers = dict.fromkeys(utterance.speaker for utterance in utterances)
    profiles = {name: parse_profile(record[name]) for name in speakers if name in record}
    return Dialog(
        utterances,
        topic=_bare(record.get("topic")) or None,
        profiles={name: profile for name, profile in profiles.items() if profile is not None},
    )


def _utterance(item: Any, place: int) -> Utterance:
    if not (
        isinstance(item, list) and len(item) >= 2 and all(isinstance(x, str) for x in item[:2])
    ):
        raise ValueError(f"utts[{place}]: expected [speaker, text, ...] with two strings")
    if not item[1].strip():
        raise ValueError(f"utts[{place}]: the text is empty")
    return Utterance(item[0], item[1])


def parse_profile(fields: Any) -> Profile | None:
    """Read a speaker's fields; blanks and quotes around strings are stripped, as they must be.

    With them on, the peers' test for the bare word FEMALE fails for every speaker of the release.
    """
    if not isinstance(fields, dict):
        return None
    sex = _bare(fields.get("sex")).upper()
    return Profile(
        age=_number(fields.get("age")),
        education=_number(fields.get("education")),
        is_male=float(sex == "MALE"),
        is_female=float(sex == "FEMALE"),
    )


def _bare(value: Any) -> str:
    return str(value if value is not None else "").strip(" \t\"'")


def _number(value: Any) -> float:
    try:
        return float(_bare(value) or 0)
    except ValueError:
        return 0.0
