"""Batches of pairs: short runs of consecutive windows from several dialogs.

Consecutive windows share all but one of their utterances, so a batch holds each distinct
utterance once and windows point at them. A batch out of one conversation would share the most
and train the worst; `run_length` sets the compromise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siserve_training.data.pairs import Floats, Ints, PairSet

__all__ = ["BatchOrder", "DialogBatch", "collate", "longest_first"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DialogBatch:
    """B pairs over Q distinct utterances, those with the longest responses first.

    Attributes:
        utterances: ids with ``<s>`` and ``</s>``, 0-padded, longest first, (Q, T).
        lengths: tokens of each utterance, on the CPU, (Q,).
        context: index into `utterances`, or into `told` where there is one, oldest first, 0 where
            the context is shorter, (B, U).
        context_lengths: utterances of each context, on the CPU, (B,).
        floor: 1 where the responder spoke, 0 elsewhere, (B, U).
        response: index into `utterances`, (B,).
        topic: topic id, 0 unknown or hidden, (B,).
        profile: the responder's 4 numbers, then the other's, 0 unknown or hidden, (B, 8).
        dialog: number of the dialog, (B,).
        told: what a pretrained context encoder is told of each distinct context utterance, vectors
            (Q', P) or token ids (Q', T'); `utterances` then holds the responses alone.
    """

    utterances: Tensor
    lengths: Tensor
    context: Tensor
    context_lengths: Tensor
    floor: Tensor
    response: Tensor
    topic: Tensor
    profile: Tensor
    dialog: Tensor
    told: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.response)

    @property
    def response_lengths(self) -> Tensor:
        """Predicted tokens of each response: all after ``<s>``, ``</s>`` included, (B,)."""
        return self.lengths[self.response.cpu()] - 1

    def to(self, device: torch.device) -> DialogBatch:
        """Move the batch; lengths stay on the CPU, where packing wants them."""
        kept = {"lengths", "context_lengths"}
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in held.items()
            if name not in kept and tensor is not None
        }
        return DialogBatch(**{**held, **moved})


@dataclass(frozen=True)
class BatchOrder:
    """The order in which pairs are seen, a function of (seed, step) alone.

    Args:
        pairs: the split.
        batch_size: pairs of a batch over all processes.
        run_length: consecutive windows that stay together.
        seed: of the shuffle; every pass has its own order.
    """

    pairs: PairSet
    batch_size: int
    run_length: int
    seed: int

    @property
    def steps_per_pass(self) -> int:
        """Batches of one pass over the pairs, the last and shorter one included."""
        return -(-len(self.pairs) // self.batch_size)

    def one_pass(self, number: int) -> Ints:
        """Return the responses' positions in the order of pass `number`, each once."""
        rng = np.random.default_rng([self.seed, number])
        responses = self.pairs.responses
        starts = np.flatnonzero(np.diff(self.pairs.dialog_of[responses], prepend=-1))
        runs: list[Ints] = []
        for dialog in np.split(responses, starts[1:]):
            offset = int(rng.integers(self.run_length))
            runs += np.split(dialog, range(offset or self.run_length, len(dialog), self.run_length))
        order = rng.permutation(len(runs))
        return np.concatenate([runs[place] for place in order])

    def batches(self, first_step: int = 0) -> Iterator[Ints]:
        """Yield each batch's positions, longest responses first, without end.

        Args:
            first_step: number of the first batch to yield, from 0.
        """
        number, place = divmod(first_step, self.steps_per_pass)
        while True:
            order = self.one_pass(number)
            for start in range(place * self.batch_size, len(order), self.batch_size):
                yield longest_first(self.pairs, order[start : start + self.batch_size])
            number, place = number + 1, 0


def longest_first(pairs: PairSet, responses: Ints) -> Ints:
    """Sort responses by length, as the decoder wants its rows; ties keep their order."""
    lengths = np.array([len(pairs.texts[number]) for number in pairs.text_of[responses]])
    return responses[np.argsort(-lengths, kind="stable")]


def collate(pairs: PairSet, responses: Ints, is_hidden: Bools | None = None) -> DialogBatch:
    """Gather pairs into a batch in which every distinct utterance stands once.

    Args:
        pairs: the split.
        responses: positions of the responses, longest first, (B,).
        is_hidden: whether a pair's topic, and whether its profiles, are hidden, (B, 2); training
            hides some, so that a request without them is nothing new to the model.
    """
    first = pairs.first_of[pairs.dialog_of[responses]]
    lengths = np.minimum(responses - first, pairs.window)  # (B,)
    back = np.arange(lengths.max())  # (U,)
    is_utterance = back < lengths[:, None]  # (B, U)
    before = (responses - lengths)[:, None] + back
    positions = np.where(is_utterance, before, responses[:, None] - 1)
    responder = pairs.speaker_of[responses]

    answered, context = pairs.text_of[responses], pairs.text_of[positions]  # (B,), (B, U)
    told = None
    if pairs.told is not None:
        said, context = np.unique(pairs.said_of[positions], return_inverse=True)
        told, context = pairs.told.rows(said), context.reshape(positions.shape)
        utterances, token_counts, place = _distinct_utterances(pairs, answered)
    else:
        both = np.concatenate([answered, context.ravel()])
        utterances, token_counts, place = _distinct_utterances(pairs, both)
        context = place[len(answered) :].reshape(positions.shape)

    topic, profile = _features(pairs, responses, is_hidden)
    return DialogBatch(
        utterances=torch.from_numpy(utterances),
        lengths=torch.from_numpy(token_counts),
        context=torch.from_numpy(np.where(is_utterance, context, 0)),
        context_lengths=torch.from_numpy(lengths),
        floor=torch.from_numpy(
            ((pairs.speaker_of[positions] == responder[:, None]) & is_utterance).astype(np.int64)
        ),
        response=torch.from_numpy(place[: len(answered)]),
        topic=torch.from_numpy(topic),
        profile=torch.from_numpy(profile),
        dialog=torch.from_numpy(pairs.dialog_of[responses]),
        told=told,
    )


def _features(pairs: PairSet, responses: Ints, is_hidden: Bools | None) -> tuple[Ints, Floats]:
    """Gather topics, (B,), and the responder's and the other's profile, (B, 8)."""
    dialogs, responder = pairs.dialog_of[responses], pairs.speaker_of[responses]
    topic = pairs.topic_of[dialogs]
    own = pairs.profile_of[dialogs, responder]
    other = pairs.profile_of[dialogs, np.where(responder == 0, 1, 0)]
    profile = np.concatenate([own, other], axis=1)  # (B, 8)
    if is_hidden is not None:
        topic = np.where(is_hidden[:, 0], 0, topic)
        profile = np.where(is_hidden[:, 1:], np.float32(0), profile)
    return topic, profile


def _distinct_utterances(pairs: PairSet, numbers: Ints) -> tuple[Ints, Ints, Ints]:
    """Gather distinct utterances, longest first: ids (Q, T), lengths (Q,), place of each number."""
    distinct, place = np.unique(numbers, return_inverse=True)
    token_counts = np.array([len(pairs.texts[number]) for number in distinct])
    order = np.argsort(-token_counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    utterances = np.zeros((len(distinct), token_counts.max()), dtype=np.int64)
    for row, number in enumerate(distinct[order]):
        ids = pairs.texts[number]
        utterances[row, : len(ids)] = ids
    return utterances, token_counts[order], rank[place]
