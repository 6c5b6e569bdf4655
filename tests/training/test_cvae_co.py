"""CVAE-CO: which loss trains what, what the decoder is told, the schedule between r and G(z)."""

from __future__ import annotations

import math

import pytest
import torch
from siserve_training.config import TrainConfig
from siserve_training.errors import ConfigError
from siserve_training.methods import load_method
from siserve_training.methods.cvae_co import rebuilt_rate
from siserve_training.models.cvae_co import CVAECO
from siserve_training.models.draws import as_uniform
from siserve_training.nets.collaborative import SoftplusHead
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.dialog import build_model, load_dialog_data
from siserve_training.tasks.prepared import TRAINING, StepNoise, prepare_batch, training_batches

from .conftest import TINY

METHOD = load_method("cvae-co")
LATENT = ("posterior_net", "rebuild_net")
JOINT = ("likelihood", "latent")


def config(**changes) -> TrainConfig:
    return TrainConfig.from_values(
        {**TINY, "method": "cvae-co", "num_aux": 0, "schedule": "constant", **changes}
    )


def at(step: int, per_pass: int = 10) -> Moment:
    return Moment(step, 1000, per_pass, 1.0, 0)


@pytest.fixture(scope="module")
def batch_and_model(corpus):
    chosen = config()
    data = load_dialog_data(corpus, chosen, skip_bad_lines=False)
    model = build_model(chosen, data)
    assert isinstance(model, CVAECO)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    number, responses = next(training_batches(data.train, chosen, 0))
    batch = prepare_batch(
        data.train,
        responses[:7],
        chosen,
        model.config.widths,
        StepNoise.of(0, TRAINING, number),
        0,
        sample_from=0,
        hide=False,
    )
    return batch, model


