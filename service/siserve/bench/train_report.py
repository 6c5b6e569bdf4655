"""`siserve bench train`: training's own measurement, run in its room and shown here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from siserve.bench.decode_report import number, plain_table, render_machine
from siserve.bench.variants import why_no_torch
from siserve.bundle.errors import SiserveError, UsageError

__all__ = ["measure_training", "show_train"]

_MODULE = "siserve_training.bench.train_step"


def measure_training(data: Path, options: Mapping[str, int]) -> dict[str, Any]:
    """Measure.

    Args:
        data: folder of the corpus.
        options: of the measurement, by their names.

    Raises:
        UsageError: if training's libraries are not installed.
        SiserveError: if it fails; the message is its own.
    """
    missing = why_no_torch()
    if missing:
        raise UsageError(missing)
    told = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    ran = subprocess.run(
        [sys.executable, "-m", _MODULE, "--data", str(data), *told], capture_output=True, text=True
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines()
        raise SiserveError(said[-1] if said else f"{_MODULE} ended with code {ran.returncode}")
    measured: dict[str, Any] = json.loads(ran.stdout)
    return measured


def show_train(console: Console, result: Mapping[str, Any]) -> None:
    """Print a result as people read it."""
    console.print(render_machine(result["facts"]))
    for name, value in result["about"].items():
        console.print(Text(f"{name}: {value}", style="dim"))
    table = plain_table(["ours in"], ["pairs/s", "research's pairs/s", "x", "losses differ by"])
    for each in result["results"]:
        table.add_row(
            each["precision"],
            number(each["pairs_per_s"], 1),
            number(each["research_pairs_per_s"], 1),
            number(each["ratio"], 2),
            f"{each['loss_error']:.1e}",
        )
    console.print(table)
    for why in result["left_out"]:
        console.print(Text(f"left out: {why}", style="yellow"))
