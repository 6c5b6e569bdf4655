"""Estimates of log p(x|c): what must hold whatever the model."""

from __future__ import annotations

import math

import pytest
import torch
from siserve_training.config import TrainConfig
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.evaluation.information import mutual_information
from siserve_training.evaluation.likelihood import importance_weighted
from siserve_training.tasks.dialog import build_model, load_dialog_data, validate

from .conftest import TINY


@pytest.fixture(scope="module")
def config():
    return TrainConfig.from_values({**TINY, "num_latents": 1, "valid_pairs": 0})


@pytest.fixture(scope="module")
def data(corpus, config):
    return load_dialog_data(corpus, config, skip_bad_lines=False)


def test_more_importance_samples_raise_the_estimate_above_the_elbo(data, config):
    model = build_model(config, data)
    estimates = [
        importance_weighted(model, data.valid, config, 0, samples).log_p_x
        for samples in (1, 10, 100)
    ]
    elbo = validate(model, data.valid, config, torch.device("cpu"))["elbo"]
    assert estimates[0] == pytest.approx(elbo, abs=3.0)
    assert estimates[0] < estimates[1] < estimates[2]


def test_a_latent_that_says_nothing_leaves_one_sample_exact(data, config):
    """Where decoder and posterior ignore z and x, every weight is p(x|c) itself."""
    model = build_model(config, data)
    with torch.no_grad():
        model.decoder.init.weight[:, -config.latent :] = 0
        for head in (model.prior_net, model.posterior_net):
            head.out.weight.zero_()
            head.out.bias.zero_()
    one, many = (importance_weighted(model, data.valid, config, 0, s) for s in (1, 23))
    assert one.log_p_x == pytest.approx(many.log_p_x, rel=1e-5)
    assert one.perplexity == pytest.approx(many.perplexity, rel=1e-4)


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
