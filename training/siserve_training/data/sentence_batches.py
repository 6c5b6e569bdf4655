"""Batches of sentences that all have one length, as language models of the kind are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siserve_training.data.sentences import Ints, SentenceSet

__all__ = ["SentenceBatch", "SentenceOrder", "collate_sentences", "one_length_batches"]


@dataclass(frozen=True)
class SentenceBatch:
    """B sentences, longest first.

    Attributes:
        ids: with ``<s>`` and ``</s>``, 0-padded, (B, T).
        lengths: tokens of each, on the CPU, (B,).
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        """Return B."""
        return len(self.ids)

    @property
    def response_lengths(self) -> Tensor:
        """Predicted tokens of each: all after ``<s>``, ``</s>`` included, (B,)."""
        return self.lengths - 1

    def to(self, device: torch.device) -> SentenceBatch:
        """Move the batch; lengths stay on the CPU, where packing wants them."""
        return SentenceBatch(self.ids.to(device, non_blocking=True), self.lengths)


def collate_sentences(sentences: SentenceSet, rows: Ints) -> SentenceBatch:
    """Gather sentences into a batch; rows are sorted by length, ties keep their order.

    Args:
        sentences: the split.
        rows: numbers of the sentences, (B,).
    """
    rows = rows[np.argsort(-sentences.lengths[rows], kind="stable")]
    lengths = sentences.lengths[rows]
    ids = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : lengths[place]] = sentences.ids[row]
    return SentenceBatch(torch.from_numpy(ids), torch.from_numpy(lengths))


def one_length_batches(sentences: SentenceSet, rows: Ints, batch_size: int) -> list[Ints]:
    """Cut rows into batches of one length each, shortest first, in the order that they come in."""
    order = rows[np.argsort(sentences.lengths[rows], kind="stable")]
    lengths = sentences.lengths[order]
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    return [
        group[at : at + batch_size]
        for group in np.split(order, starts[1:])
        for at in range(0, len(group), batch_size)
    ]


@dataclass(frozen=True)
class SentenceOrder:
    """The order in which sentences are seen, a function of (seed, step) alone.

    Every batch has sentences of one length (Kim et al. 2018; He et al. 2019); each pass shuffles
    which sentences of a length stand together, and the batches.

    Args:
        sentences: the split.
        batch_size: sentences of a batch over all processes, at most.
        seed: of the shuffle; every pass has its own order.
    """

    sentences: SentenceSet
    batch_size: int
    seed: int

    @property
    def steps_per_pass(self) -> int:
        """Batches of one pass; 1,359 on PTB's training split in batches of 32."""
        _, counts = np.unique(self.sentences.lengths, return_counts=True)
        return int((-(-counts // self.batch_size)).sum())

    def one_pass(self, number: int) -> list[Ints]:
        """Return the batches of pass `number`; every sentence stands in one of them."""
        rng = np.random.default_rng([self.seed, number])
        batches = one_length_batches(
            self.sentences, rng.permutation(len(self.sentences)), self.batch_size
        )
        return [batches[place] for place in rng.permutation(len(batches))]

    def batches(self, first_step: int = 0) -> Iterator[Ints]:
        """Yield each batch's sentences, without end.

        Args:
            first_step: number of the first batch to yield, from 0.
        """
        number, place = divmod(first_step, self.steps_per_pass)
        while True:
            yield from self.one_pass(number)[place:]
            number, place = number + 1, 0
