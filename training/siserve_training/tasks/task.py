"""What a task is to the loop: a corpus made ready, batches of it, a loss to validate by.

A task's file defines TASK; it is imported only when the task is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from siserve.bundle.text import Text

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features, Ints
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.models.draws import NoiseWidths
from siserve_training.models.text_model import TextModel
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.prepared import PreparedBatch, StepNoise

__all__ = ["BatchWish", "Task", "TaskData", "load_task"]

_TASKS = {"dialog": "siserve_training.tasks.dialog", "lm": "siserve_training.tasks.lm"}


class TaskData(Protocol):
    """A corpus made ready, whatever its task."""

    @property
    def text(self) -> Text:
        """Vocabulary and tokeniser, built on the training split."""

    @property
    def features(self) -> Features:
        """What the model is told besides words."""

    @property
    def train(self) -> Sized:
        """What is trained on."""

    @property
    def valid(self) -> Sized:
        """What is held out."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the corpus, a line each."""

    @property
    def encoder(self) -> SentenceFolder | None:
        """A pretrained encoder, None for the model's own."""


@dataclass(frozen=True)
class BatchWish:
    """How a training batch is to be made.

    Attributes:
        widths: of the model's noise.
        noise: of the whole batch.
        num_aux: K.
        sample_from: size of the vocabulary that a sampled softmax draws from; 0 for the exact one.
        rank: number of this process.
        world: number of processes.
    """

    widths: NoiseWidths
    noise: StepNoise
    num_aux: int
    sample_from: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Task:
    """A task as the loop sees it. `data` is what its own `load` returned.

    Attributes:
        load: (folder, config, skip_bad_lines, run that is resumed or None) to a corpus made ready.
        facts: (folder, data) to what a run notes of its corpus.
        summary: (data) to a phrase on its size.
        build_model: (config, data) to a model, its weights drawn from the configuration's seed.
        batches_per_pass: (config, data) to the batches of a pass, in parts where the last is short.
        training_batches: (config, data, first, inner) to (number, items) of each batch from number
            `first` on, without end; inner steps have an order of their own.
        prepare: (config, data, items, wish) to a batch, or a process's share of it, with its noise.
        validate: (model, config, data, device) to numbers of the valid split, `score` among them.
        latent_information: (model, config, data, device) to the mutual information on the valid
            split, in nats.
    """

    load: Callable[[Path, TrainConfig, bool, RunFolder | None], Any]
    facts: Callable[[Path, Any], dict[str, Any]]
    summary: Callable[[Any], str]
    build_model: Callable[[TrainConfig, Any], TextModel]
    batches_per_pass: Callable[[TrainConfig, Any], float]
    training_batches: Callable[[TrainConfig, Any, int, bool], Iterator[tuple[int, Ints]]]
    prepare: Callable[[TrainConfig, Any, Ints, BatchWish], PreparedBatch]
    validate: Callable[[TextModel, TrainConfig, Any, torch.device], dict[str, float]]
    latent_information: Callable[[TextModel, TrainConfig, Any, torch.device], float]


def load_task(name: str) -> Task:
    """Return a task; a configuration has checked its name."""
    task: Task = import_module(_TASKS[name]).TASK
    return task
