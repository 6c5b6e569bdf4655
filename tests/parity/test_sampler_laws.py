"""What the mixture density of the semi-implicit sampler must obey, whatever the weights."""

import numpy as np
import pytest

from .conftest import normal


@pytest.fixture
def inputs(variant, rng):
    c, eps_z = variant.latents(rng, 5)
    return {
        "c": c,
        "response": variant.utterances(rng, 5, 8),
        "eps_lam": normal(rng, 5, 7, variant.sizes.noise),
        "eps_z": eps_z,
    }


def test_without_auxiliaries_the_density_is_the_gaussian_of_the_own_lambda(variant, inputs):
    inputs["eps_lam"] = inputs["eps_lam"][:, :1]
    z, log_q_z, _ = variant.run("si_sampler", **inputs)
    # z = mu + sigma eps_z, so log N(z; mu, sigma) = log N(eps_z; 0, 1) - sum(log sigma)
    zero = {**inputs, "eps_z": np.zeros_like(inputs["eps_z"])}
    one = {**inputs, "eps_z": np.ones_like(inputs["eps_z"])}
    sigma = variant.run("si_sampler", **one)[0] - variant.run("si_sampler", **zero)[0]
    eps_z = inputs["eps_z"]
    gaussian = -0.5 * (eps_z**2 + np.log(2 * np.pi)).sum(1) - np.log(sigma).sum(1)
    assert np.allclose(log_q_z, gaussian, rtol=1e-4, atol=1e-4)
    assert len(np.unique(z)) == z.size


def test_order_of_auxiliaries_changes_nothing(variant, inputs, rng):
    expected = variant.run("si_sampler", **inputs)
    order = np.concatenate([[0], 1 + rng.permutation(6)])
    got = variant.run("si_sampler", **{**inputs, "eps_lam": inputs["eps_lam"][:, order]})
    assert np.array_equal(got[0], expected[0])
    assert np.allclose(got[1], expected[1], rtol=1e-6, atol=1e-5)
    assert np.array_equal(got[2], expected[2])


def test_auxiliaries_do_not_move_z(variant, inputs, rng):
    expected = variant.run("si_sampler", **inputs)
    inputs["eps_lam"][:, 1:] = normal(rng, 5, 6, variant.sizes.noise)
    got = variant.run("si_sampler", **inputs)
    assert np.array_equal(got[0], expected[0]) and np.array_equal(got[2], expected[2])
    assert not np.array_equal(got[1], expected[1])


def test_the_own_component_bounds_the_mixture_from_below(variant, inputs):
    """Log q(z|lambda) - log q~(z) <= log(K + 1), pointwise."""
    own = variant.run("si_sampler", **{**inputs, "eps_lam": inputs["eps_lam"][:, :1]})[1]
    mixture = variant.run("si_sampler", **inputs)[1]
    assert np.all(own - mixture <= np.log(7) + 1e-5)


def test_equal_components_make_no_mixture(variant, inputs):
    own = variant.run("si_sampler", **{**inputs, "eps_lam": inputs["eps_lam"][:, :1]})[1]
    inputs["eps_lam"][:] = inputs["eps_lam"][:, :1]
    assert np.allclose(variant.run("si_sampler", **inputs)[1], own, rtol=1e-6, atol=1e-5)


def test_the_prior_density_is_that_of_the_prior_graph(variant, inputs):
    """p(z|c) has one mode, at what the prior graph draws from eps_z = 0."""
    z, _, log_p_z = variant.run("si_sampler", **inputs)
    draw = {"c": inputs["c"], "eps_z": np.zeros_like(z)}
    (mu,) = variant.run("prior", **draw)
    (mu_plus_sigma,) = variant.run("prior", **{**draw, "eps_z": np.ones_like(z)})
    sigma = mu_plus_sigma - mu
    standard = (z - mu) / sigma
    gaussian = -0.5 * (standard**2 + np.log(2 * np.pi)).sum(1) - np.log(sigma).sum(1)
    assert np.allclose(log_p_z, gaussian, rtol=1e-4, atol=1e-4)


def test_the_noise_matters(variant, inputs, rng):
    """A posterior that ignores eps_lam would be Gaussian, not semi-implicit."""
    z = variant.run("si_sampler", **inputs)[0]
    inputs["eps_lam"][:, 0] = normal(rng, 5, variant.sizes.noise)
    assert np.abs(variant.run("si_sampler", **inputs)[0] - z).min() > 0
