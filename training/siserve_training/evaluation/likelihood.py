"""Estimates of log p(x|c), and how much of it rests on the context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.batches import DialogBatch
from siserve_training.data.pairs import Ints, PairSet
from siserve_training.evaluation.system import Scorer, System
from siserve_training.models.draws import Noise, NoiseWidths
from siserve_training.tasks.prepared import RANKING, VALIDATION, StepNoise, evaluation_batches

__all__ = [
    "LikelihoodEstimate",
    "Retrieval",
    "chunk_sizes",
    "importance_weighted",
    "log_weights",
    "prior_sampled",
    "retrieval",
]

BatchT = TypeVar("BatchT")

_BATCH_PAIRS = 32
_CHUNK_SAMPLES = 10
#: Sums over a response differ by so much for no better reason than the place of a row in a batch.
_TIE_NATS = 1e-4


@dataclass(frozen=True)
class LikelihoodEstimate:
    """An estimate of log p(x|c) from S samples, a lower bound in expectation that rises with S.

    Attributes:
        log_p_x: mean over pairs, nats a response.
        std_error: of that mean over pairs.
        estimate_error: mean over pairs of the standard error that S samples leave, nats.
        perplexity: per token.
        samples: S.
        pairs: how many pairs.
    """

    log_p_x: float
    std_error: float
    estimate_error: float
    perplexity: float
    samples: int
    pairs: int

    @classmethod
    def of(cls, log_weights: Tensor, tokens: int) -> LikelihoodEstimate:
        """Sum up log weights of S samples a pair, (pairs, S)."""
        pairs, samples = log_weights.shape
        log_w = log_weights.double()
        log_p = torch.logsumexp(log_w, 1) - math.log(samples)  # (pairs,)
        error = torch.zeros(())
        if samples > 1:  # of a log of a mean, to first order
            relative = torch.exp(log_w - log_p.unsqueeze(1))  # (pairs, S), mean 1
            error = (relative.std(1) / math.sqrt(samples)).mean()
        return cls(
            log_p_x=float(log_p.mean()),
            std_error=float(log_p.std() / math.sqrt(pairs)) if pairs > 1 else math.nan,
            estimate_error=float(error),
            perplexity=math.exp(-float(log_p.sum()) / tokens),
            samples=samples,
            pairs=pairs,
        )


@torch.no_grad()
def importance_weighted(
    system: System, pairs: PairSet, config: TrainConfig, limit: int, samples: int
) -> LikelihoodEstimate:
    """Estimate log p(x|c) by S importance samples of the posterior (Burda et al. 2016).

    With the own component in q~ and a prior of fresh lambda the weights average to p(x|c) for every
    number of auxiliaries.

    Args:
        system: one that has densities.
        pairs: the split.
        config: K and the seed.
        limit: evenly spread pairs; 0 for all.
        samples: S, at least 1.
    """
    rows: list[Tensor] = []
    tokens = 0
    for number, batch in enumerate(evaluation_batches(pairs, limit, _BATCH_PAIRS)):
        batch = batch.to(system.device)
        noise = StepNoise.of(config.seed, VALIDATION, number)
        sizes = chunk_sizes(samples, _CHUNK_SAMPLES)
        rows.append(log_weights(system, batch, system.widths, noise, config.num_aux, sizes))
        tokens += int(batch.response_lengths.sum())
    return LikelihoodEstimate.of(torch.cat(rows), tokens)


@torch.no_grad()
def log_weights(
    scorer: Scorer[BatchT],
    batch: BatchT,
    widths: NoiseWidths,
    noise: StepNoise,
    num_aux: int,
    chunks: Iterable[int],
) -> Tensor:
    """Return log p(x,z|c) - log q(z|x,c) of S importance samples of each text, on the CPU, (B, S).

    Args:
        scorer: one that has densities.
        batch: B texts, on its device.
        widths: of the scorer's noise.
        noise: of the batch.
        num_aux: K; auxiliaries are shared within a chunk.
        chunks: samples that are scored at once; they add up to S.
    """
    encoded = scorer.encode(batch)
    rows, device = len(encoded.c), encoded.c.device
    weights = []
    for size in chunks:
        eps = Noise.draw(noise.normal, rows, size, num_aux, widths).to(device)
        latents = scorer.draw_posterior(encoded, eps)
        log_p_x = scorer.log_p_x(batch, encoded.c, latents.z)
        weights.append(log_p_x + latents.log_p_z - latents.log_q_z)
    return torch.cat(weights, dim=1).cpu()


@torch.no_grad()
def prior_sampled(
    system: System, pairs: PairSet, config: TrainConfig, limit: int, samples: int
) -> LikelihoodEstimate:
    """Estimate log p(x|c) as the log of the mean of p(x|z,c) over S latents of the prior.

    Needs no density of the prior, so it compares all systems; it is lower than an importance-
    weighted estimate of the same S where the posterior knows more than the prior.
    """
    samples = 1 if system.is_deterministic else samples
    rows: list[Tensor] = []
    tokens = 0
    for number, batch in enumerate(evaluation_batches(pairs, limit, _BATCH_PAIRS)):
        batch = batch.to(system.device)
        noise = StepNoise.of(config.seed, VALIDATION, number)
        c = system.encode(batch).c
        drawn = []
        for size in chunk_sizes(samples, _CHUNK_SAMPLES):
            eps = noise.normal(len(batch), size, prior_width(system)).to(system.device)
            drawn.append(system.log_p_x(batch, c, system.draw_prior(c, eps)))
        rows.append(torch.cat(drawn, dim=1).cpu())  # (B, S)
        tokens += int(batch.response_lengths.sum())
    return LikelihoodEstimate.of(torch.cat(rows), tokens)


@dataclass(frozen=True)
class Retrieval:
    """How often a response is likelier under its own context than under those of other dialogs.

    Attributes:
        recall_10: R@1/10, share of responses whose own context beats 9 others.
        recall_20: R@1/20, the same against 19.
        is_first_10: for each response, ties counted in parts, (pairs,).
        is_first_20: (pairs,).
        samples: S of each log p(x|c), by Monte Carlo over the prior.
    """

    recall_10: float
    recall_20: float
    is_first_10: tuple[float, ...]
    is_first_20: tuple[float, ...]
    samples: int


@torch.no_grad()
def retrieval(
    system: System, pairs: PairSet, config: TrainConfig, limit: int, samples: int
) -> Retrieval:
    """Rank contexts for a fixed response by log p(x|c), so that its length cancels.

    A response's rivals are contexts of other dialogs, drawn from the same pairs; all contexts get
    the same noise. Chance is 0.1 and 0.05.

    Args:
        system: any.
        pairs: the split; its pairs must stand in at least two dialogs.
        config: the seed.
        limit: evenly spread pairs; 0 for all.
        samples: S.
    """
    samples = 1 if system.is_deterministic else samples
    rng = np.random.default_rng([config.seed, RANKING])
    batches = [batch.to(system.device) for batch in evaluation_batches(pairs, limit, _BATCH_PAIRS)]
    contexts = torch.cat([system.encode(batch).c for batch in batches])  # (N, C)
    dialogs = np.concatenate([batch.dialog.cpu().numpy() for batch in batches])
    firsts: list[Tensor] = []
    start = 0
    for batch in batches:
        rows = range(start, start + len(batch))
        chosen = torch.from_numpy(np.stack([_rivals(dialogs, row, rng) for row in rows]))  # (B, 20)
        log_p = _log_p_under(
            system, batch, contexts[chosen.to(system.device)], samples, rng
        )  # (B, 20)
        firsts.append(torch.stack([_is_first(log_p[:, :10]), _is_first(log_p)], dim=1).cpu())
        start += len(batch)
    is_first = torch.cat(firsts).double()  # (N, 2)
    return Retrieval(
        recall_10=float(is_first[:, 0].mean()),
        recall_20=float(is_first[:, 1].mean()),
        is_first_10=tuple(is_first[:, 0].tolist()),
        is_first_20=tuple(is_first[:, 1].tolist()),
        samples=samples,
    )


def _rivals(dialogs: Ints, row: int, rng: np.random.Generator) -> Ints:
    """Return a row, then 19 rows of other dialogs, drawn with replacement if there are fewer."""
    others = np.flatnonzero(dialogs != dialogs[row])
    return np.append(row, rng.choice(others, 19, replace=len(others) < 19))


def _log_p_under(
    system: System, batch: DialogBatch, contexts: Tensor, samples: int, rng: np.random.Generator
) -> Tensor:
    """Return log p(x|c) of each response under each of its contexts, (B, M, C) to (B, M)."""
    pairs, count, _ = contexts.shape
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    eps = torch.randn(pairs, 1, samples, prior_width(system), generator=generator)
    eps = eps.expand(-1, count, -1, -1).flatten(0, 1).to(contexts.device)  # (B*M, S, P)
    z = system.draw_prior(contexts.flatten(0, 1), eps)  # (B*M, S, D)
    each = contexts.unsqueeze(2).expand(-1, -1, samples, -1)  # (B, M, S, C)
    log_p = system.log_p_x(batch, each.flatten(1, 2), z.view(pairs, count * samples, -1))
    return torch.logsumexp(log_p.view(pairs, count, samples), dim=2)


def _is_first(log_p: Tensor) -> Tensor:
    """Return whether column 0 is the largest, 1/n where n columns share that, (B, M) to (B,)."""
    is_largest = log_p >= log_p.max(1, keepdim=True).values - _TIE_NATS
    return is_largest[:, 0] / is_largest.sum(1)


def prior_width(system: System) -> int:
    """Return P, the numbers that a latent of the prior is drawn from."""
    return system.widths.z + system.widths.prior


def chunk_sizes(total: int, size: int) -> Iterator[int]:
    """Divide a number into parts of at most `size`."""
    for start in range(0, total, size):
        yield min(size, total - start)
