"""Sentence BLEU-3 of sampled responses, with NLTK's smoothing method 7 in both its forms.

The formulas are Chen & Cherry 2014, method 7 (4, then 5), as NLTK computed and computes them. They
are written out here because NLTK changed them: ``legacy`` is NLTK up to 3.4.5, which the published
tables of 2018-19 rest on, ``modern`` is NLTK from 3.6. The same replies differ by a factor of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import SpecialTokens

__all__ = ["FAMILIES", "Family", "NGramMatches", "count_matches", "f1_of_means", "sentence_bleu"]

Family = Literal["modern", "legacy"]
FAMILIES: tuple[Family, ...] = ("modern", "legacy")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mean = TypeVar("Mean", float, Floats)
Tokens = tuple[int, ...]

_ORDERS = (1, 2, 3, 5)  # method 5 takes the 5-gram precision for the neighbour of the trigrams
_K = 5.0  # of method 4


@dataclass(frozen=True)
class NGramMatches:
    """All that BLEU needs to know of every sample.

    Attributes:
        matches: clipped matches of orders 1, 2, 3 and 5, (N, R, 4).
        lengths: tokens of the samples, ``</s>`` counted, at least 1, (N, R).
        reference_lengths: tokens of the references, (N,).
    """

    matches: Ints
    lengths: Ints
    reference_lengths: Ints


def count_matches(
    samples: Ints, references: Sequence[Sequence[int]], tokens: SpecialTokens
) -> NGramMatches:
    """Count the n-grams that samples share with the reference of their context.

    Pads are dropped and what follows the first ``</s>`` too; ``</s>`` itself stays, so two texts
    share at least that token. ``<s>`` is dropped from the reference. A sample without any token
    counts as one that matches nothing.

    Args:
        samples: id rows, (N, R, W).
        references: ids from ``<s>`` to ``</s>``, N of them.
        tokens: ids of the marks.
    """
    count, draws = samples.shape[:2]
    matches = np.zeros((count, draws, len(_ORDERS)), dtype=np.int64)
    lengths = np.ones((count, draws), dtype=np.int64)
    reference_lengths = np.ones(count, dtype=np.int64)
    for number, (rows, ids) in enumerate(zip(samples.tolist(), references, strict=True)):
        reference = _through_end([i for i in ids if i != tokens.start], tokens)
        reference_lengths[number] = max(1, len(reference))
        offered = [Counter(_ngrams(reference, order)) for order in _ORDERS]
        known: dict[Tokens, list[int]] = {}
        for draw, row in enumerate(rows):
            sample = _through_end(row, tokens)
            if sample not in known:
                known[sample] = [
                    _clipped(_ngrams(sample, order), grams)
                    for order, grams in zip(_ORDERS, offered, strict=True)
                ]
            matches[number, draw] = known[sample]
            lengths[number, draw] = max(1, len(sample))
    return NGramMatches(matches, lengths, reference_lengths)


def _through_end(ids: Sequence[int], tokens: SpecialTokens) -> Tokens:
    kept = []
    for index in ids:
        if index != tokens.pad:
            kept.append(index)
        if index == tokens.end:
            break
    return tuple(kept)


def _ngrams(ids: Tokens, order: int) -> list[Tokens]:
    return list(zip(*(ids[start:] for start in range(order)), strict=False))


def _clipped(grams: list[Tokens], offered: Counter[Tokens]) -> int:
    left: dict[Tokens, int] = {}
    matched = 0
    for gram in grams:
        if gram in offered:
            remaining = left.get(gram, offered[gram])
            if remaining:
                matched += 1
                left[gram] = remaining - 1
    return matched


def sentence_bleu(counted: NGramMatches, family: Family) -> Floats:
    """Compute BLEU-3 with smoothing method 7 of every sample against its reference.

    Method 4 gives orders 2 and 3 without a match a small precision, method 5 averages neighbours,
    m_n = (m_{n-1} + p_n + p_{n+1})/3 with m_0 = p_1 + 1. The result exceeds 1 for good matches:
    identical texts of 5 tokens and more score 1.15389.

    Args:
        counted: from `count_matches`.
        family: ``modern`` (NLTK from 3.6) or ``legacy`` (up to 3.4.5, where a sample of one token
            raises an error, which the peers count as 0).

    Returns:
        Scores, (N, R).
    """
    length = counted.lengths.astype(np.float64)
    possible = np.stack([np.maximum(1, length - order + 1) for order in _ORDERS], axis=-1)
    precision = counted.matches / possible  # (N, R, 4): orders 1, 2, 3, 5
    longer = length > 1
    log_length = np.log(np.where(longer, length, np.e))  # samples of one token are treated apart
    zeros = np.zeros_like(length)  # orders without a match so far
    for place in (1, 2):
        is_zero = (counted.matches[..., place] == 0) & longer
        zeros += is_zero
        if family == "modern":
            smoothed = log_length / (_K * 2.0**zeros) / possible[..., place]
        else:
            smoothed = 1 / (place + _K / log_length)
        precision[..., place] = np.where(is_zero, smoothed, precision[..., place])
    mean = precision[..., 0] + 1
    product = np.ones_like(mean)
    for place in range(3):
        mean = (mean + precision[..., place] + precision[..., place + 1]) / 3
        product *= mean
    reference = counted.reference_lengths[:, None]  # (N, 1)
    brevity = np.where(length > reference, 1.0, np.exp(1 - reference / length))
    has_score = counted.matches[..., 0] > 0
    if family == "legacy":
        has_score &= longer
    return np.where(has_score, brevity * np.cbrt(product), 0.0)


def f1_of_means(recall: Mean, precision: Mean) -> Mean:
    """Return the harmonic mean of corpus means, with the peers' 1e-11 under the line."""
    return 2 * precision * recall / (precision + recall + 1e-11)
