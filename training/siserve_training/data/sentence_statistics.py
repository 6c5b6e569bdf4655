"""Counts of a corpus of sentences."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from siserve_training.data.corpus import SPLITS
from siserve_training.data.sentence_batches import SentenceOrder
from siserve_training.data.sentences import (
    SentenceCorpus,
    SentenceSet,
    build_sentence_vocabulary,
)

__all__ = ["render_sentences", "sentence_statistics"]

_LONGEST = 202  # with both marks, as the presets have it
_BATCH = 32


def sentence_statistics(folder: Path, skip_bad_lines: bool = False) -> dict[str, Any]:
    """Count a corpus of sentences with the vocabulary that training uses by default.

    Raises:
        CorpusError: if the corpus cannot be read.
    """
    corpus = SentenceCorpus(folder, skip_bad_lines)
    read = {split: corpus.read(split) for split in SPLITS}
    text = build_sentence_vocabulary(read["train"][0], max_tokens=_LONGEST)
    counts, notes = {}, []
    for split, (lines, skipped) in read.items():
        data = SentenceSet.of(lines, text)
        different = corpus.unlike_ptb(split, lines)
        notes += [different] if different else []
        counts[split] = {
            "sentences": len(lines),
            "words": sum(len(line.split()) for line in lines),
            "tokens": data.tokens,
            "longest": max(len(line.split()) for line in lines),
            "unknown_tokens": sum(ids.count(text.tokens.unk) for ids in data.ids),
            "batches_of_32": SentenceOrder(data, _BATCH, 0).steps_per_pass,
            "left_out": data.left_out,
            "skipped_lines": skipped,
        }
    return {"vocabulary": text.size, "splits": counts, "notes": notes}


_NAMES = {
    "sentences": "sentences",
    "words": "words",
    "tokens": "tokens, one end mark a sentence",
    "longest": "words of the longest",
    "unknown_tokens": "<unk>, written or outside the vocabulary",
    "batches_of_32": "batches of one length, at most 32",
    "left_out": f"sentences of more than {_LONGEST - 2} words",
    "skipped_lines": "malformed lines skipped",
}


def render_sentences(statistics: dict[str, Any]) -> str:
    """Write the counts as a table for a person."""
    table = Table("", *SPLITS)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, name in _NAMES.items():
        table.add_row(name, *(f"{statistics['splits'][split][key]:,}" for split in SPLITS))
    page = StringIO()
    console = Console(file=page, width=100)
    console.print(table, markup=False)
    console.print(f"vocabulary {statistics['vocabulary']:,}, marks counted", highlight=False)
    for note in statistics["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    return page.getvalue().rstrip()
