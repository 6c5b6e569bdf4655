"""Parts of CVAE-CO (Shen et al. 2018): heads with softplus variances, a decoder told v and c."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from siserve_training.nets.gru import PackedLayout, packed_gru

__all__ = ["ConditionedDecoder", "SoftplusHead"]

_VARIANCE_SCALE = 0.1
#: Below it softplus is no normal float32, and its logarithm has no gradient.
_LEAST_INPUT = -80.0


class SoftplusHead(nn.Module):
    """Two tanh layers, then a linear layer to the mean and one to the variance.

    The variance is 0.1 softplus of the linear layer, as in Serban et al. 2017 and Shen et al. 2018.

    Args:
        features: size of the input.
        hidden: size of the tanh layers.
        latent: D.
        logvar_clamp: bound on the absolute log-variance, 0 for none.
    """

    def __init__(self, features: int, hidden: int, latent: int, logvar_clamp: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.variance = nn.Linear(hidden, latent)
        self.logvar_clamp = logvar_clamp

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to float32 mu and logvar, (B, F) to (B, D) each."""
        hidden = torch.tanh(self.second(torch.tanh(self.first(features))))
        softplus = nn.functional.softplus(self.variance(hidden).float().clamp(min=_LEAST_INPUT))
        logvar = softplus.log() + math.log(_VARIANCE_SCALE)
        if self.logvar_clamp:
            logvar = logvar.clamp(-self.logvar_clamp, self.logvar_clamp)
        return self.mean(hidden).float(), logvar


class ConditionedDecoder(nn.Module):
    """GRU language model that is told [word, v, c] at every step; it starts from tanh of [v, c].

    What it carries from step to step is its state and [v, c].

    Args:
        constant: size of [v, c].
        word_embedding: size of a word vector.
        hidden: size of the state.
        vocabulary: number of word ids.
    """

    def __init__(self, constant: int, word_embedding: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.init = nn.Linear(constant, hidden)
        self.gru = nn.GRU(word_embedding + constant, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def first_state(self, c: Tensor, v: Tensor) -> Tensor:
        """Return the state before ``<s>`` beside [v, c]; leading axes agree, (..., H+F+C)."""
        told = torch.cat([v, c], dim=-1)
        return torch.cat([torch.tanh(self.init(told)), told], dim=-1)

    def forward(self, words: Tensor, places: Tensor, layout: PackedLayout, state: Tensor) -> Tensor:
        """Run over given tokens, each row with its own v and c throughout.

        Args:
            words: vectors of the distinct words, (M, W).
            places: index into `words` of each packed input token, (N,).
            layout: of the packed tokens, R rows.
            state: first states, (R, H+F+C).

        Returns:
            States that predict the token after each place, (N, H).
        """
        rows = torch.arange(len(state), device=state.device)
        return self.mixed(words, places, layout, state, rows, layout.rows)

    def mixed(
        self,
        words: Tensor,
        places: Tensor,
        layout: PackedLayout,
        candidates: Tensor,
        first: Tensor,
        told: Tensor,
    ) -> Tensor:
        """Run over given tokens, with a v and c of each step's own.

        Args:
            words: vectors of the distinct words, (M, W).
            places: index into `words` of each packed input token, (N,).
            layout: of the packed tokens, R rows.
            candidates: first states, (S, H+F+C).
            first: which candidate each row starts from, (R,).
            told: of which candidate each place is told v and c, (N,).

        Returns:
            States that predict the token after each place, (N, H).
        """
        hidden = self.gru.hidden_size
        states, constants = candidates.split([hidden, candidates.shape[-1] - hidden], dim=-1)
        outputs, _ = packed_gru(
            self.gru, words, places, layout, states[first], shift=constants, shift_index=told
        )
        return outputs

    def step(self, embedded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and the next state (R, H+F+C)."""
        hidden = self.gru.hidden_size
        before, constant = state.split([hidden, state.shape[-1] - hidden], dim=-1)
        told = torch.cat([embedded, constant], dim=-1).unsqueeze(1)
        _, following = self.gru(told, before.unsqueeze(0).contiguous())
        logits = cast(Tensor, self.out(following[0]))
        return logits, torch.cat([following[0], constant], dim=-1)
