"""The output layer and its loss in one pass over real tokens.

With 10,002 words the output layer is most of a training step. Logits become the softmax's error in
place, some rows at a time while they are in cache, and are kept for the gradient; the gradient
itself reads that matrix in products alone. Padding never gets here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

__all__ = ["WordSample", "bag_log_probs", "linear_log_probs", "token_log_probs"]

#: Tokens that are scored at once on a CPU, and elsewhere, where few kernels are worth their memory.
_CHUNK_TOKENS = 512
_DEVICE_TOKENS = 4096
#: Logits that lie in a core's cache while they become probabilities: of 10,002 words 32 rows.
_CACHED_LOGITS = 32 * 10_240


class _LinearLogProb(torch.autograd.Function):
    """log softmax(states @ weight.T + bias)[target], with gradients for all but the targets.

    The only matrix of size (tokens, words) holds the logits, then what log p[target] gains by each
    of them, one-hot - p. A token's share in the gradient multiplies its state, not that matrix.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        logits = torch.addmm(bias, states, weight.t(), out=_aligned_rows(states, len(weight)))
        log_probs = _softmax_errors(logits, targets)
        ctx.save_for_backward(states, weight, logits)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, errors = ctx.saved_tensors
        scale = grads[0].unsqueeze(1)  # (n, 1)
        grad_states = _scaled(torch.mm(errors, weight), scale)
        if not ctx.needs_input_grad[1]:
            return grad_states, None, None, None
        grad_weight = torch.mm(errors.t(), _scaled(states, scale))
        grad_bias = torch.mm(scale.t().to(errors.dtype), errors).squeeze(0)
        return grad_states, grad_weight, grad_bias, None


def _softmax_errors(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits into one-hot - p in place, (n, V), and return log p of the targets, (n,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.new_empty(len(logits), dtype=wide)
    on_cpu = logits.device.type == "cpu"
    rows = max(1, _CACHED_LOGITS // logits.shape[1]) if on_cpu else _DEVICE_TOKENS
    pieces = (logits.split(rows), targets.split(rows), log_probs.split(rows))
    for piece, words, found in zip(*pieces, strict=True):
        scores, words = piece.to(wide), words.unsqueeze(1)
        scores.sub_(scores.amax(1, keepdim=True))
        of_target = scores.gather(1, words)
        scores.exp_()
        total = scores.sum(1, keepdim=True)
        torch.sub(of_target, total.log(), out=found.unsqueeze(1))
        scores.mul_(-1 / total).scatter_add_(1, words, torch.ones_like(total))
        piece.copy_(scores)
    return log_probs


def _scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """Multiply each row by a number of its own, in float32 at least, (n, H) and (n, 1)."""
    return torch.mul(rows, scale).to(rows.dtype)


def _log_probs(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Compute what `_LinearLogProb` does and keep nothing for a gradient."""
    log_probs = [torch.empty(0, device=states.device)]
    at_once = _CHUNK_TOKENS if states.device.type == "cpu" else _DEVICE_TOKENS
    for rows, words in zip(states.split(at_once), targets.split(at_once), strict=True):
        logits = torch.addmm(bias, rows, weight.t(), out=_aligned_rows(rows, len(weight)))
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_sum = scores.logsumexp(-1, keepdim=True)
        log_probs.append((scores.gather(1, words.unsqueeze(1)) - log_sum).squeeze(1))
    return torch.cat(log_probs)


def _aligned_rows(like: Tensor, width: int) -> Tensor:
    """Return an empty (rows, width) matrix whose rows start at cache lines, half again as fast.

    Behind each row are zeros: oneDNN's bf16 products read there, and multiply by 0 what they find.
    """
    rows = like.new_empty(len(like), -(-width // 16) * 16)
    rows[:, width:] = 0
    return rows[:, :width]


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
