"""CVAE of Zhao et al. 2017: Gaussian posterior and prior; with `bow_weight` it is CVAE+BOW.

Presets tell the two names apart; schedules are config keys.
"""

from __future__ import annotations

from typing import Any

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.methods.bound import (
    adam_of_both_sides,
    bound_loss,
    clip_all,
    one_update,
    shared_rate,
)
from siserve_training.methods.method import Method, encoder_sizes
from siserve_training.models.cvae import CVAE, CVAEConfig

__all__ = ["METHOD", "cvae_method"]


def cvae_method(**sizes: str) -> Method:
    """Make a method of the CVAE family.

    Args:
        sizes: name of the model's size to the key of the configuration that sets it, for noise,
            components and prior_noise; those not named stay off.
    """

    def model_config(config: TrainConfig, vocabulary: int, features: Features) -> CVAEConfig:
        chosen: dict[str, Any] = {"noise": 0, **{k: getattr(config, v) for k, v in sizes.items()}}
        return CVAEConfig(
            **chosen,
            **encoder_sizes(config, vocabulary, features),
            post_hidden=config.post_hidden,
            prior_hidden=config.prior_hidden,
            decoder_hidden=config.decoder_hidden,
            bow_hidden=config.bow_hidden if config.bow_weight else 0,
            logvar_clamp=config.logvar_clamp,
            noise_entry=config.noise_entry,
            noise_gain=config.noise_gain,
            start_logvar=config.start_logvar,
        )

    return Method(
        model_class=CVAE,
        model_config=model_config,
        loss=bound_loss,
        updates=one_update,
        optimizers=adam_of_both_sides,
        learning_rate=shared_rate,
        clip=clip_all,
    )


METHOD = cvae_method()
