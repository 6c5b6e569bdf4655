"""The output layer's loss is the softmax's, exact or estimated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from siserve_training.nets import output
from siserve_training.nets.output import (
    WordSample,
    bag_log_probs,
    linear_log_probs,
    token_log_probs,
)
from torch import nn


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(6, 40).double()


def states_and_targets(count=17):
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(count, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    return states, torch.randint(0, 40, (count,), generator=generator)


@pytest.mark.parametrize("rows", [4, 512])
def test_values_and_gradients_equal_log_softmax(layer, monkeypatch, rows):
    monkeypatch.setattr(output, "_CACHED_LOGITS", rows * layer.out_features)
    monkeypatch.setattr(output, "_CHUNK_TOKENS", rows)
    states, targets = states_and_targets()
    weights = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    leaves = [states, layer.weight, layer.bias]
    plain = torch.log_softmax(layer(states), -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    expected = torch.autograd.grad((plain * weights).sum(), leaves)
    got = token_log_probs(states, layer, targets)
    torch.testing.assert_close(got.double(), plain, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((got * weights).sum(), leaves)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "shift", "error"),
    [(torch.float32, 0, 1e-6), (torch.float32, 500, 1e-4), (torch.bfloat16, 0, 2e-2)],
    ids=str,
)
def test_narrow_types_lose_no_more_than_their_rounding(layer, dtype, shift, error):
    """Logits far from 0 do not overflow."""
    states, targets = states_and_targets(40)
    weights = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    leaves = [leaf.detach().to(dtype) for leaf in (states, layer.weight, layer.bias + shift)]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    plain = torch.log_softmax(exact[0] @ exact[1].t() + exact[2], -1)
    plain = plain.gather(1, targets.unsqueeze(1)).squeeze(1)
    expected = torch.autograd.grad((plain * weights).sum(), exact)
    states, weight, bias = leaves = [leaf.requires_grad_() for leaf in leaves]
    got = linear_log_probs(states, weight, bias, targets)
    assert got.dtype == torch.float32
    found = torch.autograd.grad((got * weights.float()).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= error * other.norm()


def test_what_memory_held_before_does_not_get_into_gradients():
    torch.manual_seed(0)
    targets = torch.randint(0, 37, (50,))
    states, weight = torch.randn(50, 12).bfloat16(), torch.randn(37, 12).bfloat16()
    bias = torch.randn(37).bfloat16()
    leaves = (states, weight, bias)
    for leaf in leaves:
        leaf.requires_grad_()
    torch.use_deterministic_algorithms(True)  # which also fills memory with NaN
    try:
        log_probs = output.linear_log_probs(states, weight, bias, targets)
        log_probs.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool(log_probs.isfinite().all())
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_a_sample_of_every_word_is_the_exact_softmax(layer):
    states, targets = states_and_targets()
    every = WordSample.draw(40, 10, 100, targets, np.random.default_rng(0))
    assert len(every.ids) == 40 and not every.log_weight.any()
    torch.testing.assert_close(
        token_log_probs(states, layer, targets, every), token_log_probs(states, layer, targets)
    )


def test_the_estimated_normaliser_is_unbiased_and_keeps_what_matters(layer):
    states, targets = states_and_targets(3)
    exact = layer(states).exp().sum(1)
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(4000):
        sample = WordSample.draw(40, 8, 5, targets, rng)
        assert set(targets.tolist()) | set(range(8)) <= set(sample.ids.tolist())
        logits = layer(states)[:, sample.ids] + sample.log_weight
        estimates.append(logits.exp().sum(1).detach())
    stacked = torch.stack(estimates)
    error = stacked.std(0) / len(stacked) ** 0.5
    assert ((stacked.mean(0) - exact).abs() < 5 * error).all()


def test_a_bag_of_words_shares_one_softmax_among_its_words(layer):
    torch.manual_seed(2)
    features = torch.randn(2, 3, 6, dtype=torch.float64)
    words = torch.tensor([[4, 9, 9, 0], [1, 0, 0, 0]])
    log_softmax = torch.log_softmax(layer(features), -1)  # (2, 3, 40)
    got = bag_log_probs(features, layer, words)
    for pair, draw, place in ((0, 2, 1), (1, 0, 0), (0, 1, 3)):
        expected = log_softmax[pair, draw, words[pair, place]]
        assert got[pair, draw, place].item() == pytest.approx(expected.item(), abs=1e-5)
