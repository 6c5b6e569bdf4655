"""Batches with their noise: every random number a function of (seed, purpose, number)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.batches import BatchOrder, DialogBatch, collate, longest_first
from siserve_training.data.pairs import Ints, PairSet
from siserve_training.models.draws import Noise, NoiseWidths
from siserve_training.nets.output import WordSample

__all__ = [
    "INNER",
    "RANKING",
    "RESPONSES",
    "TRAINING",
    "VALIDATION",
    "PreparedBatch",
    "StepNoise",
    "TextBatch",
    "evaluation_batches",
    "prepare_batch",
    "spread",
    "training_batches",
    "validation_batches",
]

TRAINING, INNER, VALIDATION, RANKING, RESPONSES = range(5)  # purposes of noise


@dataclass(frozen=True)
class StepNoise:
    """Every random number of one batch, a function of (seed, purpose, number) alone.

    All are drawn for the whole batch and then cut, so that several processes share the batch of
    one.

    Attributes:
        rng: numpy generator, for choices.
        generator: torch generator, for Gaussian noise.
    """

    rng: np.random.Generator
    generator: torch.Generator

    @classmethod
    def of(cls, seed: int, purpose: int, number: int) -> StepNoise:
        """Make the generators of batch `number`."""
        rng = np.random.default_rng([seed, purpose, number])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return cls(rng, generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(*shape, generator=self.generator)


class TextBatch(Protocol):
    """Texts that a model learns to say: responses with their contexts, or sentences."""

    def __len__(self) -> int:
        """Return how many."""

    @property
    def response_lengths(self) -> Tensor:
        """Predicted tokens of each, on the CPU, (B,)."""

    def to(self, device: torch.device) -> TextBatch:
        """Move the batch."""


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with its noise, ready for a forward pass.

    Attributes:
        pairs: the process's share of the batch; sentences count as pairs without a context.
        noise: of its latents.
        sample: words of the sampled softmax, or None.
        share: pairs here over pairs of an even split, to weigh uneven shares.
        seed: of what a model draws itself while it trains, such as masks of dropout.
    """

    pairs: TextBatch
    noise: Noise
    sample: WordSample | None
    share: float
    seed: int = 0

    def to(self, device: torch.device) -> PreparedBatch:
        """Move tensors to a device."""
        return PreparedBatch(
            self.pairs.to(device),
            self.noise.to(device),
            self.sample.to(device) if self.sample else None,
            self.share,
            self.seed,
        )


def prepare_batch(
    pairs: PairSet,
    responses: Ints,
    config: TrainConfig,
    widths: NoiseWidths,
    noise: StepNoise,
    num_aux: int,
    *,
    sample_from: int,
    hide: bool,
    rank: int = 0,
    world: int = 1,
) -> PreparedBatch:
    """Collate one batch, or a process's share of it, and draw its noise.

    Args:
        pairs: the split.
        responses: positions of the whole batch, longest first.
        config: J and rates.
        widths: of the model's noise.
        noise: of the whole batch.
        num_aux: K.
        sample_from: size of the vocabulary that a sampled softmax draws from; 0 for the exact one.
        hide: whether features are hidden at random.
        rank: number of this process.
        world: number of processes.
    """
    count = len(responses)
    rows = slice(rank, None, world)
    is_hidden = noise.rng.random((count, 2)) < config.hide_feature_rate if hide else None
    eps = Noise.draw(noise.normal, count, config.num_latents, num_aux, widths).rows(rows)
    batch = collate(pairs, responses[rows], None if is_hidden is None else is_hidden[rows])
    sample = None
    if sample_from:
        words = torch.unique(batch.utterances[batch.response])
        sample = WordSample.draw(
            sample_from,
            config.frequent_words,
            config.sampled_words,
            words,
            noise.rng,
        )
    seed = int(noise.rng.integers(2**62))
    return PreparedBatch(batch, eps, sample, len(batch) * world / count, seed)


def validation_batches(
    pairs: PairSet,
    config: TrainConfig,
    widths: NoiseWidths,
    limit: int = 0,
    batch_size: int = 128,
) -> Iterator[PreparedBatch]:
    """Yield every pair of a split once, with the same noise every time.

    Args:
        pairs: the split.
        config: J and K, which is at its end value.
        widths: of the model's noise.
        limit: pairs to use, evenly spread; 0 for all.
        batch_size: pairs of a batch.
    """
    responses = spread(pairs.responses, limit)
    for number, start in enumerate(range(0, len(responses), batch_size)):
        chosen = longest_first(pairs, responses[start : start + batch_size])
        noise = StepNoise.of(config.seed, VALIDATION, number)
        yield prepare_batch(
            pairs, chosen, config, widths, noise, config.num_aux, sample_from=0, hide=False
        )


def evaluation_batches(pairs: PairSet, limit: int, batch_size: int) -> Iterator[DialogBatch]:
    """Yield `limit` evenly spread pairs of a split, 0 for all, each once and without noise."""
    responses = spread(pairs.responses, limit)
    for start in range(0, len(responses), batch_size):
        yield collate(pairs, longest_first(pairs, responses[start : start + batch_size]))


def spread(responses: Ints, limit: int) -> Ints:
    """Take `limit` evenly spread positions, 0 for all."""
    if not limit or limit >= len(responses):
        return responses
    places = np.linspace(0, len(responses) - 1, limit).round().astype(int)
    chosen: Ints = responses[places]
    return chosen


def training_batches(
    pairs: PairSet, config: TrainConfig, first: int, inner: bool = False
) -> Iterator[tuple[int, Ints]]:
    """Yield (number, responses) of the training batches from number `first` on, without end.

    Algorithm 1's inner steps take fresh batches from an order of their own.
    """
    seed = config.seed + (1_000_003 if inner else 0)
    order = BatchOrder(pairs, config.batch_size, config.run_length, seed)
    yield from enumerate(order.batches(first), start=first)
