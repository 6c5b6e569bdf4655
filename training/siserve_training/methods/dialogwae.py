"""DialogWAE of Gu et al. 2019: an autoencoder, two generators and their critic take turns.

A step is one update of the autoencoder and one of the generators on its batch, then `critic_steps`
updates of the critic, the first on the same batch and the others each on a fresh one. The three
losses of a batch share its noise, and the last two its lack of dropout.

An epoch of the authors' code shows the autoencoder one batch in five, the others going to the
critic alone; a pass here is one in which the autoencoder sees every pair. Their 40 epochs and their
decay every 10 are 8 and 2 passes.

Several processes do not train as one does: batch normalisation and the critic's penalty take each
process's rows alone, the mean over tokens is one for each process, and so are masks of dropout.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.methods.bound import shared_rate
from siserve_training.methods.method import LossReport, Method, Update, encoder_sizes
from siserve_training.models.dialogwae import DialogWAE, DialogWAEConfig
from siserve_training.models.text_model import TextModel
from siserve_training.objectives.schedules import Moment
from siserve_training.objectives.wasserstein import critic_gap, gradient_penalty, nll_per_token
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["METHOD", "dialogwae_method"]

AUTOENCODER, GENERATORS, CRITIC = "autoencoder", "generators", "critic"

#: Parts of the model that each optimiser moves, by the first part of a parameter's name.
_POSTERIOR = ("posterior_net", "posterior_generator")
_ENCODERS = ("topic_embedding", "sentence_encoder", "utterance_encoder", "context_encoder")
_CODERS = ("embedding", *_ENCODERS, "decoder")
_PARTS = {
    AUTOENCODER: (*_CODERS, *_POSTERIOR),
    GENERATORS: (*_POSTERIOR, "prior_net", "prior_generator"),
    CRITIC: ("critic",),
}


def wasserstein_loss(
    model: nn.Module, batch: PreparedBatch, config: TrainConfig, moment: Moment, part: str
) -> LossReport:
    """Return the loss of a part: nats per token, or how far the critic's scores lie apart."""
    found = model(batch.pairs, batch.noise, part, batch.seed, batch.sample)
    tokens = batch.pairs.response_lengths.to(batch.noise.eps_z.device)
    count = int(tokens.sum())
    if part == AUTOENCODER:
        loss = nll_per_token(found, tokens)
        return LossReport(loss, {"rec": -found.detach().mean()}, count)
    gap = critic_gap(found.of_prior, found.of_posterior)
    if part == GENERATORS:
        return LossReport(gap, {"generator_gap": gap.detach()}, count)
    penalty = gradient_penalty(found.gradient, config.gp_per_sample)
    measured = {"critic_gap": gap.detach(), "penalty": penalty.detach()}
    return LossReport(config.gp_weight * penalty - gap, measured, count)


def updates_in_turn(config: TrainConfig, moment: Moment) -> tuple[Update, ...]:
    """Step the autoencoder, the generators, then the critic several times."""
    critic = [
        Update(CRITIC, (CRITIC,), fresh_batch=config.critic_fresh_batches and place > 0)
        for place in range(config.critic_steps)
    ]
    return (Update(AUTOENCODER, (AUTOENCODER,)), Update(GENERATORS, (GENERATORS,)), *critic)


def three_optimizers(config: TrainConfig, model: TextModel) -> dict[str, torch.optim.Optimizer]:
    """Make SGD or Adam for the autoencoder, RMSprop for both sides of the game.

    The posterior's networks stand in the first two.
    """
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    coders = kinds[config.autoencoder_optimizer]
    return {
        AUTOENCODER: coders(_of(model, _PARTS[AUTOENCODER]), lr=config.learning_rate),
        GENERATORS: torch.optim.RMSprop(_of(model, _PARTS[GENERATORS]), lr=config.generator_rate),
        CRITIC: torch.optim.RMSprop(_of(model, _PARTS[CRITIC]), lr=config.critic_rate),
    }


def rate_of_each(config: TrainConfig, optimizer: str, moment: Moment) -> float:
    """Return the rate: the autoencoder's falls by steps, the others' stay."""
    if optimizer == GENERATORS:
        return config.generator_rate
    if optimizer == CRITIC:
        return config.critic_rate
    falls = moment.passes_done // config.rate_decay_passes
    return shared_rate(config, optimizer, moment) * config.rate_decay**falls


def clip_coders(model: nn.Module, config: TrainConfig, part: str) -> float:
    """Clip the encoders' and the decoder's gradients in the autoencoder's update, else nothing."""
    if part == AUTOENCODER:
        return float(nn.utils.clip_grad_norm_(_of(model, _CODERS), config.clip_norm))
    gradients = [p.grad for p in _of(model, _PARTS[part]) if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def dialogwae_method(components: str = "") -> Method:
    """Make a method of the family.

    Args:
        components: key of the configuration that says how many Gaussians the prior's noise is
            made of; "" for one.
    """

    def model_config(config: TrainConfig, vocabulary: int, features: Features) -> DialogWAEConfig:
        return DialogWAEConfig(
            **encoder_sizes(config, vocabulary, features),
            components=getattr(config, components) if components else 1,
            gumbel_temperature=config.gumbel_temperature,
            critic_hidden=config.critic_hidden,
            encoder_dropout=config.encoder_dropout,
            decoder_dropout=config.decoder_dropout,
            utterance_dropout=config.utterance_dropout,
            keep_start_mark=config.keep_start_mark,
            logvar_clamp=config.logvar_clamp,
        )

    return Method(
        model_class=DialogWAE,
        model_config=model_config,
        loss=wasserstein_loss,
        updates=updates_in_turn,
        optimizers=three_optimizers,
        learning_rate=rate_of_each,
        clip=clip_coders,
    )


def _of(model: nn.Module, parts: Iterable[str]) -> list[nn.Parameter]:
    chosen = set(parts)
    return [p for name, p in model.named_parameters() if name.split(".")[0] in chosen]


METHOD = dialogwae_method()
