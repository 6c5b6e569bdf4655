"""Refinement of a posterior by gradient steps on its own bound, with gradients through them.

Semi-amortised inference (Kim et al. 2018): parameters lambda of q(z|x) start from the encoder and
climb the bound of their sentence by SVI with momentum. The gradient of what follows goes back
through the steps by products of Hessians with vectors, taken as central differences of gradients
(their section 3.2), all sentences and both ends of a difference in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Refinement", "refine"]

#: (lambda (B, S, 2D), noise (B, 1, D)) to the bound of each in nats, (B, S).
BoundOf = Callable[[Tensor, Tensor], Tensor]

#: Length of the step of a difference; the gradients themselves carry float32's 1e-7.
_STEP = {torch.float32: 3e-2, torch.float64: 1e-4}


@dataclass(frozen=True)
class Refinement:
    """How lambda climbs.

    Attributes:
        steps: number of SVI steps.
        rate: of a step on a sentence's own bound (Kim et al.: 1 on the mean over a batch of 32).
        momentum: share of the step before that is taken again.
    """

    steps: int
    rate: float
    momentum: float


def refine(
    bound: BoundOf,
    start: Tensor,
    eps: Tensor,
    parameters: Sequence[nn.Parameter],
    how: Refinement,
) -> Tensor:
    """Refine lambda; differentiable in `start` and in the parameters of the bound.

    Args:
        bound: of a sentence; rows must not mix.
        start: lambda of the encoder, (B, 2D).
        eps: noise of each step, so that what is refined has not seen the noise that scores it,
            (B, steps, D).
        parameters: those that the bound depends on.
        how: the steps.

    Returns:
        (B, 2D).
    """
    refined: Tensor = _Refine.apply(bound, eps, how, start, *parameters)  # type: ignore[no-untyped-call]
    return refined


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, bound: BoundOf, eps: Tensor, how: Refinement, start: Tensor, *parameters: Tensor
    ) -> Tensor:
        at = start.detach()
        velocity = torch.zeros_like(at)
        visited = []
        with _frozen(parameters):
            for step in range(how.steps):
                visited.append(at)
                velocity = how.momentum * velocity + _gradient(bound, at, eps[:, step])
                at = at + how.rate * velocity
        ctx.bound, ctx.how, ctx.parameters = bound, how, parameters
        ctx.save_for_backward(eps, *visited)
        return at.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        eps, *visited = ctx.saved_tensors
        how: Refinement = ctx.how
        of_lam, of_velocity = grads[0], torch.zeros_like(grads[0])
        of_parameters: list[Tensor | None] = [None] * len(ctx.parameters)
        for step in reversed(range(how.steps)):
            of_velocity = of_velocity + how.rate * of_lam
            product, found = _hessian_products(
                ctx.bound, visited[step], eps[:, step], of_velocity, ctx.parameters
            )
            of_lam = of_lam + product
            of_velocity = how.momentum * of_velocity
            for place, grad in enumerate(found):
                before = of_parameters[place]
                of_parameters[place] = grad if before is None or grad is None else before.add_(grad)
        return None, None, None, of_lam, *of_parameters


def _gradient(bound: BoundOf, at: Tensor, eps: Tensor) -> Tensor:
    """Return the gradient of each row's bound in its lambda, (B, 2D)."""
    with torch.enable_grad():
        lam = at.requires_grad_()
        (gradient,) = torch.autograd.grad(bound(lam.unsqueeze(1), eps.unsqueeze(1)).sum(), lam)
    at.requires_grad_(False)
    return gradient


def _hessian_products(
    bound: BoundOf, at: Tensor, eps: Tensor, vector: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the gradients of (gradient of the bound in lambda) . vector, in lambda and parameters.

    One pass over both ends of the difference, weighted so that its gradient is the quotient.
    """
    norm = vector.norm(dim=1, keepdim=True)
    length = norm.clamp(min=torch.finfo(vector.dtype).tiny)
    step = _STEP.get(vector.dtype, _STEP[torch.float32]) / length  # (B, 1)
    with torch.enable_grad():
        ends = torch.stack([at + step * vector, at - step * vector], dim=1).requires_grad_()
        share = torch.cat([0.5 / step, -0.5 / step], dim=1) * (norm > 0)  # (B, 2)
        total = (share * bound(ends, eps.unsqueeze(1))).sum()
        found = torch.autograd.grad(total, [ends, *parameters], allow_unused=True)
    of_ends = found[0]
    assert of_ends is not None  # the bound depends on lambda
    return of_ends.sum(1), found[1:]


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Leave parameters out of the graphs made inside; their gradients cost as much again."""
    were = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in zip(parameters, were, strict=True):
            parameter.requires_grad_(was)
