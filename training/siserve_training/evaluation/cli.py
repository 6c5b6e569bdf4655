"""`siserve compare`: which of two dumps of responses is better, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare"]


def compare(
    a: Annotated[Path, typer.Argument(help="A dump that siserve evaluate --dump wrote.")],
    b: Annotated[Path, typer.Argument(help="Another one, over the same contexts.")],
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", help="Word vectors, GloVe's text or .npy; adds bow_* scores."),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Draws of the paired bootstrap.")
    ] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare the responses of two models, with 95 % intervals of every difference.

    Example: siserve compare gaussian.jsonl semi-implicit.jsonl --vectors glove.6B.100d.txt
    """
    from siserve_training.evaluation.comparison import compare_dumps

    comparison = compare_dumps(a, b, vectors, resamples)
    print(json.dumps(comparison.values()) if as_json else comparison.render())
