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


_Data = Annotated[Path, typer.Option("--data", help="Folder of the corpus.")]
_Out = Annotated[Path, typer.Option("--out", help="Folder of the results.")]
_WordVectors = Annotated[
    Path | None, typer.Option("--word-vectors", help="GloVe text file to start word vectors from.")
]
_Rows = Annotated[str, typer.Option("--rows", help="Some rows, separated by commas.")]
_Seeds = Annotated[str, typer.Option("--seeds", help="Training seeds, by commas.")]
_Jobs = Annotated[int, typer.Option("--jobs", min=0, help="Runs at a time; 0 chooses.")]
_MaxSteps = Annotated[
    int, typer.Option("--max-steps", min=0, help="End every run early, to try things out.")
]
_Finished = Annotated[
    bool, typer.Option("--finished", help="Run nothing; write the results of what has finished.")
]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="[ROW:]KEY=VALUE", help="Change a key of all rows, or of one."),
]
_Contexts = Annotated[int, typer.Option("--contexts", min=0, help="Contexts answered; 0 for all.")]


@reproduce_app.command("dialog")
def dialog(
    data: _Data,
    out: _Out,
    vectors: Annotated[Path, typer.Option("--vectors", help="GloVe text file for BOW scores.")],
    scale: Annotated[str, typer.Option("--scale", help="full, or small for a CPU.")] = "small",
    word_vectors: _WordVectors = None,
    context_encoder: Annotated[
        str,
        typer.Option("--context-encoder", metavar="hf:DIR", help="A pretrained one: one more row."),
    ] = "",
    rows: _Rows = "",
    seeds: _Seeds = "0",
    jobs: _Jobs = 0,
    max_steps: _MaxSteps = 0,
    contexts: _Contexts = 0,
    finished: _Finished = False,
    changes: _Changes = None,
) -> None:
    """Train and score every row of Table 1; the same command again goes on where it ended.

    Example: siserve reproduce dialog --data corpus --vectors glove.6B.100d.txt --out table
    """
    from siserve_training.reproduce.table import (
        chosen_rows,
        dialog_rows,
        make_plan,
        reproduce_dialog,
        scale_named,
        with_changes,
        with_limits,
    )

    wanted = chosen_rows(rows, dialog_rows(context_encoder))
    plan = make_plan(scale_named(scale), data, out, vectors, word_vectors)
    plan = with_changes(plan, wanted, changes or ())
    limited = with_limits(plan, max_steps, contexts, finished)
    page = reproduce_dialog(limited, wanted, _numbers(seeds), jobs, _say)
    _say(f"results: {page}")


@reproduce_app.command("noise")
def noise(
    data: _Data,
    out: _Out,
    word_vectors: _WordVectors = None,
    rows: _Rows = "",
    seeds: _Seeds = "0",
    jobs: _Jobs = 0,
    max_steps: _MaxSteps = 0,
    contexts: _Contexts = 0,
    finished: _Finished = False,
    changes: _Changes = None,
) -> None:
    """Train si-cvae with its noise in many forms, at small sizes, and measure how much is in use.

    Example: siserve reproduce noise --data corpus --word-vectors glove.6B.100d.txt --out noise
    """
    from siserve_training.reproduce.noise import NOISE_ROWS, NOISE_SCALE, reproduce_noise
    from siserve_training.reproduce.table import chosen_rows, make_plan, with_changes, with_limits

    wanted = chosen_rows(rows, NOISE_ROWS)
    plan = make_plan(NOISE_SCALE, data, out, None, word_vectors)
    plan = with_changes(plan, wanted, changes or ())
    limited = with_limits(plan, max_steps, contexts, finished)
    page = reproduce_noise(limited, wanted, _numbers(seeds), jobs, _say)
    _say(f"results: {page}")


@reproduce_app.command("lm")
def lm(
    data: _Data,
    out: _Out,
    scale: Annotated[str, typer.Option("--scale", help="full, or small for a CPU.")] = "small",
    rows: _Rows = "",
    seeds: _Seeds = "0",
    jobs: _Jobs = 0,
    max_steps: _MaxSteps = 0,
    finished: _Finished = False,
    changes: _Changes = None,
) -> None:
    """Train and measure every row of Table 2; the same command again goes on where it ended.

    Example: siserve reproduce lm --data ptb --seeds 0,1,2 --out table
    """
    from siserve_training.reproduce.language import lm_rows, lm_scale, reproduce_lm
    from siserve_training.reproduce.table import chosen_rows, make_plan, with_changes, with_limits

    chosen = lm_scale(scale)
    wanted = chosen_rows(rows, lm_rows(scale))
    plan = with_changes(make_plan(chosen, data, out, None, None), wanted, changes or ())
    plan = with_limits(plan, max_steps, 0, finished)
    _say(f"results: {reproduce_lm(plan, wanted, _numbers(seeds), jobs, _say)}")


@reproduce_app.command("toy")
def toy(
    out: _Out,
    steps: Annotated[int, typer.Option("--steps", help="T, the updates of a panel.")] = 4000,
    draws: Annotated[int, typer.Option("--draws", help="J; the paper has 100.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything.")] = 0,
    jobs: _Jobs = 0,
) -> None:
    """Draw Figure 2, latents of ten sequences under VAE and SI-VAE, with the numbers under it.

    Example: siserve reproduce toy --out toy
    """
    from siserve_training.reproduce.toy import reproduce_toy

    _say(f"results: {reproduce_toy(out, steps, draws, seed, jobs, _say)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _numbers(listed: str) -> list[int]:
    try:
        numbers = [int(part) for part in listed.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds takes numbers separated by commas, got {listed!r}") from None
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds takes different numbers from 0 on, got {listed!r}")
    return numbers
