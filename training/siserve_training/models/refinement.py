"""Refinement of a posterior by gradient steps on its own bound, with gradients through them.

Semi-amortised inference (Kim et al. 2018): parameters lambda of q(z|x) start from the encoder and
climb the bound of their sentence by SVI with momentum. The gradient of what follows goes back
through the steps by products of Hessians with vectors. `Differences` takes them as central
differences of gradients (their section 3.2), of any bound; a climb that knows its bound better may
do better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Climb", "Differences", "Refinement", "refine"]

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


class Climb(Protocol):
    """A bound of each of B sentences in its lambda; rows do not mix."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What the bound depends on besides."""

    def gradient(self, at: Tensor, eps: Tensor) -> Tensor:
        """Return the gradient of each row's bound in its lambda.

        Args:
            at: lambda, (B, 2D).
            eps: noise of the latents, (B, D).

        Returns:
            (B, 2D).
        """

    def products(
        self, at: Tensor, eps: Tensor, vector: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the gradients of gradient(at, eps) . vector, in lambda and in the parameters."""


def refine(climb: Climb, start: Tensor, eps: Tensor, how: Refinement) -> Tensor:
    """Refine lambda; differentiable in `start` and in the parameters of the bound.

    Args:
        climb: the bound.
        start: lambda of the encoder, (B, 2D).
        eps: noise of each step, so that what is refined has not seen the noise that scores it,
            (B, steps, D).
        how: the steps.

    Returns:
        (B, 2D).
    """
    refined: Tensor = _Refine.apply(climb, eps, how, start, *climb.parameters)  # type: ignore[no-untyped-call]
    return refined


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, climb: Climb, eps: Tensor, how: Refinement, start: Tensor, *parameters: Tensor
    ) -> Tensor:
        at = start.detach()
        velocity = torch.zeros_like(at)
        visited = []
        for step in range(how.steps):
            visited.append(at)
            velocity = how.momentum * velocity + climb.gradient(at, eps[:, step])
            at = at + how.rate * velocity
        ctx.climb, ctx.how = climb, how
        ctx.types = [parameter.dtype for parameter in parameters]
        ctx.save_for_backward(eps, *visited)
        return at.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        eps, *visited = ctx.saved_tensors
        how: Refinement = ctx.how
        of_lam, of_velocity = grads[0], torch.zeros_like(grads[0])
        of_parameters: list[Tensor | None] = [None] * len(ctx.types)
        for step in reversed(range(how.steps)):
            of_velocity = of_velocity + how.rate * of_lam
            product, found = ctx.climb.products(visited[step], eps[:, step], of_velocity)
            of_lam = of_lam + product
            of_velocity = how.momentum * of_velocity
            for place, grad in enumerate(found):
                before = of_parameters[place]
                if before is not None and grad is not None:
                    before.add_(grad)
                elif grad is not None:  # sums are float32 at least
                    of_parameters[place] = grad.to(torch.promote_types(grad.dtype, torch.float32))
        cast = (g if g is None else g.to(t) for g, t in zip(of_parameters, ctx.types, strict=True))
        return None, None, None, of_lam, *cast


class Differences:
    """Any bound: gradients by autograd, products by central differences of them.

    Args:
        bound: of each row in nats.
        parameters: those that it depends on.
    """

    def __init__(self, bound: BoundOf, parameters: Sequence[Tensor]) -> None:
        self.bound, self.parameters = bound, parameters

    def gradient(self, at: Tensor, eps: Tensor) -> Tensor:
        """See `Climb`."""
        with torch.enable_grad(), _frozen(self.parameters), _whole_floats(at.device):
            lam = at.detach().requires_grad_()
            total = self.bound(lam.unsqueeze(1), eps.unsqueeze(1)).sum()
            return torch.autograd.grad(total, lam)[0]

    def products(
        self, at: Tensor, eps: Tensor, vector: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """See `Climb`; one pass over both ends, weighted so that its gradient is the quotient."""
        norm = vector.norm(dim=1, keepdim=True)
        length = norm.clamp(min=torch.finfo(vector.dtype).tiny)
        step = _STEP.get(vector.dtype, _STEP[torch.float32]) / length  # (B, 1)
        with torch.enable_grad(), _whole_floats(at.device):
            ends = torch.stack([at + step * vector, at - step * vector], dim=1).requires_grad_()
            share = torch.cat([0.5 / step, -0.5 / step], dim=1) * (norm > 0)  # (B, 2)
            total = (share * self.bound(ends, eps.unsqueeze(1))).sum()
            found = torch.autograd.grad(total, [ends, *self.parameters], allow_unused=True)
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


@contextmanager
def _whole_floats(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own precision: differences of bf16 or TF32 gradients are noise."""
    products, recurrent = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = recurrent
