"""HRED: maximum likelihood of the response given its context, one Adam."""

from __future__ import annotations

from torch import nn

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.methods.bound import adam_of_both_sides, clip_all, shared_rate
from siserve_training.methods.method import LossReport, Method, Update, encoder_sizes
from siserve_training.models.hred import HRED, HREDConfig
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["METHOD"]


def _model_config(config: TrainConfig, vocabulary: int, features: Features) -> HREDConfig:
    sizes = {**encoder_sizes(config, vocabulary, features), "latent": 1}
    return HREDConfig(
        **sizes,
        decoder_hidden=config.decoder_hidden,
        encoder_dropout=config.encoder_dropout,
        context_dropout=config.context_dropout,
        decoder_dropout=config.decoder_dropout,
    )


def _loss(
    model: nn.Module, batch: PreparedBatch, config: TrainConfig, moment: Moment, part: str
) -> LossReport:
    rec = -model(batch.pairs, batch.seed, batch.sample).mean()
    return LossReport(rec, {"rec": rec.detach()}, int(batch.pairs.response_lengths.sum()))


def _updates(config: TrainConfig, moment: Moment) -> tuple[Update, ...]:
    return (Update("likelihood", ("rest",)),)


METHOD = Method(
    model_class=HRED,
    model_config=_model_config,
    loss=_loss,
    updates=_updates,
    optimizers=adam_of_both_sides,
    learning_rate=shared_rate,
    clip=clip_all,
)
