"""Feed-forward heads: Gaussian parameters with and without injected noise, the bag of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BagOfWords", "GaussianHead", "MixtureHead"]


class GaussianHead(nn.Module):
    """Linear layer, or tanh layer and linear layer, to the parameters (mu, logvar).

    With `noise` units of injected noise it is the explicit layer's network
    lambda = f(h, eps_lam) of a semi-implicit distribution (Yin & Zhou 2018, eq. 1).

    Args:
        features: size of the input without noise.
        noise: size of the noise, 0 for none.
        hidden: size of the tanh layer, 0 for none.
        latent: D.
        logvar_clamp: bound on the absolute log-variance, 0 for none.
        multiplies: whether the noise's part multiplies that of the features, as 1 + part, rather
            than being added to it.
    """

    def __init__(
        self,
        features: int,
        noise: int,
        hidden: int,
        latent: int,
        logvar_clamp: float = 0.0,
        multiplies: bool = False,
    ) -> None:
        super().__init__()
        if hidden:
            self.hidden = nn.Linear(features + noise, hidden)
        self.out = nn.Linear(hidden or features + noise, 2 * latent)
        self.has_hidden = hidden > 0
        self.noise = noise
        self.multiplies = multiplies
        self.logvar_clamp = logvar_clamp

    def start_noise(self, gain: float, start_logvar: float, spread: float = 1.0) -> None:
        """Set how far the noise moves the parameters before training, in place.

        Args:
            gain: factor on the initial weights of the noise.
            start_logvar: initial bias of the log-variances.
            spread: factor on the initial weights of the means.
        """
        first = self.hidden if self.has_hidden else self.out
        with torch.no_grad():
            if self.noise:
                first.weight[:, first.in_features - self.noise :] *= gain
            latent = len(self.out.bias) // 2
            self.out.weight[:latent] *= spread
            self.out.bias[latent:] = start_logvar

    def forward(self, features: Tensor, eps_lam: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map features, with several draws of noise each, to (mu, logvar).

        The product with the features is formed once and shared by the draws.

        Args:
            features: (B, F).
            eps_lam: (B, S, E), or None for a head without noise.

        Returns:
            mu and logvar, each (B, S, D), or (B, D) without noise.
        """
        first = self.hidden if self.has_hidden else self.out
        if eps_lam is None or self.noise == 0:
            projected = first(features)  # (B, H)
            if eps_lam is not None:
                projected = projected.unsqueeze(1).expand(-1, eps_lam.shape[1], -1)  # (B, S, H)
        else:
            of_features, of_noise = first.weight.split(
                [first.in_features - self.noise, self.noise], dim=1
            )
            shared = nn.functional.linear(features, of_features, first.bias)  # (B, H)
            own = nn.functional.linear(eps_lam, of_noise)  # (B, S, H)
            shared = shared.unsqueeze(1)  # (B, 1, H)
            projected = shared * (1 + own) if self.multiplies else shared + own
        parameters = self.out(torch.tanh(projected)) if self.has_hidden else projected
        mu, logvar = parameters.chunk(2, dim=-1)
        if self.logvar_clamp:
            logvar = logvar.clamp(-self.logvar_clamp, self.logvar_clamp)
        return mu, logvar


class MixtureHead(nn.Module):
    """Tanh layer, then the parameters of S Gaussians and their weights (paper eq. 6).

    Args:
        features: size of the input.
        hidden: size of the tanh layer.
        latent: D.
        components: S.
        logvar_clamp: bound on the absolute log-variance, 0 for none.
    """

    def __init__(
        self, features: int, hidden: int, latent: int, components: int, logvar_clamp: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, components * 2 * latent)
        self.weight = nn.Linear(hidden, components)
        self.components = components
        self.logvar_clamp = logvar_clamp

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mu and logvar, each (B, S, D), and log weights, (B, S)."""
        hidden = torch.tanh(self.hidden(features))
        parameters = self.out(hidden).unflatten(-1, (self.components, -1))  # (B, S, 2D)
        mu, logvar = parameters.chunk(2, dim=-1)
        if self.logvar_clamp:
            logvar = logvar.clamp(-self.logvar_clamp, self.logvar_clamp)
        return mu, logvar, torch.log_softmax(self.weight(hidden), dim=-1)


class BagOfWords(nn.Module):
    """Tanh layer and linear layer from [c, z] to one set of logits for all positions."""

    def __init__(self, condition: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(condition, hidden)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the tanh layer's output, which `out` turns into logits, (..., H)."""
        return torch.tanh(self.hidden(condition))
