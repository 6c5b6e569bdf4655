"""Corpora of sentences: a sentence a line, in tokens that blanks divide (Mikolov's Penn Treebank).

Files are ``ptb.{train,valid,test}.txt``, or ``{train,valid,test}.txt`` for a corpus of one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import END, PAD, START, UNK, Text

from siserve_training.data.corpus import SPLITS
from siserve_training.data.lines import parsed_lines, refuse
from siserve_training.errors import CorpusError

__all__ = [
    "PTB_COUNTS",
    "SentenceCorpus",
    "SentenceSet",
    "build_sentence_vocabulary",
    "holds_sentences",
    "read_sentences",
]

Ints = npt.NDArray[np.int64]

#: Sentences, and tokens with one end mark a sentence, of Mikolov's release.
PTB_COUNTS = {"train": (42_068, 929_589), "valid": (3_370, 73_760), "test": (3_761, 82_430)}
_PREFIXES = ("ptb.", "")
_MARKS = frozenset({PAD, START, END})


def holds_sentences(folder: Path) -> bool:
    """Tell whether a folder looks like a corpus of sentences."""
    return any((folder / f"{prefix}train.txt").is_file() for prefix in _PREFIXES)


@dataclass(frozen=True)
class SentenceCorpus:
    """A folder with a text file for each split.

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
        wanted = "ptb.train.txt, ptb.valid.txt and ptb.test.txt (or the same without `ptb.`)"
        if not self.folder.is_dir():
            raise CorpusError(f"{self.folder}: no such folder; expected one with {wanted}")
        missing = [self.path(name).name for name in SPLITS if not self.path(name).is_file()]
        if missing:
            raise CorpusError(
                f"{self.folder}: {', '.join(missing)} missing; a corpus of sentences needs {wanted}"
            )

    @property
    def prefix(self) -> str:
        """What the files' names begin with."""
        found = (p for p in _PREFIXES if (self.folder / f"{p}train.txt").is_file())
        return next(found, _PREFIXES[0])

    def path(self, split: str) -> Path:
        """Return the file of a split."""
        return self.folder / f"{self.prefix}{split}.txt"

    def read(self, split: str) -> tuple[list[str], int]:
        """Return the sentences of a split and the number of lines that were skipped.

        Raises:
            CorpusError: if a line is malformed (unless `skip_bad_lines`) or no sentence is left.
        """
        skipped: list[CorpusError] = []
        on_bad_line = skipped.append if self.skip_bad_lines else refuse
        sentences = list(read_sentences(self.path(split), on_bad_line))
        if not sentences:
            raise CorpusError(f"{self.path(split)}: no sentence in it; expected one a line")
        return sentences, len(skipped)

    def unlike_ptb(self, split: str, sentences: Sequence[str]) -> str | None:
        """Compare a split that has PTB's name with the counts of Mikolov's release.

        Returns:
            What differs, in words; None where nothing does or the name is another.
        """
        found = (len(sentences), sum(len(line.split()) + 1 for line in sentences))
        if not self.prefix or found == PTB_COUNTS[split]:
            return None
        return (
            f"{self.path(split).name} has {found[0]:,} sentences and {found[1]:,} tokens with "
            f"their end marks, Mikolov's release {PTB_COUNTS[split][0]:,} and "
            f"{PTB_COUNTS[split][1]:,}: results do not compare with published ones"
        )


def read_sentences(
    path: Path, on_bad_line: Callable[[CorpusError], None] = refuse
) -> Iterator[str]:
    """Read sentences lazily from a text file in UTF-8; blank lines are none.

    Args:
        path: the file.
        on_bad_line: called with a `CorpusError` for each malformed line; raises it by default.
    """
    yield from parsed_lines(path, parse_sentence, on_bad_line)


def parse_sentence(line: bytes) -> str:
    """Return a line's tokens, one blank between them; ValueError says what is wrong with it."""
    try:
        words = line.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.object[error.start]:#04x})") from None
    marks = sorted(_MARKS.intersection(words))
    if marks:
        raise ValueError(f"{', '.join(marks)} among its words; sentences get their marks here")
    return " ".join(words)


def build_sentence_vocabulary(
    sentences: Sequence[str], size: int = 10_000, max_tokens: int = 40
) -> Text:
    """Build the vocabulary on a training split.

    ``<pad>`` and ``<unk>``, then the `size` most frequent tokens, ``<s>`` and ``</s>`` counted
    among them; ties keep the order of first sight. PTB gives 10,002.
    """
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update((START, *sentence.split(), END))
    del counts[UNK]
    words = [word for word, _ in counts.most_common(size)]
    words += [mark for mark in (START, END) if mark not in words]
    return Text.from_words([PAD, UNK, *words], max_tokens, split_at="blanks")


@dataclass(frozen=True)
class SentenceSet:
    """A split in ids.

    Attributes:
        ids: of each sentence, with ``<s>`` and ``</s>``.
        lengths: of each, both marks counted, (N,).
        left_out: sentences that were too long.
    """

    ids: tuple[tuple[int, ...], ...]
    lengths: Ints
    left_out: int

    @classmethod
    def of(cls, sentences: Sequence[str], text: Text) -> SentenceSet:
        """Tokenise sentences; those of more than the text's `max_tokens` are left out."""
        kept = [line for line in sentences if len(line.split()) + 2 <= text.max_tokens]
        ids = tuple(text.encode_utterances(kept))
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        return cls(ids, lengths, len(sentences) - len(kept))

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Predicted tokens: all after ``<s>``, ``</s>`` included."""
        return int((self.lengths - 1).sum())
