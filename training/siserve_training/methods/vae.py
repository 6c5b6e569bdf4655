"""VAE of sentences (Bowman et al. 2016), and what its relatives share with it.

Presets tell sizes; schedules and aggressive training are config keys.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.methods.bound import (
    adam_of_both_sides,
    clip_all,
    draws_loss,
    one_update,
    shared_rate,
)
from siserve_training.methods.method import LossReport, Method
from siserve_training.models.language import LanguageModel, LanguageModelConfig
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["METHOD", "vae_method"]


def _loss(
    model: nn.Module, batch: PreparedBatch, config: TrainConfig, moment: Moment, part: str
) -> LossReport:
    draws = model(batch.pairs, batch.noise, batch.seed, batch.sample, moment.beta)
    return draws_loss(draws, config, moment.beta)


def vae_method(**sizes: str) -> Method:
    """Make a method of sentence VAEs.

    Args:
        sizes: name of the model's size to the key of the configuration that sets it, for noise,
            components and refine_steps; those not named stay off.
    """

    def model_config(
        config: TrainConfig, vocabulary: int, features: Features
    ) -> LanguageModelConfig:
        chosen: dict[str, Any] = {"noise": 0, **{k: getattr(config, v) for k, v in sizes.items()}}
        return LanguageModelConfig(
            **chosen,
            vocabulary=vocabulary,
            word_embedding=config.word_embedding,
            encoder_hidden=config.utterance_hidden,
            decoder_hidden=config.decoder_hidden,
            latent=config.latent,
            post_hidden=config.post_hidden,
            logvar_clamp=config.logvar_clamp,
            noise_entry=config.noise_entry,
            noise_gain=config.noise_gain,
            start_logvar=config.start_logvar,
            init_bound=config.init_bound,
            word_dropout=config.decoder_dropout,
            output_dropout=config.output_dropout,
            refine_rate=config.refine_rate,
            refine_momentum=config.refine_momentum,
            refine_words=config.refine_words,
        )

    return Method(
        model_class=LanguageModel,
        model_config=model_config,
        loss=_loss,
        updates=one_update,
        optimizers=adam_of_both_sides,
        learning_rate=shared_rate,
        clip=clip_all,
    )


METHOD = vae_method()
