"""Estimates of log p(x|c): what must hold whatever the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.evaluation.information import mutual_information
from siserve_training.evaluation.likelihood import (
    LikelihoodEstimate,
    importance_weighted,
    prior_sampled,
)
from siserve_training.evaluation.system import ModelSystem
from siserve_training.tasks.dialog import build_model, load_dialog_data, validate
from siserve_training.tasks.prepared import evaluation_batches

from .plain_systems import Conjugate
from .small_runs import small_config


@pytest.fixture(scope="module")
def config():
    return small_config(num_latents=1, valid_pairs=0)


@pytest.fixture(scope="module")
def data(corpus, config):
    return load_dialog_data(corpus, config, skip_bad_lines=False)


@pytest.fixture
def exact(data):
    """Mean of the exact log p(x|c) of the conjugate system."""
    batches = evaluation_batches(data.train, 0, 50)
    return float(torch.cat([Conjugate().exact(batch) for batch in batches]).mean())


def test_samples_of_the_prior_estimate_from_below_and_rise_to_the_exact_value(data, config, exact):
    few, some, many = (
        prior_sampled(Conjugate(), data.train, config, 0, samples) for samples in (1, 10, 1000)
    )
    assert few.log_p_x < some.log_p_x < many.log_p_x
    assert exact - few.log_p_x > 0.5
    assert many.log_p_x == pytest.approx(exact, abs=0.02)
    assert few.estimate_error == 0  # one sample tells nothing of it
    assert 0 < many.estimate_error < some.estimate_error
    assert many.samples == 1000 and many.pairs == len(data.train)


def test_the_exact_posterior_leaves_one_importance_sample_exact(data, config, exact):
    one = importance_weighted(Conjugate(), data.train, config, 0, 1)
    assert one.log_p_x == pytest.approx(exact, abs=1e-5)
    many = importance_weighted(Conjugate(), data.train, config, 0, 23)
    assert many.estimate_error == pytest.approx(0, abs=1e-5)


def test_an_estimate_sums_up_its_weights():
    log_weights = torch.log(torch.tensor([[0.25, 0.75], [0.125, 0.125]]))
    found = LikelihoodEstimate.of(log_weights, tokens=5)
    assert found.log_p_x == pytest.approx((math.log(0.5) + math.log(0.125)) / 2)
    assert found.perplexity == pytest.approx(16 ** (1 / 5))
    assert found.std_error == pytest.approx(math.log(4) / 2)
    assert found.estimate_error == pytest.approx(0.25)  # (sqrt(0.5) / sqrt(2) + 0) / 2


def test_more_importance_samples_raise_the_estimate_above_the_elbo(data, config):
    model = build_model(config, data)
    system = ModelSystem(model, data.text.tokens)
    estimates = [
        importance_weighted(system, data.valid, config, 0, samples).log_p_x
        for samples in (1, 10, 100)
    ]
    elbo = validate(model, data.valid, config, torch.device("cpu"))["elbo"]
    assert estimates[0] == pytest.approx(elbo, abs=3.0)
    assert estimates[0] < estimates[1] < estimates[2]


def test_a_latent_that_says_nothing_leaves_one_sample_exact(data, config):
    """Where decoder and posterior ignore z and x, every weight is p(x|c) itself."""
    model: Any = build_model(config, data)
    with torch.no_grad():
        model.decoder.init.weight[:, -config.latent :] = 0
        for head in (model.prior_net, model.posterior_net):
            head.out.weight.zero_()
            head.out.bias.zero_()
    system = ModelSystem(model, data.text.tokens)
    one, many = (importance_weighted(system, data.valid, config, 0, s) for s in (1, 23))
    assert one.log_p_x == pytest.approx(many.log_p_x, rel=1e-5)
    assert one.perplexity == pytest.approx(many.perplexity, rel=1e-4)
    of_prior = prior_sampled(system, data.valid, config, 0, 3)
    assert of_prior.log_p_x == pytest.approx(one.log_p_x, rel=1e-5)


def test_mutual_information_is_zero_for_one_posterior_and_log_b_for_apart_ones():
    count, draws, size = 12, 3, 4
    same = DiagonalNormal(torch.zeros(count, draws, size), torch.zeros(count, draws, size))
    assert mutual_information(torch.randn(count, size), Mixture.uniform(same)) == pytest.approx(
        0, abs=1e-5
    )
    centres = 100 * torch.arange(count).float().view(-1, 1, 1).expand(-1, draws, size)
    apart = DiagonalNormal(centres, torch.zeros(count, draws, size))
    measured = mutual_information(centres[:, 0] + torch.randn(count, size), Mixture.uniform(apart))
    assert measured == pytest.approx(math.log(count), abs=1e-5)
