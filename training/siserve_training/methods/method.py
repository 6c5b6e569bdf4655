"""What a method is: how its model is built, which updates a training step takes, and its loss.

The defaults are those of a conditional VAE trained by one optimiser on one bound. A method that
trains otherwise (an adversary, alternating losses) names its own functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.models.text_model import TextModel
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["LossReport", "Method", "Update", "encoder_sizes"]


@dataclass(frozen=True)
class LossReport:
    """The loss of a batch and what it is made of, means over pairs in nats.

    Attributes:
        loss: what is minimised, differentiable.
        parts: by name; what the log shows.
        tokens: predicted tokens of the batch.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    tokens: int


@dataclass(frozen=True)
class Update:
    """One gradient step of a training step.

    Attributes:
        part: which loss; a method's own names.
        optimizers: which optimisers step.
        fresh_batch: whether it takes a batch of its own, not that of the training step.
    """

    part: str
    optimizers: tuple[str, ...]
    fresh_batch: bool = False


ModelConfigOf = Callable[[TrainConfig, int, Features], Any]  # the model class's own configuration
LossOf = Callable[[nn.Module, PreparedBatch, TrainConfig, Moment, str], LossReport]
OptimizersOf = Callable[[TrainConfig, TextModel], dict[str, torch.optim.Optimizer]]
RateOf = Callable[[TrainConfig, str, Moment], float]
ClipOf = Callable[[nn.Module, TrainConfig, str], float]


@dataclass(frozen=True)
class Method:
    """A system as training sees it.

    Attributes:
        model_class: of its model.
        model_config: (config, vocabulary, features) to the model's sizes.
        loss: (model, batch, config, moment, part) to the loss; the model may be wrapped.
        updates: (config, moment) to the updates of a training step, in order.
        optimizers: (config, model) to optimisers by name.
        learning_rate: (config, name of the optimiser, moment) to its rate.
        clip: (model, config, part) clips gradients in place and returns their norm.
    """

    model_class: type[Any]  # of TextModel
    model_config: ModelConfigOf
    loss: LossOf
    updates: Callable[[TrainConfig, Moment], tuple[Update, ...]]
    optimizers: OptimizersOf
    learning_rate: RateOf
    clip: ClipOf


def encoder_sizes(config: TrainConfig, vocabulary: int, features: Features) -> dict[str, int]:
    """Return the sizes that every dialog model has."""
    return {
        "vocabulary": vocabulary,
        "word_embedding": config.word_embedding,
        "utterance_hidden": config.utterance_hidden,
        "context_hidden": config.context_hidden,
        "topics": len(features.topics),
        "topic_embedding": config.topic_embedding,
        "profile": features.profile,
        "latent": config.latent,
    }
