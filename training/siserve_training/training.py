"""Start or resume a run: check everything first, then write, then train."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from siserve_training.checkpoint import pointed
from siserve_training.config import TrainConfig
from siserve_training.errors import RunError
from siserve_training.fit import FitResult, fit, planned_steps
from siserve_training.models.text_model import TextModel
from siserve_training.run_folder import RunFolder
from siserve_training.starting import start_from_run
from siserve_training.tasks.task import TaskData, load_task

__all__ = ["resume_run", "start_run"]


def start_run(
    out: Path,
    data: Path,
    config: TrainConfig,
    skip_bad_lines: bool = False,
    overwrite: bool = False,
) -> FitResult:
    """Train a new run; nothing is written before corpus and configuration are known to be good.

    Raises:
        ConfigError, CorpusError, RunError: before anything is written.
        DivergenceError: from the loop.
    """
    run = RunFolder(out)
    run.check_free(overwrite)
    task = load_task(config.task)
    processes = PartialState(cpu=not torch.cuda.is_available())
    with _in_turn(processes, config):
        corpus: TaskData = task.load(data, config, skip_bad_lines, None)
    model, started_from = _build_model(config, corpus)
    facts = task.facts(data, corpus)
    processes.wait_for_everyone()  # all have seen the folder free before one of them fills it
    if processes.is_main_process:
        run.create(config, corpus.text, facts, corpus.encoder, started_from)
        for note in corpus.notes:
            print(f"note: {note}", file=sys.stderr)
        print(
            f"{task.summary(corpus)}, "
            f"vocabulary {corpus.text.size}, {model.num_parameters():,} parameters, "
            f"{planned_steps(config, corpus)} steps",
            file=sys.stderr,
            flush=True,
        )
    processes.wait_for_everyone()
    return fit(config, corpus, model, run)


def resume_run(
    out: Path, data: Path, overrides: dict[str, Any], skip_bad_lines: bool = False
) -> FitResult:
    """Go on with a run from its last checkpoint.

    Raises:
        RunError: if there is no run, or the corpus is not the one it was started on.
        ConfigError: if the configuration is asked to change.
    """
    run = RunFolder(out)
    config = run.resumed_config(overrides)
    task = load_task(config.task)
    processes = PartialState(cpu=not torch.cuda.is_available())
    with _in_turn(processes, config):
        corpus: TaskData = task.load(data, config, skip_bad_lines, run)
    facts, before = task.facts(data, corpus), run.corpus()
    for split in ("train", "valid"):
        if facts[split] != before[split]:
            raise RunError(
                f"{data} is not the corpus of {out}: {split} has {facts[split]}, the run saw "
                f"{before[split]}; pass the folder that the run was started with"
            )
    begins = pointed(run.checkpoints, "last") is None
    return fit(config, corpus, _build_model(config, corpus, begins)[0], run)


def _build_model(
    config: TrainConfig, corpus: TaskData, begins: bool = True
) -> tuple[TextModel, dict[str, Any] | None]:
    """Make the model as it is before the first step, and tell what run its weights come from.

    Args:
        config: of the run.
        corpus: its data.
        begins: whether the run has no checkpoint, whose weights would be taken anyway.
    """
    model = load_task(config.task).build_model(config, corpus)
    if not (begins and config.start_from):
        return model, None
    return model, start_from_run(model, corpus.text, Path(config.start_from))


def _in_turn(processes: PartialState, config: TrainConfig) -> AbstractContextManager[None]:
    """Let a machine's first process go first where it computes vectors that the others read."""
    if config.pretrained_folder is None or config.tune_context_encoder:
        return nullcontext()
    turn: AbstractContextManager[None] = processes.local_main_process_first()
    return turn