def gradients(model, loss):
    """The gradient of every parameter by name, None where there is none."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def of_part(batch, model, part, chosen=None, moment=None):
    return METHOD.loss(model, batch, chosen or config(), moment or at(1), part)


def test_the_likelihood_leaves_posterior_and_g_alone_and_trains_all_else(batch_and_model):
    batch, model = batch_and_model
    chosen = config(co_ramp=0)
    for name, grad in gradients(model, of_part(batch, model, "likelihood", chosen).loss).items():
        assert (grad is None) == name.startswith(LATENT), name


def test_the_latent_loss_trains_prior_posterior_and_g_alone(batch_and_model):
    batch, model = batch_and_model
    for name, grad in gradients(model, of_part(batch, model, "latent").loss).items():
        assert (grad is not None) == name.startswith((*LATENT, "prior_net")), name


def test_both_gradients_at_once_are_the_sum_of_each(batch_and_model):
    batch, model = batch_and_model
    one, other, both = (
        gradients(model, of_part(batch, model, part).loss)
        for part in ("likelihood", "latent", "likelihood+latent")
    )
    for name, grad in both.items():
        parts = [g for g in (one[name], other[name]) if g is not None]
        assert torch.allclose(grad, sum(parts), rtol=1e-4, atol=1e-5), name
    assert one["prior_net.mean.bias"] is not None and other["prior_net.mean.bias"] is not None


def test_encoders_get_the_gradient_of_the_plain_loss_through_z(batch_and_model):
    """Weights of posterior and G stand still; what passes through them does not."""
    batch, model = batch_and_model
    encoded = model.encode(batch.pairs)
    q = model.posterior(encoded)
    z = q.expand_draws().rsample(batch.noise.eps_z)
    plain = -model.log_p_x(batch.pairs, encoded.c, z).mean() + q.kl(model.prior(encoded.c)).mean()
    expected = gradients(model, plain)
    report = of_part(batch, model, "likelihood", config(co_ramp=0))
    assert report.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, grad in gradients(model, report.loss).items():
        if not name.startswith(LATENT):
            assert torch.allclose(grad, expected[name], rtol=1e-3, atol=1e-5), name


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_every_step_is_told_r_or_g_of_z_as_its_own_number_says(batch_and_model, rate):
    batch, model = batch_and_model
    likelihood, _ = model(batch.pairs, batch.noise, rate, ("likelihood",))
    encoded = model.encode(batch.pairs)
    z = model.posterior(encoded).expand_draws().rsample(batch.noise.eps_z)
    ids = batch.pairs.utterances[batch.pairs.response]
    is_rebuilt = as_uniform(batch.noise.eps_lam) < rate  # (B, J, T)
    shares = is_rebuilt.float().mean()
    assert float(shares) == pytest.approx(rate, abs=0.1)
    for pair in range(len(ids)):
        c, r = encoded.c[pair : pair + 1], encoded.response[pair : pair + 1]
        for draw in range(z.shape[1]):
            rebuilt = model.rebuild(z[pair : pair + 1, draw])
            choice = is_rebuilt[pair, draw]
            hidden = model.decoder.gru.hidden_size
            state = model.decoder.first_state(c, rebuilt if choice[0] else r)
            total = 0.0
            for step in range(int(batch.pairs.response_lengths[pair])):
                v = rebuilt if choice[step + 1] else r
                state = torch.cat([state[:, :hidden], v, c], dim=-1)
                logits, state = model.step(ids[pair, step : step + 1], state)
                total += float(torch.log_softmax(logits, -1)[0, ids[pair, step + 1]])
            assert float(likelihood.log_p_x[pair, draw]) == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_at_rate_1_training_scores_as_evaluation_does(batch_and_model):
    batch, model = batch_and_model
    encoded = model.encode(batch.pairs)
    z = model.draw_posterior(encoded, batch.noise).z
    evaluated = model.log_p_x(batch.pairs, encoded.c, z)
    for rate, agrees in ((1.0, True), (0.0, False)):
        likelihood, _ = model(batch.pairs, batch.noise, rate, ("likelihood",))
        assert torch.allclose(likelihood.log_p_x, evaluated, atol=1e-4) == agrees


def test_the_kl_pulls_in_the_likelihood_only_above_the_threshold(batch_and_model):
    batch, model = batch_and_model
    free, held = (of_part(batch, model, "likelihood", config(free_nats=n)) for n in (1e6, 0.0))
    assert free.loss.item() == pytest.approx(float(free.parts["rec"]))
    assert held.loss.item() == pytest.approx(float(held.parts["rec"] + held.parts["kl"]))
    of_free, of_held = (gradients(model, report.loss) for report in (free, held))
    assert not of_free["prior_net.mean.bias"].any() and of_held["prior_net.mean.bias"].any()
    pulled = of_part(batch, model, "latent", config(free_nats=1e6))
    assert pulled.loss.item() == pytest.approx(
        float(pulled.parts["kl"] + 0.5 * pulled.parts["distance"])
    )


@torch.no_grad()
def test_the_latent_loss_is_the_kl_and_half_the_squared_distance(batch_and_model):
    batch, model = batch_and_model
    encoded = model.encode(batch.pairs)
    q, p = model.posterior(encoded), model.prior(encoded.c)
    kl = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(d.mu, d.logvar.mul(0.5).exp()) for d in (q, p))
    ).sum(-1)
    z = q.mu.unsqueeze(1) + q.logvar.mul(0.5).exp().unsqueeze(1) * batch.noise.eps_z
    rebuilt = torch.tanh(z @ model.rebuild_net.weight.T + model.rebuild_net.bias)
    distance = (encoded.response.unsqueeze(1) - rebuilt).square().sum(-1)
    expected = kl.mean() + 0.5 * distance.mean()
    assert float(of_part(batch, model, "latent").loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_rate_rises_from_0_to_1_over_the_ramp():
    rates = [rebuilt_rate(config(co_ramp=40), at(step)) for step in range(1, 61)]
    assert rates[:41] == pytest.approx([step / 40 for step in range(41)])
    assert set(rates[40:]) == {1.0}
    assert rebuilt_rate(config(co_ramp=0), at(1)) == 1.0


def test_turns_go_pass_by_pass_and_only_those_of_the_likelihood_count():
    chosen, counted = config(co_updates="alternate", co_ramp=25), 0
    for step in range(1, 61):
        moment = at(step)
        assert rebuilt_rate(chosen, moment) == pytest.approx(min(1.0, counted / 25)), step
        (update,) = METHOD.updates(chosen, moment)
        assert update.part == ("latent" if (step - 1) // 10 % 2 else "likelihood")
        counted += update.part == "likelihood"
    (update,) = METHOD.updates(config(), at(11))
    assert tuple(update.part.split("+")) == JOINT


def test_gradients_are_clipped_element_by_element(batch_and_model):
    batch, model = batch_and_model
    (1e3 * of_part(batch, model, "likelihood+latent").loss).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    norm = METHOD.clip(model, config(clip_norm=2.0), "likelihood+latent")
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in before.values())))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name].clamp(-2, 2)), name
    model.zero_grad(set_to_none=True)


def test_variances_are_a_tenth_of_a_softplus():
    head = SoftplusHead(4, 6, 3)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    _, logvar = head(features)
    hidden = torch.tanh(head.second(torch.tanh(head.first(features))))
    expected = 0.1 * torch.log1p(torch.exp(head.variance(hidden)))
    assert torch.allclose(logvar.exp(), expected)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_extreme_variances_have_finite_logarithms_and_gradients(bias):
    for clamp in (0.0, 10.0):
        head = SoftplusHead(4, 6, 3, clamp)
        with torch.no_grad():
            head.variance.bias.fill_(bias)
        mu, logvar = head(torch.ones(2, 4))
        (mu.sum() + logvar.sum()).backward()
        assert torch.isfinite(logvar).all()
        assert not clamp or logvar.abs().max().item() <= clamp
        for parameter in head.parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def test_unknown_turns_are_refused():
    with pytest.raises(ConfigError, match="joint, alternate"):
        config(co_updates="both")
