"""Training on one bound: L_{beta,K} with the bag-of-words loss and free nats, Adam, one update."""

from __future__ import annotations

import math

import torch
from torch import nn

from siserve_training.config import TrainConfig
from siserve_training.distributions import DiagonalNormal
from siserve_training.errors import ConfigError
from siserve_training.methods.method import LossReport, Update
from siserve_training.models.draws import Draws
from siserve_training.models.text_model import TextModel
from siserve_training.objectives.schedules import Moment
from siserve_training.objectives.surrogate import latent_bound
from siserve_training.tasks.prepared import PreparedBatch

__all__ = [
    "BOTH_SIDES",
    "adam_of_both_sides",
    "bound_loss",
    "clip_all",
    "draws_loss",
    "one_update",
    "shared_rate",
]

BOTH_SIDES = ("inference", "rest")


def draws_loss(draws: Draws, config: TrainConfig, beta: float) -> LossReport:
    """Negate L_{beta,K}, add the bag-of-words loss, stop the KL's pull below `free_nats`."""
    parts = latent_bound(
        draws.z, draws.own, draws.posterior, draws.prior, draws.log_p_x, beta, draws.log_weights
    )
    rec, kl = -parts.log_p_x.mean(), parts.kl.mean()
    if config.kl_form == "closed-form":
        if not isinstance(draws.prior, DiagonalNormal):
            raise ConfigError("kl_form closed-form needs a Gaussian posterior and a Gaussian prior")
        kl = draws.own.kl(draws.prior).mean()
    if config.free_nats:
        loss = rec + beta * kl.clamp(min=config.free_nats)
    elif config.kl_form == "closed-form":
        loss = rec + beta * kl
    else:
        loss = -parts.bound.mean()
    measured = {"rec": rec, "kl": kl, "b_k": parts.gain.mean()}
    if draws.log_p_bow is not None:
        bow = -draws.log_p_bow.mean()
        loss = loss + config.bow_weight * bow
        measured["bow"] = bow
    detached = {name: value.detach() for name, value in measured.items()}
    return LossReport(loss, detached, int(draws.tokens.sum()))


def bound_loss(
    model: nn.Module, batch: PreparedBatch, config: TrainConfig, moment: Moment, part: str
) -> LossReport:
    """Draw latents and score them."""
    draws = model(batch.pairs, batch.noise, config.bow_weight > 0, batch.sample)
    return draws_loss(draws, config, moment.beta)


def one_update(config: TrainConfig, moment: Moment) -> tuple[Update, ...]:
    """Step both sides once on the batch."""
    return (Update("bound", BOTH_SIDES),)


def adam_of_both_sides(config: TrainConfig, model: TextModel) -> dict[str, torch.optim.Optimizer]:
    """Make one Adam for q(z|x,c) and one for the rest, so that either may step alone."""
    of_inference = {id(parameter) for parameter in model.inference_parameters()}
    groups = {
        "inference": [p for p in model.parameters() if id(p) in of_inference],
        "rest": [p for p in model.parameters() if id(p) not in of_inference],
    }
    return {
        name: torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
        for name, parameters in groups.items()
        if parameters
    }


def shared_rate(config: TrainConfig, optimizer: str, moment: Moment) -> float:
    """Return the rate: constant, then falling linearly to 0 over the last `decay_share`.

    With `cosine_cycles` it falls by a cosine to 0 within each cycle of beta, as the paper's first
    author's earlier code does.
    """
    rate = config.learning_rate
    if config.cosine_cycles:
        period = moment.horizon / config.cycles
        rate *= 0.5 * (1 + math.cos(math.pi * ((moment.step - 1) % period) / period))
    left = (moment.horizon - moment.step + 1) / moment.horizon
    return rate * (min(1.0, left / config.decay_share) if config.decay_share else 1.0)


def clip_all(model: nn.Module, config: TrainConfig, part: str) -> float:
    """Clip all gradients by their global norm."""
    return float(nn.utils.clip_grad_norm_(list(model.parameters()), config.clip_norm))
