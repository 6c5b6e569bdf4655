"""Refinement by SVI: the gradient through its steps is that of the steps written out."""

from __future__ import annotations

import pytest
import torch
from siserve_training.models.refinement import Differences, Refinement, refine
from torch import nn

B, D2, STEPS = 3, 4, 5
HOW = Refinement(steps=STEPS, rate=0.3, momentum=0.5)


def make():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = nn.Parameter(0.7 * draw(D2, D2))
    unused = nn.Parameter(draw(2))
    start, eps = draw(B, D2).requires_grad_(), draw(B, STEPS, D2)

    def bound(lam, noise):  # (B, S, 2D), (B, 1, 2D) to (B, S)
        return torch.tanh(lam @ weight + 0.3 * noise).sum(-1) - 0.2 * lam.pow(4).sum(-1)

    return weight, unused, start, eps, bound


def written_out(bound, start, eps):
    lam, velocity = start, torch.zeros_like(start)
    for step in range(STEPS):
        value = bound(lam.unsqueeze(1), eps[:, step : step + 1]).sum()
        (gradient,) = torch.autograd.grad(value, lam, create_graph=True)
        velocity = HOW.momentum * velocity + gradient
        lam = lam + HOW.rate * velocity
    return lam


def test_values_and_gradients_equal_those_of_the_steps_written_out():
    weight, unused, start, eps, bound = make()
    expected = written_out(bound, start, eps)
    found = refine(Differences(bound, [weight, unused]), start, eps, HOW)
    torch.testing.assert_close(found, expected)
    wish = torch.linspace(-1, 1, B * D2, dtype=torch.float64).view(B, D2)
    wanted = torch.autograd.grad((wish * expected).sum(), [start, weight])
    got = torch.autograd.grad((wish * found).sum(), [start, weight])
    for one, other in zip(got, wanted, strict=True):
        assert one.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_parameters_are_as_they_were_and_rows_do_not_mix():
    weight, unused, start, eps, bound = make()
    unused.requires_grad_(False)
    together = refine(Differences(bound, [weight, unused]), start, eps, HOW)
    assert weight.requires_grad and not unused.requires_grad
    for row in range(B):
        one = slice(row, row + 1)
        alone = refine(Differences(bound, [weight]), start[one], eps[one], HOW)
        torch.testing.assert_close(alone[0], together[row])


def test_a_gradient_of_nothing_is_nothing():
    weight, _, start, eps, bound = make()
    found = refine(Differences(bound, [weight]), start, eps, HOW)
    got = torch.autograd.grad((0.0 * found).sum(), [start, weight])
    assert all(bool(torch.isfinite(g).all()) and float(g.abs().max()) == 0 for g in got)


@pytest.mark.parametrize("steps", [1, 4])
def test_without_a_rate_it_stays_where_it_starts(steps):
    weight, _, start, eps, bound = make()
    still = refine(Differences(bound, [weight]), start, eps, Refinement(steps, 0.0, 0.5))
    assert torch.equal(still, start)


def test_half_precision_around_a_refinement_does_not_reach_its_differences():
    weight, _, start, eps, bound = make()
    start, eps = start.detach().float().requires_grad_(), eps.float()
    weight = nn.Parameter(weight.detach().float())

    def in_floats(lam, noise):
        return torch.tanh(lam @ weight + 0.3 * noise).sum(-1) - 0.2 * lam.pow(4).sum(-1)

    def climbed():
        found = refine(Differences(in_floats, [weight]), start, eps, HOW)
        return found, *torch.autograd.grad(found.sum(), [start, weight])

    expected = climbed()
    with torch.autocast("cpu", torch.bfloat16):
        found = climbed()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.backends.cudnn.allow_tf32  # as it was
