"""CVAE-CO of Shen et al. 2018: two losses, each for a group of its own, that share the prior.

L1 = -log p(x|v,c) + KL * 1[KL > free_nats] trains all but posterior and G;
L2 = KL + 0.5 |r - G(z)|^2 trains prior, posterior and G. The KL is the closed form's batch mean.
`co_updates` says whether a step takes both gradients or passes take turns.
"""

from __future__ import annotations

import torch
from torch import nn

from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.methods.bound import shared_rate
from siserve_training.methods.method import LossReport, Method, Update, encoder_sizes
from siserve_training.models.cvae_co import CVAECO, CVAECOConfig, LatentFit, Likelihood
from siserve_training.models.text_model import TextModel
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.prepared import PreparedBatch

__all__ = ["METHOD", "rebuilt_rate"]

_JOINT = "likelihood+latent"


def _model_config(config: TrainConfig, vocabulary: int, features: Features) -> CVAECOConfig:
    return CVAECOConfig(
        **encoder_sizes(config, vocabulary, features),
        post_hidden=config.post_hidden,
        prior_hidden=config.prior_hidden,
        decoder_hidden=config.decoder_hidden,
        logvar_clamp=config.logvar_clamp,
        response_tokens=config.max_utterance_tokens,
    )


def rebuilt_rate(config: TrainConfig, moment: Moment) -> float:
    """Return the probability of G(z) in place of r: 0 to 1 over `co_ramp` updates on L1."""
    before = moment.step - 1
    if config.co_updates == "alternate":
        passes, steps = divmod(before, moment.steps_per_pass)
        before = moment.steps_per_pass * ((passes + 1) // 2) + (0 if passes % 2 else steps)
    return min(1.0, before / config.co_ramp) if config.co_ramp else 1.0


def _loss(
    model: nn.Module, batch: PreparedBatch, config: TrainConfig, moment: Moment, part: str
) -> LossReport:
    rate = rebuilt_rate(config, moment)
    likelihood, fit = model(batch.pairs, batch.noise, rate, tuple(part.split("+")), batch.sample)
    loss = batch.noise.eps_z.new_zeros(())
    measured = {"rate": loss + rate}
    if likelihood is not None:
        loss = loss + _first_loss(likelihood, config, moment, measured)
    if fit is not None:
        loss = loss + _second_loss(fit, measured)
    detached = {name: value.detach() for name, value in measured.items()}
    return LossReport(loss, detached, int(batch.pairs.response_lengths.sum()))


def _first_loss(
    likelihood: Likelihood, config: TrainConfig, moment: Moment, measured: dict[str, torch.Tensor]
) -> torch.Tensor:
    rec, kl = -likelihood.log_p_x.mean(), likelihood.kl.mean()
    measured |= {"rec": rec, "kl": kl}
    return rec + moment.beta * kl * (kl.detach() > config.free_nats)


def _second_loss(fit: LatentFit, measured: dict[str, torch.Tensor]) -> torch.Tensor:
    kl, distance = fit.kl.mean(), fit.distance.mean()
    measured |= {"kl": kl, "distance": distance}
    return kl + 0.5 * distance


def _updates(config: TrainConfig, moment: Moment) -> tuple[Update, ...]:
    """Step both groups; parameters that a loss leaves alone have no gradient and stay."""
    part = _JOINT
    if config.co_updates == "alternate":
        part = "latent" if moment.passes_done % 2 else "likelihood"
    return (Update(part, ("latent", "rest")),)


def _optimizers(config: TrainConfig, model: TextModel) -> dict[str, torch.optim.Optimizer]:
    assert isinstance(model, CVAECO)
    latent = model.latent_parameters()
    of_latent = {id(parameter) for parameter in latent}
    rest = [p for p in model.parameters() if id(p) not in of_latent]
    return {
        name: torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
        for name, parameters in (("rest", rest), ("latent", latent))
    }


def _clip(model: nn.Module, config: TrainConfig, part: str) -> float:
    """Clip each element of the gradients to +-`clip_norm`; return the norm that they had."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    nn.utils.clip_grad_value_(parameters, config.clip_norm)
    return float(norm)


METHOD = Method(
    model_class=CVAECO,
    model_config=_model_config,
    loss=_loss,
    updates=_updates,
    optimizers=_optimizers,
    learning_rate=shared_rate,
    clip=_clip,
)
