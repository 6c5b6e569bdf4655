"""Networks of an adversarially matched prior (Gu et al. 2019, DialogWAE): noise, latents, critic.

A layer before a normalisation has no bias, since the normalisation would take it away again; nor
has the critic's last layer, since only differences of its scores matter.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Critic", "LatentGenerator", "NoiseNet", "NormedLinear", "straight_through_choice"]

_SLOPE = 0.2
#: Uniform numbers keep this far from 0 and 1, where a Gumbel number would be infinite.
_UNIFORM_MARGIN = 1e-6


class NormedLinear(nn.Module):
    """Linear layer, then batch normalisation over all leading axes (momentum 0.1, eps 1e-5).

    In evaluation, and in training where there is but one row, running statistics normalise.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., F) to (..., H)."""
        if not self.training or features[..., 0].numel() == 1:
            return self._by_running_statistics(features)
        projected = self.linear(features)
        return cast(Tensor, self.norm(projected.flatten(0, -2)).view_as(projected))

    def _by_running_statistics(self, features: Tensor) -> Tensor:
        """Normalise by what was seen before.

        Context vectors have much in common, which the mean takes away: in float32 the product's
        rounding would come out a hundred times larger, more than exported graphs may differ by.
        """
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        product = nn.functional.linear(features.double(), self.linear.weight.double())
        centred = (product - norm.running_mean.double()).to(norm.weight.dtype)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return centred * scale + norm.bias


class NoiseNet(nn.Module):
    """Two normed tanh layers, then the parameters of K Gaussians over the noise e.

    With K > 1 a further normed tanh layer gives the logits of their shares (DialogWAE-GMP).

    Args:
        features: size of the input.
        latent: D, and the size of all hidden layers.
        components: K.
        logvar_clamp: bound on the absolute log-variance, 0 for none.
    """

    def __init__(
        self, features: int, latent: int, components: int = 1, logvar_clamp: float = 0.0
    ) -> None:
        super().__init__()
        self.first = NormedLinear(features, latent)
        self.second = NormedLinear(latent, latent)
        self.mu = nn.Linear(latent, components * latent)
        self.logvar = nn.Linear(latent, components * latent)
        if components > 1:
            self.share = NormedLinear(latent, latent)
            self.share_out = nn.Linear(latent, components)
        self.components = components
        self.logvar_clamp = logvar_clamp

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return mu and logvar, each (B, K, D), and logits of the shares, (B, K), or None."""
        hidden = torch.tanh(self.second(torch.tanh(self.first(features))))  # (B, D)
        mu, logvar = (
            layer(hidden).unflatten(-1, (self.components, -1)) for layer in (self.mu, self.logvar)
        )  # (B, K, D)
        if self.logvar_clamp:
            logvar = logvar.clamp(-self.logvar_clamp, self.logvar_clamp)
        if self.components == 1:
            return mu, logvar, None
        return mu, logvar, self.share_out(torch.tanh(self.share(hidden)))


class LatentGenerator(nn.Module):
    """Two normed ReLU layers and a linear one from noise e to a latent z, all of size D."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.first = NormedLinear(latent, latent)
        self.second = NormedLinear(latent, latent)
        self.out = nn.Linear(latent, latent)

    def forward(self, noise: Tensor) -> Tensor:
        """Map e to z, (..., D)."""
        hidden = torch.relu(self.second(torch.relu(self.first(noise))))
        return cast(Tensor, self.out(hidden))


class Critic(nn.Module):
    """Two normed leaky ReLU layers and a linear one from [z, c] to a score.

    Args:
        inputs: size of [z, c].
        hidden: of the layers.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first = NormedLinear(inputs, hidden)
        self.second = NormedLinear(hidden, hidden)
        self.out = nn.Linear(hidden, 1, bias=False)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Score latents, (B, J, D) under (B, C), to (B, J)."""
        each = c.unsqueeze(1).expand(-1, z.shape[1], -1)
        hidden = self.first(torch.cat([z, each.to(z.dtype)], dim=-1))
        hidden = self.second(nn.functional.leaky_relu(hidden, _SLOPE))
        scores: Tensor = self.out(nn.functional.leaky_relu(hidden, _SLOPE))
        return scores.squeeze(-1)

    def gradient(self, z: Tensor, c: Tensor) -> Tensor:
        """Return the gradient of the sum of the scores in z, itself differentiable, (B, J, D).

        Normalisation ties rows together: a row's gradient holds its effect on the others' scores.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            total = self(z, c.detach()).sum()
            (gradient,) = torch.autograd.grad(total, z, create_graph=True)
        return gradient


def straight_through_choice(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Choose one of K by Gumbel's rule; gradients are those of the softmax at a temperature.

    Jang et al. 2017, "straight-through Gumbel-softmax".

    Args:
        logits: (B, K).
        uniform: in (0, 1), (B, S, K).
        temperature: of the softmax that stands in for the choice in gradients.

    Returns:
        One-hot, (B, S, K).
    """
    inside = uniform.clamp(_UNIFORM_MARGIN, 1 - _UNIFORM_MARGIN)
    scores = logits.unsqueeze(1) - torch.log(-torch.log(inside))  # (B, S, K)
    soft = torch.softmax(scores / temperature, dim=-1)
    hard = nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the value is exactly one-hot
