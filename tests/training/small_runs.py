"""Runs and models of random weights, away from the start where many systems agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from siserve_training.checkpoint import LoopState, save_checkpoint
from siserve_training.config import TrainConfig
from siserve_training.models.dialog_model import DialogModel
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.dialog import DialogData, build_model, load_dialog_data

from .conftest import TINY

Change = Callable[[Any], None]


def small_config(**changes: Any) -> TrainConfig:
    return TrainConfig.from_values({**TINY, **changes})


def random_model(config: TrainConfig, data: DialogData, change: Change | None = None) -> Any:
    """A model with weights of a trained one's size; `change` is called on it without gradients."""
    model: DialogModel = build_model(config, data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape, generator=generator))
        model.embedding.weight[0] = 0
        if change is not None:
            change(model)
    return model.train(False)


def write_run(folder: Path, corpus: Path, change: Change | None = None, **changes: Any) -> Path:
    """A run folder with one checkpoint, as training leaves it."""
    config = small_config(**changes)
    data = load_dialog_data(corpus, config, skip_bad_lines=False)
    run = RunFolder(folder)
    facts = {"folder": "corpus", "topics": data.features.topics, "profile": data.features.profile}
    run.create(config, data.text, facts)
    model = random_model(config, data, change)
    save_checkpoint(run.checkpoints, model, {}, LoopState(step=3), ("best", "last"))
    return folder
