"""Two dumps over the same contexts: every metric of both, and how sure the difference is."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from siserve_training.errors import ResponseError
from siserve_training.evaluation.bootstrap import PairedDifference, paired_bootstrap
from siserve_training.evaluation.dump import read_dump, read_vectors_table
from siserve_training.evaluation.embedding import load_word_vectors
from siserve_training.evaluation.responses import ResponseSet
from siserve_training.evaluation.scores import ResponseScores, score_responses

__all__ = ["Comparison", "check_same_contexts", "compare_dumps"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of two sets and their paired differences.

    Attributes:
        names: of the two dumps.
        contexts, samples: N and R.
        a, b: scores.
        differences: of the metrics that are means over contexts, b - a.
        resamples: behind the intervals.
        vectors: name of the file of word vectors; None without embedding scores.
    """

    names: tuple[str, str]
    contexts: int
    samples: int
    a: ResponseScores
    b: ResponseScores
    differences: dict[str, PairedDifference]
    resamples: int
    vectors: str | None

    def values(self) -> dict[str, Any]:
        """Return what `siserve compare --json` prints; null where there is no interval."""
        metrics: dict[str, dict[str, float | None]] = {}
        for name, a in self.a.corpus.items():
            found = self.differences.get(name)
            metrics[name] = {
                "a": a,
                "b": self.b.corpus[name],
                "difference": self.b.corpus[name] - a,
                "low": found.low if found else None,
                "high": found.high if found else None,
                "p_value": found.p_value if found else None,
            }
        return {
            "a": self.names[0],
            "b": self.names[1],
            "contexts": self.contexts,
            "samples": self.samples,
            "resamples": self.resamples,
            "vectors": self.vectors,
            "sacrebleu_signature": self.a.sacrebleu_signature,
            "metrics": metrics,
        }

    def render(self) -> str:
        """Write the metrics as a table for a person."""
        table = Table(
            "metric",
            "A",
            "B",
            "B - A",
            "95 % interval",
            "p",
            title=f"A {self.names[0]}, B {self.names[1]}: {self.contexts:,} contexts, "
            f"{self.samples} samples each, {self.resamples:,} resamples",
            title_justify="left",
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for name, row in self.values()["metrics"].items():
            interval, p_value = "", ""
            if row["low"] is not None:
                interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
                p_value = f"{row['p_value']:.4f}"
            measured = (f"{row['a']:.4f}", f"{row['b']:.4f}", f"{row['difference']:+.4f}")
            table.add_row(name, *measured, interval, p_value)
        page = StringIO()
        console = Console(file=page, width=110)
        console.print(table)
        vectors = f"word vectors: {self.vectors}" if self.vectors else "no word vectors: no bow_*"
        notes = f"{vectors}; sacrebleu: {self.a.sacrebleu_signature}"
        console.print(notes, markup=False, highlight=False, soft_wrap=True)
        return page.getvalue().rstrip()


def compare_dumps(a: Path, b: Path, vectors: Path | None, resamples: int) -> Comparison:
    """Score two dumps and bootstrap their differences.

    Args:
        a, b: from `write_dump`.
        vectors: GloVe's text format, or a table as `write_vectors` writes it (``.npy``).
        resamples: of the bootstrap.

    Raises:
        ResponseError, CorpusError: if a file is malformed or the contexts differ.
    """
    sets = read_dump(a), read_dump(b)
    check_same_contexts(*sets)
    first, second = (score_responses(found, _table(vectors, found)) for found in sets)
    return Comparison(
        names=(str(a), str(b)),
        contexts=len(sets[0]),
        samples=sets[0].samples.shape[1],
        a=first,
        b=second,
        differences=paired_bootstrap(first, second, resamples),
        resamples=resamples,
        vectors=str(vectors) if vectors else None,
    )


def _table(path: Path | None, responses: ResponseSet) -> npt.NDArray[np.float64] | None:
    if path is None:
        return None
    if path.suffix == ".npy":
        return read_vectors_table(path)
    return load_word_vectors(path, responses.words)


def check_same_contexts(a: ResponseSet, b: ResponseSet) -> None:
    """Refuse two sets whose contexts, references or numbers of samples differ.

    Raises:
        ResponseError: with the first difference.
    """
    if len(a) != len(b):
        raise ResponseError(
            f"the dumps hold {len(a)} and {len(b)} contexts; compare dumps of the same split"
        )
    for number, (ours, theirs) in enumerate(zip(a.contexts, b.contexts, strict=True), start=1):
        if ours != theirs or a.reference_texts[number - 1] != b.reference_texts[number - 1]:
            what = "contexts" if ours != theirs else "references"
            raise ResponseError(
                f"the {what} of the dumps differ on line {number}; compare dumps of the same "
                "split and vocabulary"
            )
    draws = a.samples.shape[1], b.samples.shape[1]
    if draws[0] != draws[1]:
        raise ResponseError(
            f"the dumps hold {draws[0]} and {draws[1]} samples a context, and recall and "
            "inter-distinct rest on that number; draw the same number for both"
        )
