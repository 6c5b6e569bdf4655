"""Every method x schedule x aggressive mode of language models: kill -9, resume, measure.

Each of the 36 runs of 200 steps starts in a process of its own, is killed without warning once it
is past half of them, goes on from its last checkpoint in another process, and is then evaluated.
What is checked: the resumed run begins at a checkpoint and not at 0, takes all its steps, every
number that it logs is finite, and the evaluation warns of nothing impossible.

    python tests/benchmarks/check_lm_grid.py --data DIR [--steps 200] [--only sa-vae] [--tiny]

Sizes are those of the small presets; --tiny cuts them down for a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from siserve_training.config import TrainConfig, preset_values
from siserve_training.evaluation.language import (
    LanguageWish,
    measure_language,
    open_language_run,
)
from siserve_training.methods import LM_METHODS
from siserve_training.run_folder import RunFolder
from siserve_training.training import resume_run, start_run

SCHEDULES = ("constant", "monotonic", "cyclical")
AGGRESSIVE = ("off", "fixed:2", "adaptive")
#: Of --tiny; all words of the corpus stay words.
TINY = {
    "max_utterance_tokens": 14,
    "word_embedding": 16,
    "utterance_hidden": 16,
    "decoder_hidden": 16,
    "latent": 8,
    "num_refine_steps": 2,
    "frequent_words": 200,
    "sampled_words": 100,
    "exact_share": 0.0,
    "batch_size": 8,
}


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    method: str
    schedule: str
    aggressive: str

    @property
    def name(self) -> str:
        """Name of its folder and line."""
        return f"{self.method} {self.schedule} {self.aggressive}"

    def config(self, options: argparse.Namespace) -> TrainConfig:
        """Return the small preset with the cell's modes, its schedules over the steps asked for."""
        values = {
            **preset_values(f"lm-{self.method}-small"),
            **(TINY if options.tiny else {}),
            "schedule": self.schedule,
            "aggressive": self.aggressive,
            "max_steps": options.steps,
            "save_every": max(1, options.steps // 4),
            "eval_every": options.steps,
            "valid_pairs": 100,
            "log_every": 5,
        }
        return TrainConfig.from_values(values)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Read what a run has logged; a line that is still being written is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def started(work: Callable[[], Any]) -> BaseProcess:
    """Do something in a process of its own, which has the imports of this one already."""

    def quietly() -> None:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        work()

    process = get_context("fork").Process(target=quietly)
    process.start()
    return process


def killed_halfway(cell: Cell, run: Path, options: argparse.Namespace) -> int:
    """Start a run and kill it past half of its steps; return the step that it had logged.

    Raises:
        AssertionError: if it ends before that.
    """
    process = started(lambda: start_run(run, options.data, cell.config(options)))
    step = 0
    while step < options.steps // 2:
        assert process.is_alive(), f"ended with {process.exitcode} at step {step}"
        time.sleep(0.2)
        step = max((line["step"] for line in lines_of(run)), default=0)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return step


def resumed(run: Path, options: argparse.Namespace) -> int:
    """Go on with a run to its end; return the step of the checkpoint that it went on from.

    Raises:
        AssertionError: if there was no checkpoint, or it does not end well.
    """
    began = RunFolder(run).checkpoint("last").name
    process = started(lambda: resume_run(run, options.data, {}))
    process.join()
    assert process.exitcode == 0, f"--resume ended with {process.exitcode}"
    lines = lines_of(run)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == options.steps, f"steps {steps[-3:]}"
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers), "a logged number is not finite"
    return int("".join(filter(str.isdigit, began)))


def measured(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a run on a part of the test split.

    Raises:
        AssertionError: if numbers contradict each other or are not finite.
    """
    subject = open_language_run(run, options.data, "test", "last")
    values = measure_language(subject, LanguageWish(sentences=50, samples=20, noise_draws=200))
    assert not values["warnings"], values["warnings"]
    for name in ("kl", "perplexity", "iw_perplexity", "mutual_information"):
        assert math.isfinite(values[name]), f"{name} is {values[name]}"
    return values


def cells(only: str) -> Iterator[Cell]:
    """Yield the runs whose names have every word of `only` in them."""
    for method, schedule, aggressive in product(LM_METHODS, SCHEDULES, AGGRESSIVE):
        cell = Cell(method, schedule, aggressive)
        if all(word in cell.name.split() for word in only.split()):
            yield cell


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--steps", type=int, default=200, help="updates of a run")
    parser.add_argument("--only", default="", help='runs with these words, like "sa-vae off"')
    parser.add_argument("--tiny", action="store_true", help="sizes of a shared machine")
    return parser.parse_args()


def main() -> None:
    """Do all runs; exit 1 if one fails."""
    options = parse_options()
    torch.set_num_threads(1)
    failed = 0
    for cell in cells(options.only):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            try:
                at = killed_halfway(cell, run, options)
                began = resumed(run, options)
                values = measured(run, options)
            except AssertionError as error:
                failed += 1
                print(f"FAILED {cell.name}: {error}", flush=True)
                continue
        print(
            f"ok {cell.name}: killed past step {at}, resumed at {began}, {options.steps} done; KL "
            f"{values['kl']:.3f}, MI {values['mutual_information']:.3f}, PPL "
            f"{values['perplexity']:.1f}, IW-PPL {values['iw_perplexity']:.1f}; "
            f"{time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
