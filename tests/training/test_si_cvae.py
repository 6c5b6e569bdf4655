"""The SI-CVAE: shapes, gradients, noise, and the same numbers however a batch is made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from siserve_training.config import TrainConfig
from siserve_training.methods.bound import draws_loss
from siserve_training.models.cvae import CVAE, CVAEConfig
from siserve_training.models.draws import Noise, NoiseWidths
from siserve_training.tasks.dialog import build_model, load_dialog_data
from siserve_training.tasks.prepared import StepNoise, prepare_batch, training_batches

from .conftest import TINY


@pytest.fixture(scope="module")
def config():
    return TrainConfig.from_values({**TINY, "bow_weight": 1.0})


@pytest.fixture(scope="module")
def data(corpus, config):
    return load_dialog_data(corpus, config, skip_bad_lines=False)


def make(config, data) -> Any:
    """Build a model whose parts may be looked at."""
    return build_model(config, data)


@pytest.fixture
def model(config, data):
    return make(config, data)


def prepared(data, config, rows=slice(None), sample_from=0, num_aux=3, **changes):
    _, responses = next(training_batches(data.train, config, 0))
    noise = StepNoise.of(config.seed, 0, 0)
    values = {"sample_from": sample_from, "hide": False} | changes
    widths = NoiseWidths(config.noise, config.latent)
    return prepare_batch(data.train, responses[rows], config, widths, noise, num_aux, **values)


def test_shapes_name_batch_draws_and_auxiliaries(model, data, config):
    batch = prepared(data, config)
    draws = model(batch.pairs, batch.noise, bow=True)
    assert draws.z.shape == draws.own.mu.shape == (12, 2, 5)
    assert draws.posterior.aux.mu.shape == (12, 3, 5) and draws.prior.mu.shape == (12, 1, 5)
    assert draws.log_p_x.shape == draws.log_p_bow.shape == (12, 2)
    assert draws.tokens.tolist() == batch.pairs.response_lengths.tolist()


def test_every_parameter_gets_a_gradient(model, data, config):
    batch = prepared(data, config)
    draws_loss(model(batch.pairs, batch.noise, True), config, 0.7).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_likelihoods_equal_a_step_by_step_decoding(model, data, config):
    batch = prepared(data, config)
    draws = model(batch.pairs, batch.noise)
    c = model.encode(batch.pairs).c
    for pair, draw in ((0, 0), (5, 1), (11, 0)):
        ids = batch.pairs.utterances[batch.pairs.response[pair]]
        state = model.decoder.first_state(c[pair : pair + 1], draws.z[pair, draw].unsqueeze(0))
        log_p = 0.0
        for now, following in zip(ids, ids[1:], strict=False):
            if following == 0:
                break
            logits, state = model.decoder.step(model.embedding(now.reshape(1)), state)
            log_p += torch.log_softmax(logits, -1)[0, following].item()
        assert draws.log_p_x[pair, draw].item() == pytest.approx(log_p, rel=1e-5)


def test_a_pair_does_not_depend_on_its_neighbours_in_the_batch(model, data, config):
    whole, alone = prepared(data, config), prepared(data, config, slice(4, 5))
    own = Noise(*(eps[4:5] for eps in vars(whole.noise).values()))
    together = model(whole.pairs, whole.noise)
    apart = model(alone.pairs, own)
    torch.testing.assert_close(apart.z[0], together.z[4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart.log_p_x[0], together.log_p_x[4], atol=1e-4, rtol=1e-5)


def test_two_processes_share_the_batch_of_one(model, data, config):
    whole = prepared(data, config)
    together = model(whole.pairs, whole.noise)
    loss = 0.0
    for rank in (0, 1):
        part = prepared(data, config, rank=rank, world=2)
        draws = model(part.pairs, part.noise)
        torch.testing.assert_close(draws.z, together.z[rank::2], atol=1e-5, rtol=1e-5)
        loss += draws_loss(draws, config, 0.5).loss.item() * part.share / 2
    assert loss == pytest.approx(draws_loss(together, config, 0.5).loss.item(), rel=1e-5)


def test_the_noise_moves_the_posterior_and_only_the_posterior(model, data, config):
    batch = prepared(data, config)
    once = model(batch.pairs, batch.noise)
    other = dataclasses.replace(batch.noise, eps_lam=batch.noise.eps_lam.flip(0))
    again = model(batch.pairs, other)
    assert not torch.allclose(once.own.mu, again.own.mu)
    torch.testing.assert_close(once.prior.mu, again.prior.mu)


def test_a_tanh_layer_makes_the_parameters_non_affine_in_the_noise(data, config):
    for post_hidden, is_affine in ((0, True), (8, False)):
        values = {**TINY, "post_hidden": post_hidden}
        model = make(TrainConfig.from_values(values), data)
        encoded = model.encode(prepared(data, config).pairs)
        eps = torch.randn(12, 1, 4, generator=torch.Generator().manual_seed(0))
        line = torch.cat([-eps, torch.zeros_like(eps), eps], dim=1)
        mu = model.conditional(encoded, line).mu
        middle = (mu[:, 0] + mu[:, 2]) / 2
        assert torch.allclose(middle, mu[:, 1], atol=1e-6) == is_affine


def test_free_nats_end_the_pull_of_the_kl_below_them(model, data, config):
    batch = prepared(data, config)
    for free_nats, pulls in ((1e6, False), (0.0, True)):
        changed = TrainConfig.from_values({**TINY, "bow_weight": 1.0, "free_nats": free_nats})
        draws = model(batch.pairs, batch.noise)
        at = [draws_loss(draws, changed, beta).loss for beta in (0.0, 1.0)]
        grads = [torch.autograd.grad(loss, draws.prior.mu, retain_graph=True)[0] for loss in at]
        assert bool(grads[1].any()) == pulls and not grads[0].any()


def test_save_pretrained_and_from_pretrained_give_the_model_back(model, data, config, tmp_path):
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    back = CVAE.from_pretrained(tmp_path)
    batch = prepared(data, config)
    for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    ours = model(batch.pairs, batch.noise).log_p_x
    torch.testing.assert_close(back(batch.pairs, batch.noise).log_p_x, ours)


def test_the_condition_vector_has_the_papers_size():
    config = CVAEConfig(topics=66, profile=True)
    assert (config.condition, config.response) == (638, 600)
    assert CVAEConfig().condition == 600


def test_the_same_seed_makes_the_same_weights_and_leaves_the_global_one_alone(data, config):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = make(config, data), make(config, data)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.decoder.out.weight, second.decoder.out.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_losses_of_the_cpu(model, data, config):
    batch = prepared(data, config)
    on_cpu = model(batch.pairs, batch.noise).log_p_x
    batch = batch.to(torch.device("cuda"))
    on_gpu = model.to("cuda")(batch.pairs, batch.noise).log_p_x.cpu()
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=1e-4)


def test_multiplied_noise_leaves_the_posterior_of_no_noise_where_added_noise_does(data, config):
    """At eps = 0 both entries give the same; away from it they differ."""
    encoded = None
    means = {}
    for entry in ("added", "multiplied"):
        values = {**TINY, "noise_entry": entry}
        model = make(TrainConfig.from_values(values), data)
        encoded = encoded or model.encode(prepared(data, config).pairs)
        eps = torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(0))
        eps[:, 0] = 0
        means[entry] = model.conditional(encoded, eps).mu
    torch.testing.assert_close(means["added"][:, 0], means["multiplied"][:, 0])
    assert not torch.allclose(means["added"][:, 1], means["multiplied"][:, 1])


def test_the_gain_and_the_first_log_variance_set_how_far_the_noise_reaches_at_the_start(data):
    plain, strong = (
        make(TrainConfig.from_values({**TINY, **changes}), data)
        for changes in ({}, {"noise_gain": 3.0, "start_logvar": -2.0})
    )
    first, second = plain.posterior_net.hidden.weight, strong.posterior_net.hidden.weight
    torch.testing.assert_close(second[:, -4:], 3 * first[:, -4:])
    torch.testing.assert_close(second[:, :-4], first[:, :-4])
    assert torch.equal(strong.posterior_net.out.bias[5:], torch.full((5,), -2.0))
    assert not strong.posterior_net.out.bias[:5].any()


def test_an_explicit_mixture_weighs_its_latents_and_scores_them_under_the_whole(data):
    values = {**TINY, "method": "gmm-cvae", "components": 2, "num_aux": 0, "aux_floor": 0}
    config = TrainConfig.from_values(values)
    model = make(config, data)
    widths = model.config.widths
    _, responses = next(training_batches(data.train, config, 0))
    noise = StepNoise.of(0, 0, 0)
    batch = prepare_batch(
        data.train, responses, config, widths, noise, 0, sample_from=0, hide=False
    )
    draws = model(batch.pairs, batch.noise)
    torch.testing.assert_close(draws.log_weights.exp().sum(-1), torch.ones(12))
    own = draws.own.log_prob(draws.z) + draws.log_weights
    assert (draws.posterior.log_prob(draws.z) >= own - 1e-5).all()
    assert draws_loss(draws, config, 1.0).loss.isfinite()


def test_a_semi_implicit_prior_keeps_the_estimate_of_the_likelihood_unbiased(data, config):
    """E over fresh lambda of the mixture is p(z|c) itself, whatever their number."""
    values = {**TINY, "prior_noise": 3}
    model = make(TrainConfig.from_values(values), data)
    with torch.no_grad():
        model.prior_net.hidden.weight[:, -3:] *= 6
    c = model.encode(prepared(data, config).pairs).c[:1]
    z = torch.zeros(1, 1, 5)
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(1, 60_000, 3, generator=generator)
    exact = model.prior_density(c, many).log_prob(z).item()
    few = [model.prior_density(c, part).log_prob(z) for part in many.split(4, dim=1)]
    estimates = torch.cat(few).flatten()
    assert estimates.exp().mean().log().item() == pytest.approx(exact, abs=1e-3)
    assert estimates.mean().item() < exact - 1e-3  # Jensen: the bound stays a bound


def test_weights_start_as_in_the_reference_code(data):
    """Output layer, GRUs and words U(-0.08, 0.08), dense layers Glorot, GRU gates at bias 1."""
    model = make(TrainConfig.from_values({**TINY, "bow_weight": 1.0}), data)
    for weight in (
        model.decoder.out.weight,
        model.decoder.gru.weight_hh_l0,
        model.embedding.weight,
    ):
        assert 0.07 < weight.abs().max() <= 0.08
    rows, columns = model.prior_net.hidden.weight.shape
    glorot = (6 / (rows + columns)) ** 0.5
    assert 0.8 * glorot < model.prior_net.hidden.weight.abs().max() <= glorot
    assert torch.equal(model.decoder.gru.bias_ih_l0, torch.tensor([1.0] * 20 + [0.0] * 10))
    assert not model.decoder.gru.bias_hh_l0.any() and not model.embedding.weight[0].any()
