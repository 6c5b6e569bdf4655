"""Laws of the surrogate bound (reference numbers: golden_si.json and a quadrature)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from siserve_training.distributions import DiagonalNormal
from siserve_training.objectives.surrogate import surrogate_bound, surrogate_log_q

GOLDEN = json.loads((Path(__file__).parent / "golden_si.json").read_text())


def double(values, *shape):
    return torch.tensor(values, dtype=torch.float64).reshape(*shape)


def random_case(J=3, K=4, D=5, B=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = DiagonalNormal(draw(B, J, D), 0.5 * draw(B, J, D))
    aux = DiagonalNormal(draw(B, K, D), 0.5 * draw(B, K, D))
    prior = DiagonalNormal(draw(B, 1, D), 0.5 * draw(B, 1, D))
    return own.rsample(draw(B, J, D)), own, aux, prior, draw(B, J) - 40


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_every_golden_case_holds(case):
    J, K, D = case["J"], case["K"], case["D"]
    z = double(case["z"], 1, J, D)
    own = DiagonalNormal(double(case["mu_own"], 1, J, D), double(case["logvar_own"], 1, J, D))
    aux = DiagonalNormal(double(case["mu_aux"], 1, K, D), double(case["logvar_aux"], 1, K, D))
    prior = DiagonalNormal(double(case["prior_mu"], 1, 1, D), double(case["prior_logvar"], 1, 1, D))
    log_p_x = double(case["log_px"], 1, J)
    expected, tolerance = case["expected"], GOLDEN["tolerance"]
    at_one = surrogate_bound(z, own, aux, prior, log_p_x)
    at_beta = surrogate_bound(z, own, aux, prior, log_p_x, case["beta"])
    got = {
        "log_prior": prior.log_prob(z)[0].tolist(),
        "log_q_own": own.log_prob(z)[0].tolist(),
        "log_q_tilde": surrogate_log_q(z, own, aux)[0].tolist(),
        "bound": at_one.bound.item(),
        "bound_beta": at_beta.bound.item(),
        "kl_mc": at_one.kl.item(),
        "b_mc": at_one.gain.item(),
        "r_closed": own.kl(prior).mean().item(),
    }
    for name, value in got.items():
        assert value == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def test_without_auxiliaries_it_is_the_gaussian_elbo():
    z, own, _, prior, log_p_x = random_case()
    none = DiagonalNormal(own.mu[:, :0], own.logvar[:, :0])
    elbo = (log_p_x + prior.log_prob(z) - own.log_prob(z)).mean(-1)
    torch.testing.assert_close(surrogate_bound(z, own, none, prior, log_p_x).bound, elbo)


@pytest.mark.parametrize("K", [0, 1, 7])
def test_identical_components_make_the_value_independent_of_k(K):
    z, own, _, prior, log_p_x = random_case(J=1)
    aux = DiagonalNormal(own.mu.expand(-1, K, -1), own.logvar.expand(-1, K, -1))
    torch.testing.assert_close(surrogate_log_q(z, own, aux), own.log_prob(z))


@pytest.mark.parametrize("K", [1, 30, 50])
def test_the_gain_never_exceeds_log_of_k_plus_one(K):
    z, own, aux, prior, log_p_x = random_case(J=4, K=K, seed=K)
    pointwise = own.log_prob(z) - surrogate_log_q(z, own, aux)
    assert (pointwise <= math.log(K + 1) + 1e-12).all()


def test_the_order_of_auxiliaries_does_not_matter():
    z, own, aux, _, _ = random_case()
    shuffled = DiagonalNormal(aux.mu[:, [2, 0, 3, 1]], aux.logvar[:, [2, 0, 3, 1]])
    torch.testing.assert_close(surrogate_log_q(z, own, aux), surrogate_log_q(z, own, shuffled))


def test_the_bound_is_linear_in_beta_and_pure_reconstruction_at_zero():
    z, own, aux, prior, log_p_x = random_case()
    at = {b: surrogate_bound(z, own, aux, prior, log_p_x, b).bound for b in (0.0, 0.3, 1.0)}
    torch.testing.assert_close(at[0.0], log_p_x.mean(-1))
    torch.testing.assert_close(at[0.3], 0.7 * at[0.0] + 0.3 * at[1.0])


def test_all_components_receive_gradient():
    z, own, aux, prior, log_p_x = random_case()
    leaves = [own.mu, own.logvar, aux.mu, aux.logvar, prior.mu, prior.logvar]
    for leaf in leaves:
        leaf.requires_grad_()
    surrogate_bound(z.detach(), own, aux, prior, log_p_x).bound.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_no_component_underflows_in_two_hundred_dimensions():
    own = DiagonalNormal(torch.zeros(1, 1, 200), torch.full((1, 1, 200), -12.0))
    aux = DiagonalNormal(torch.full((1, 3, 200), 9.0), torch.full((1, 3, 200), -12.0))
    log_q = surrogate_log_q(own.mu, own, aux)
    torch.testing.assert_close(log_q, own.log_prob(own.mu) - math.log(4))


# A two-component posterior whose every quantity is known by quadrature: p(z) = N(0, 1),
# p(x|z) = N(z, .25), x = 1.3, q(z|x): mu = .9 + .5 e, e = +-1 with probability 1/2, variance .1.
_BOUNDS = {0: -2.477084, 1: -2.202282, 3: -2.050345, 10: -1.967096, 50: -1.935704}
_GAINS = {0: 0.0, 1: 0.274802, 3: 0.426739, 10: 0.509988, 50: 0.541380}
_LOG_P_X = -1.706510


def two_point_posterior(K, examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (examples, K + 1, 1), generator=generator).double() * 2 - 1
    lam = DiagonalNormal(0.9 + 0.5 * signs, torch.full_like(signs, math.log(0.1)))
    own, aux = lam.draws(0, 1), lam.draws(1)
    noise = torch.randn(examples, 1, 1, generator=generator, dtype=torch.float64)
    z = own.rsample(noise)
    x = DiagonalNormal(z, torch.full_like(z, math.log(0.25)))
    log_p_x = x.log_prob(torch.full_like(z, 1.3))
    prior = DiagonalNormal(torch.zeros_like(z), torch.zeros_like(z))
    return z, own, aux, prior, log_p_x


@pytest.mark.parametrize("K", _BOUNDS)
def test_monte_carlo_reproduces_the_table_of_the_two_point_posterior(K):
    parts = surrogate_bound(*two_point_posterior(K, 100_000))
    for got, expected in ((parts.bound, _BOUNDS[K]), (parts.gain, _GAINS[K])):
        error = got.std().item() / math.sqrt(len(got))
        assert got.mean().item() == pytest.approx(expected, abs=5 * error + 1e-6)


def test_the_bound_rises_with_k_towards_the_elbo_and_stays_below_it():
    means = [surrogate_bound(*two_point_posterior(K, 100_000)).bound.mean() for K in (0, 1, 5, 50)]
    assert means == sorted(means)
    assert means[-1] < -1.927480 + 0.005 < _LOG_P_X


@pytest.mark.parametrize("K", [0, 1, 10])
def test_importance_weights_average_to_the_likelihood_for_every_k(K):
    z, own, aux, prior, log_p_x = two_point_posterior(K, 200_000, seed=K)
    log_weight = (log_p_x + prior.log_prob(z) - surrogate_log_q(z, own, aux)).squeeze(-1)
    weight = log_weight.exp()
    error = weight.std().item() / math.sqrt(len(weight))
    assert weight.mean().item() == pytest.approx(math.exp(_LOG_P_X), abs=5 * error)


def test_leaving_the_own_component_out_breaks_the_bound():
    z, own, aux, prior, log_p_x = two_point_posterior(1, 100_000)
    flattering = (log_p_x + prior.log_prob(z) - aux.log_prob(z)).mean()
    assert flattering > _LOG_P_X > surrogate_bound(z, own, aux, prior, log_p_x).bound.mean()
