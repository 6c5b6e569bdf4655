"""How varied responses are: distinct n-grams within and across them, self-BLEU, different texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import SpecialTokens

__all__ = [
    "DistinctScores",
    "corpus_distinct",
    "distinct_peer",
    "self_bleu",
    "varied_sets",
    "word_rows",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Words = tuple[int, ...]

_FIRST = 5  # what a person is shown
_ENOUGH = 4
_MAX_ORDER = 4
_NO_MATCH = 0.1  # matches that an order without any is given


@dataclass(frozen=True)
class DistinctScores:
    """Distinct-n within a sample and across the samples of a context.

    Attributes:
        intra_1, intra_2: of every sample, (N, R).
        inter_1, inter_2: of every context, (N,).
        lengths: ids before the first ``</s>``, (N, R).
    """

    intra_1: Floats
    intra_2: Floats
    inter_1: Floats
    inter_2: Floats
    lengths: Ints


def distinct_peer(samples: Ints, tokens: SpecialTokens) -> DistinctScores:
    """Compute distinct-1 and -2 with the constants of DialogWAE's code (Gu et al. 2019).

    (different n-grams + 1e-12)/(n-grams + 1e-5), so a sample too short for one n-gram has 1e-7 and
    counts. `inter` pools the n-grams of the R samples of one context; none crosses from one
    sample into the next. Pads before ``</s>`` count as words.

    Args:
        samples: id rows, (N, R, W).
        tokens: ids of the marks.
    """
    before_end = np.cumsum(samples == tokens.end, axis=-1) == 0
    lengths = before_end.sum(axis=-1)  # (N, R)
    intra = np.zeros((2, *lengths.shape))
    inter = np.zeros((2, len(samples)))
    for number, (rows, sizes) in enumerate(zip(samples.tolist(), lengths.tolist(), strict=True)):
        replies = [tuple(row[:size]) for row, size in zip(rows, sizes, strict=True)]
        for order in (1, 2):
            grams = [_ngrams(reply, order) for reply in replies]
            intra[order - 1, number] = [_ratio(len(set(g)), len(g)) for g in grams]
            inter[order - 1, number] = _ratio(len(set().union(*grams)), sum(map(len, grams)))
    return DistinctScores(intra[0], intra[1], inter[0], inter[1], lengths)


def _ratio(different: int, total: int) -> float:
    return (different + 1e-12) / (total + 1e-5)


def _ngrams(ids: Words, order: int) -> list[Words]:
    return list(zip(*(ids[start:] for start in range(order)), strict=False))


def word_rows(samples: Ints, tokens: SpecialTokens) -> list[list[Words]]:
    """Return the words of every sample: ids before the first ``</s>`` without pads."""
    rows = []
    for context in samples.tolist():
        cut = (row[: row.index(tokens.end)] if tokens.end in row else row for row in context)
        rows.append([tuple(index for index in row if index != tokens.pad) for row in cut])
    return rows


def corpus_distinct(replies: Sequence[Sequence[Words]], order: int) -> float:
    """Share of different n-grams among those of all samples of all contexts (Li et al. 2016).

    It falls as the set grows: compare sets of one size only.

    Args:
        replies: from `word_rows`.
        order: length of an n-gram.
    """
    total = 0
    different: set[Words] = set()
    for context in replies:
        for reply in context:
            grams = _ngrams(reply, order)
            total += len(grams)
            different.update(grams)
    return len(different) / total if total else 0.0


def varied_sets(replies: Sequence[Sequence[Words]]) -> Floats:
    """Say for every context whether its first 5 samples hold 4 different texts, 1 or 0, (N,)."""
    return np.array([float(len(set(context[:_FIRST])) >= _ENOUGH) for context in replies])


def self_bleu(replies: Sequence[Sequence[Words]]) -> Floats:
    """Mean BLEU-4 of each sample against the others of its context (Zhu et al. 2018, Texygen).

    Orders longer than the sample are left out, so that a short reply said twice scores 1; an order
    without a match counts 0.1 matches (NLTK's smoothing method 1); a sample that shares no word
    with the others scores 0. An empty sample scores 1 if another one is empty, else 0. High
    means that the samples repeat one another.

    Args:
        replies: from `word_rows`, at least 2 samples a context.

    Returns:
        Means over the samples, (N,).
    """
    return np.array([np.mean(_against_others(list(context))) for context in replies])


def _against_others(replies: list[Words]) -> list[float]:
    counts = [[Counter(_ngrams(r, n)) for n in range(1, _MAX_ORDER + 1)] for r in replies]
    highest = [_two_highest([count[n] for count in counts]) for n in range(_MAX_ORDER)]
    scores: dict[Words, float] = {}
    for place, reply in enumerate(replies):
        if reply not in scores:
            lengths = [len(other) for at, other in enumerate(replies) if at != place]
            scores[reply] = _bleu(reply, counts[place], highest, lengths)
    return [scores[reply] for reply in replies]


def _two_highest(counts: list[Counter[Words]]) -> dict[Words, tuple[int, int]]:
    """Return each n-gram's two highest counts, so that leaving one sample out is a look-up."""
    highest: dict[Words, tuple[int, int]] = {}
    for count in counts:
        for gram, times in count.items():
            first, second = highest.get(gram, (0, 0))
            if times > first:
                highest[gram] = (times, first)
            elif times > second:
                highest[gram] = (first, times)
    return highest


def _bleu(
    reply: Words,
    counts: list[Counter[Words]],
    highest: list[dict[Words, tuple[int, int]]],
    others: list[int],
) -> float:
    length = len(reply)
    if length == 0:
        return float(0 in others)
    orders = min(_MAX_ORDER, length)
    log_precision = 0.0
    for place in range(orders):
        matched = 0
        for gram, times in counts[place].items():
            first, second = highest[place][gram]
            matched += min(times, second if times == first else first)
        if place == 0 and not matched:
            return 0.0
        log_precision += math.log((matched or _NO_MATCH) / (length - place)) / orders
    closest = min(others, key=lambda other: (abs(other - length), other))
    brevity = 1.0 if length > closest else math.exp(1 - closest / length)
    return brevity * math.exp(log_precision)
