"""The parts of an adversarially matched prior: critic, penalty, choice, normalisation, dropout."""

from __future__ import annotations

import pytest
import torch
from siserve_training.nets.adversary import Critic, NormedLinear, straight_through_choice
from siserve_training.nets.dropout import Dropout
from siserve_training.objectives.wasserstein import critic_gap, gradient_penalty, nll_per_token


def test_the_autoencoder_counts_tokens_not_responses():
    log_p_x = torch.tensor([[-6.0, -8.0], [-3.0, -5.0]])
    assert float(nll_per_token(log_p_x, torch.tensor([9, 2]))) == pytest.approx(1.0)


def test_the_gap_is_the_priors_score_less_the_posteriors():
    assert float(critic_gap(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0]]))) == 3.0


@pytest.mark.parametrize("per_sample", [True, False])
def test_the_penalty_asks_for_slope_one_and_the_authors_for_slope_of_the_batchs_size(per_sample):
    gradient = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])  # slopes 5 and 1, B = 2
    expected = (16 + 0) / 2 if per_sample else (1.5**2 + 0.5**2) / 2
    assert float(gradient_penalty(gradient, per_sample)) == pytest.approx(expected)


def test_the_critics_gradient_is_that_of_its_scores_and_can_be_learnt_from():
    torch.manual_seed(0)
    critic = Critic(7, 6).double().train()
    z, c = torch.randn(4, 2, 3).double(), torch.randn(4, 4).double()
    gradient = critic.gradient(z, c)
    step = 1e-6 * torch.eye(3).double()
    for b, j, d in [(0, 0, 0), (2, 1, 2), (3, 0, 1)]:
        ahead, behind = z.clone(), z.clone()
        ahead[b, j] += step[d]
        behind[b, j] -= step[d]
        with torch.no_grad():
            slope = float(critic(ahead, c).sum() - critic(behind, c).sum()) / 2e-6
        assert float(gradient[b, j, d].detach()) == pytest.approx(slope, rel=1e-3, abs=1e-7)
    gradient_penalty(gradient).backward()
    assert critic.out.weight.grad is not None and bool(critic.out.weight.grad.any())


def test_dropout_keeps_the_mean_and_drops_its_share():
    dropped = Dropout(0.3, torch.Generator().manual_seed(0))(torch.ones(100_000))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_a_choice_is_one_hot_and_as_frequent_as_its_share():
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    uniform = torch.rand(1, 40_000, 3, generator=torch.Generator().manual_seed(0))
    chosen = straight_through_choice(logits, uniform, 0.1)
    assert bool(((chosen == 0) | (chosen == 1)).all()) and bool((chosen.sum(-1) == 1).all())
    assert torch.allclose(chosen.mean(1), torch.softmax(logits, -1), atol=0.01)


def test_a_choice_passes_the_gradient_of_the_softmax():
    logits = torch.tensor([[0.2, -0.1]], requires_grad=True)
    uniform, worth = torch.tensor([[[0.5, 0.5]]]), torch.tensor([2.0, -1.0])
    (straight_through_choice(logits, uniform, 0.5) @ worth).sum().backward()
    soft = logits.detach().clone().requires_grad_()
    (torch.softmax(soft / 0.5, -1) @ worth).sum().backward()
    assert logits.grad is not None and soft.grad is not None
    assert torch.allclose(logits.grad, soft.grad, atol=1e-6)


def test_a_choice_at_the_ends_of_the_noise_is_finite():
    uniform = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    chosen = straight_through_choice(torch.zeros(1, 2), uniform, 0.1)
    assert bool(torch.isfinite(chosen).all()) and bool((chosen.sum(-1) == 1).all())


def test_evaluation_gives_what_torchs_own_normalisation_gives():
    torch.manual_seed(0)
    layer = NormedLinear(3, 4)
    for _ in range(3):
        layer(torch.randn(50, 2, 3) + 2)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2.0)
        layer.norm.bias.uniform_(-1.0, 1.0)
    features = torch.randn(6, 2, 3)
    expected = layer.train(False).norm(layer.linear(features).flatten(0, 1)).view(6, 2, 4)
    assert torch.allclose(layer(features), expected, atol=1e-5)


def test_what_all_rows_have_in_common_costs_no_digits():
    torch.manual_seed(0)
    layer = NormedLinear(300, 4)
    with torch.no_grad():
        layer.linear.weight.uniform_(0.0, 0.1)
    features = 0.5 + 1e-3 * torch.randn(2000, 300)
    for _ in range(100):
        layer(features)
    exact = layer.train(False).double()(features.double())
    assert torch.allclose(layer.float()(features).double(), exact, atol=2e-6)


def test_one_row_is_normalised_by_what_was_seen_before():
    layer = NormedLinear(3, 4).train()
    layer(torch.randn(50, 3) + 2)
    row = torch.randn(1, 3)
    trained = layer(row)
    assert torch.equal(trained, layer.train(False)(row)) and bool(trained.any())
