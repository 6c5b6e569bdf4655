"""`siserve reproduce`: the paper's tables, run anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from siserve_training.errors import ConfigError

__all__ = ["reproduce_app"]

reproduce_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Run the paper's tables anew."
)


@reproduce_app.callback()
def _reproduce() -> None:
    """Run the paper's tables anew."""


@reproduce_app.command("dialog")
def dialog(
    data: Annotated[Path, typer.Option("--data", help="Folder of the corpus.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")],
    vectors: Annotated[Path, typer.Option("--vectors", help="GloVe text file for BOW scores.")],
    scale: Annotated[str, typer.Option("--scale", help="full, or small for a CPU.")] = "small",
    word_vectors: Annotated[
        Path | None,
        typer.Option("--word-vectors", help="GloVe text file to start word vectors from."),
    ] = None,
    context_encoder: Annotated[
        str,
        typer.Option("--context-encoder", metavar="hf:DIR", help="A pretrained one: one more row."),
    ] = "",
    rows: Annotated[str, typer.Option("--rows", help="Some rows, separated by commas.")] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Training seeds, by commas.")] = "0",
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Runs at a time; 0 chooses.")] = 0,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=0, help="End every run early, to try things out.")
    ] = 0,
    contexts: Annotated[
        int, typer.Option("--contexts", min=0, help="Contexts answered; 0 for all.")
    ] = 0,
) -> None:
    """Train and score every row of Table 1; the same command again goes on where it ended.

    Example: siserve reproduce dialog --data corpus --vectors glove.6B.100d.txt --out table
    """
    from siserve_training.reproduce.table import (
        chosen_rows,
        make_plan,
        reproduce_dialog,
        with_limits,
    )

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    wanted = chosen_rows(rows, context_encoder)
    plan = with_limits(make_plan(scale, data, out, vectors, word_vectors), max_steps, contexts)
    page = reproduce_dialog(plan, wanted, _numbers(seeds), jobs, say)
    say(f"results: {page}")


def _numbers(listed: str) -> list[int]:
    try:
        numbers = [int(part) for part in listed.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds takes numbers separated by commas, got {listed!r}") from None
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds takes different numbers from 0 on, got {listed!r}")
    return numbers
