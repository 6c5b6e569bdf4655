"""The output layer and its loss in one pass over real tokens.

With 10,002 words the output layer is most of a training step. Logits of a chunk of tokens are
turned into probabilities in place and kept for the gradient; nothing of size (tokens, words) is
written twice, and padding never gets here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

__all__ = ["WordSample", "bag_log_probs", "linear_log_probs", "token_log_probs"]

_CHUNK_TOKENS = 512


class _LinearLogProb(torch.autograd.Function):
    """log softmax(states @ weight.T + bias)[target], with gradients for all but the targets."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        log_probs: list[Tensor] = []
        ctx.probabilities = []
        for rows, words in _chunks(states, targets):
            logits = _aligned_rows(rows, len(weight))  # (n, V)
            torch.addmm(bias, rows, weight.t(), out=logits)
            scores = _at_least_float32(logits)
            log_sum = scores.logsumexp(-1, keepdim=True)
            log_probs.append((scores.gather(1, words.unsqueeze(1)) - log_sum).squeeze(1))
            ctx.probabilities.append(scores.sub_(log_sum).exp_().to(weight.dtype))
        ctx.save_for_backward(states, weight, targets)
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets = ctx.saved_tensors
        of_layer = ctx.needs_input_grad[1]
        grad_states = torch.empty_like(states)
        grad_weight = torch.zeros_like(weight) if of_layer else weight
        grad_bias = weight.new_zeros(len(weight))
        pieces = zip(
            ctx.probabilities,
            _chunks(states, targets),
            grads[0].split(_CHUNK_TOKENS),
            grad_states.split(_CHUNK_TOKENS),
            strict=True,
        )
        for probabilities, (rows, words), grad, out in pieces:
            scale = grad.to(weight.dtype).unsqueeze(1)
            # d log p[word] / d logits = one-hot - p
            error = (probabilities * -scale).scatter_add_(1, words.unsqueeze(1), scale)
            torch.mm(error, weight, out=out)
            if of_layer:
                grad_weight.addmm_(error.t(), rows)
                grad_bias.add_(error.sum(0))
        if not of_layer:
            return grad_states, None, None, None
        return grad_states, grad_weight, grad_bias, None


def _log_probs(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Compute what `_LinearLogProb` does and keep nothing for a gradient."""
    log_probs = [torch.empty(0, device=states.device)]
    for rows, words in _chunks(states, targets):
        logits = torch.addmm(bias, rows, weight.t(), out=_aligned_rows(rows, len(weight)))
        scores = _at_least_float32(logits)
        log_sum = scores.logsumexp(-1, keepdim=True)
        log_probs.append((scores.gather(1, words.unsqueeze(1)) - log_sum).squeeze(1))
    return torch.cat(log_probs)


def _aligned_rows(like: Tensor, width: int) -> Tensor:
    """Return an empty (rows, width) matrix whose rows start at cache lines, half again as fast."""
    return like.new_empty(len(like), -(-width // 16) * 16)[:, :width]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _chunks(states: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(states.split(_CHUNK_TOKENS), targets.split(_CHUNK_TOKENS), strict=True)


@dataclass(frozen=True)
class WordSample:
    """A part of the vocabulary that stands for the whole in a softmax's normaliser.

    Words that matter (the frequent ones and the batch's own) stand for themselves; a random sample
    of the others stands for all others, each with the weight others / sampled. The normaliser is
    then unbiased, and as little mass lies on the others its variance is small. A stratified form
    of the importance sampling of Jean et al. 2015, section 3.1.

    Attributes:
        ids: the words, ascending, (S,).
        log_weight: log of what each word counts for, (S,).
    """

    ids: Tensor
    log_weight: Tensor

    @classmethod
    def draw(
        cls, vocabulary: int, frequent: int, sampled: int, batch_words: Tensor, rng: Generator
    ) -> WordSample:
        """Draw a sample for a batch; ids are by frequency, so the first are the frequent ones."""
        is_kept = np.zeros(vocabulary, dtype=bool)
        is_kept[:frequent] = True
        is_kept[batch_words.numpy()] = True
        others = np.flatnonzero(~is_kept)
        drawn = rng.choice(others, size=min(sampled, len(others)), replace=False)
        log_weight = np.zeros(vocabulary, dtype=np.float32)
        log_weight[drawn] = np.log(max(1, len(others)) / max(1, len(drawn)))
        is_kept[drawn] = True
        ids = np.flatnonzero(is_kept)
        return cls(torch.from_numpy(ids), torch.from_numpy(log_weight[ids]))

    def to(self, device: torch.device) -> WordSample:
        """Move the sample."""
        return WordSample(self.ids.to(device), self.log_weight.to(device))


def token_log_probs(
    states: Tensor, layer: nn.Linear, targets: Tensor, sample: WordSample | None = None
) -> Tensor:
    """Return log softmax(layer(states))[target] for every token, in nats.

    Under autocast the products run in its type; softmax and result are float32 all the same.

    Args:
        states: (tokens, H).
        layer: the output layer, H to V.
        targets: word ids, (tokens,); all of them in the sample, if there is one.
        sample: words over which the normaliser is estimated; None for the exact one.

    Returns:
        Float32, (tokens,).
    """
    device = states.device.type
    weight: Tensor = layer.weight
    bias: Tensor = layer.bias
    if sample is not None:
        weight = weight.index_select(0, sample.ids)
        bias = bias.index_select(0, sample.ids)
        targets = torch.searchsorted(sample.ids, targets)
        bias = bias + sample.log_weight
    if torch.is_autocast_enabled(device):
        lower = torch.get_autocast_dtype(device)
        states, weight, bias = states.to(lower), weight.to(lower), bias.to(lower)
    with torch.autocast(device, enabled=False):
        if not torch.is_grad_enabled():
            return _log_probs(states, weight, bias, targets)
        return linear_log_probs(states, weight, bias, targets)


def linear_log_probs(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(states @ weight.T + bias)[target] in the type that all of them have."""
    return cast(Tensor, _LinearLogProb.apply(states, weight, bias, targets))  # type: ignore[no-untyped-call]


def bag_log_probs(
    features: Tensor, layer: nn.Linear, words: Tensor, sample: WordSample | None = None
) -> Tensor:
    """Return log softmax(layer(features))[word] for every word of each bag, in nats.

    Args:
        features: (B, J, H).
        layer: H to V.
        words: ids, 0 where a bag is shorter, (B, T).
        sample: words over which the normaliser is estimated; None for the exact one.

    Returns:
        Float32, (B, J, T); the value at a 0 means nothing.
    """
    weight: Tensor = layer.weight
    bias: Tensor = layer.bias
    if sample is not None:
        weight = weight.index_select(0, sample.ids)
        bias = bias.index_select(0, sample.ids) + sample.log_weight
        words = torch.searchsorted(sample.ids, words.contiguous())
    logits = nn.functional.linear(features, weight, bias).float()  # (B, J, V)
    chosen = logits.gather(2, words.unsqueeze(1).expand(-1, features.shape[1], -1))
    return chosen - logits.logsumexp(-1, keepdim=True)  # (B, J, T)
