"""Use of the noise: a two-sample test of known level and power, and models made to use it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from siserve_training.evaluation.noise_use import bounds_by_num_aux, energy_test, noise_use
from siserve_training.tasks.dialog import load_dialog_data

from .small_runs import random_model, small_config

CONFIG = small_config()
PAIRS = 40


@pytest.fixture(scope="module")
def data(corpus):
    return load_dialog_data(corpus, CONFIG, skip_bad_lines=False)


def of_noise(model):
    """Weights that the noise enters by, (hidden, E)."""
    return model.posterior_net.hidden.weight[:, -model.posterior_net.noise :]


def cut(model):
    of_noise(model).zero_()


def sharpen(model):
    """Make sigma tiny."""
    size = model.config.latent
    model.posterior_net.out.weight[size:] = 0
    model.posterior_net.out.bias[size:] = -9


def split(model):
    """Let the sign of one number of the noise choose between two places."""
    sharpen(model)
    of_noise(model).zero_()
    of_noise(model)[:, 0] = 50.0


def test_the_energy_test_has_its_level_on_gaussian_draws():
    rng = np.random.default_rng(0)
    found = [
        energy_test(torch.from_numpy(a), torch.from_numpy(b), rng, permutations=99)
        for a, b in rng.normal(size=(400, 2, 40, 3))
    ]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.04, abs=0.025)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    assert min(found) >= 1 / 100


@pytest.mark.parametrize("axes", [1, 2, 8])
def test_the_energy_test_tells_two_modes_on_one_axis_from_one_of_the_same_moments(axes):
    rng = np.random.default_rng(0)
    for _ in range(5):
        modes = rng.normal(size=(256, axes))
        modes[:, 0] = (modes[:, 0] + rng.choice([-4, 4], 256)) / math.sqrt(17)
        normal = rng.normal(size=(256, axes))
        assert energy_test(torch.from_numpy(modes), torch.from_numpy(normal), rng) < 0.05


def test_the_energy_test_sees_samples_of_unequal_sizes():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(n, 2))) for n in (30, 150))
    assert energy_test(a, b, rng) > 0.05
    for other in (a + 1.5, 0.3 * a, 3 * a):
        assert energy_test(other, b, rng) < 0.05


def test_noise_without_weights_has_no_share(data):
    use = noise_use(random_model(CONFIG, data, cut), data.train, CONFIG, PAIRS)
    assert use.share_of_mu == pytest.approx(0, abs=1e-6)
    assert use.share_of_width == pytest.approx(0, abs=1e-6)
    assert use.non_gaussian <= 0.175  # 0.05 of 40 pairs, and three standard deviations
    assert use.pairs == PAIRS


def test_where_sigma_is_tiny_the_width_is_the_noises(data):
    usual, sharp = (
        noise_use(random_model(CONFIG, data, change), data.train, CONFIG, 16)
        for change in (None, sharpen)
    )
    assert 0 < usual.share_of_width < 0.9 and sharp.share_of_width > 0.99
    assert 0 < sharp.share_of_mu < 1


def test_two_places_are_told_from_a_gaussian(data):
    use = noise_use(random_model(CONFIG, data, split), data.train, CONFIG, 16)
    assert use.non_gaussian == 1 and use.share_of_width > 0.99


@pytest.mark.parametrize("latent", [1, 12])
def test_a_latent_may_have_fewer_or_more_numbers_than_the_test_looks_at(data, latent):
    config = small_config(latent=latent)
    use = noise_use(random_model(config, data), data.train, config, 5)
    assert 0 <= use.non_gaussian <= 1 and math.isfinite(use.share_of_mu)


def test_where_nothing_varies_there_is_no_share(data):
    def still(model):
        sharpen(model)
        model.posterior_net.out.weight.zero_()

    for model, pairs in ((random_model(CONFIG, data, still), 5), (random_model(CONFIG, data), 1)):
        use = noise_use(model, data.train, CONFIG, pairs)
        assert math.isnan(use.share_of_mu) and not math.isnan(use.share_of_width)


def test_measuring_leaves_the_mode_of_the_model(data):
    model = random_model(CONFIG, data)
    for training in (True, False):
        model.train(training)
        noise_use(model, data.train, CONFIG, 2)
        assert model.training == training


def test_the_bound_rises_with_the_auxiliaries_where_the_noise_matters(data):
    model = random_model(CONFIG, data, sharpen)
    bounds = bounds_by_num_aux(model, data.train, CONFIG, (0, 1, 5, 30, 100))
    values = list(bounds.values())
    assert list(bounds) == [0, 1, 5, 30, 100]
    assert all(fewer < more for fewer, more in pairwise(values)) and values[-1] - values[0] > 1
    # of components that never meet, the own one has 1/(K+1) of the density
    assert values[1] - values[0] < math.log(2) + 1e-4


def test_the_bound_stays_where_the_noise_is_cut(data):
    model = random_model(CONFIG, data, cut)
    values = list(bounds_by_num_aux(model, data.train, CONFIG, (0, 1, 30)).values())
    assert values == pytest.approx([values[0]] * 3, abs=1e-3)


def test_a_bound_does_not_depend_on_the_others_that_are_asked_for(data):
    """A smaller K takes the first auxiliaries of a larger."""
    model = random_model(CONFIG, data)
    one = bounds_by_num_aux(model, data.valid, CONFIG, (3, 20), 10)
    other = bounds_by_num_aux(model, data.valid, CONFIG, (0, 20), 10)
    assert one[20] == other[20] and one[3] != one[20]
