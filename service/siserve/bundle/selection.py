"""Choose varied responses among more candidates than are asked for.

Greedy maximal marginal relevance (Carbonell & Goldstein 1998, "The use of MMR, diversity-based
reranking"): the next choice has the best trade of its own score against what the chosen ones have
said already. Both sides count words and pairs of neighbouring words, which are what makes a set
varied (a response of one word has that word for its pair). The score is the consensus among the
candidates; a repetition is told from all that is chosen together, for a response may say nothing
new and yet be unlike each of the others. Serving and evaluation use these same functions. Nothing
here is drawn, and the order in which candidates come decides only between candidates that are
equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["consensus", "select_diverse"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_WEIGHT = 0.6  # where a set is about as varied as one that is not chosen


def consensus(responses: Sequence[Sequence[int]]) -> Floats:
    """Score each candidate by how well it would do if any of the candidates were what is said.

    The candidates are draws from p(x|c), so this is minimum Bayes risk (Kumar & Byrne 2004) with a
    gain in the manner of BLEU: of candidate x against y the share of x's words and pairs that y has
    too, each as often as y has it, times BLEU's penalty exp(1 - |y|/|x|) where x is the shorter
    one. The penalty keeps short responses, which are easily right, from being chosen for that. It
    asks nothing of the model.

    Args:
        responses: token ids of the M candidates, special ones left out.

    Returns:
        Scores above 0 and up to 1, (M,).
    """
    said = _NGrams.of(responses)
    shared = (said.held @ said.held.T).astype(np.float64)  # (M, M)
    precision = shared / said.sizes[:, None]
    brevity = np.minimum(1.0, np.exp(1.0 - said.sizes / said.sizes[:, None]))
    gain = precision * brevity
    scores: Floats = np.sort(gain, axis=1).mean(axis=1)  # sorted: order must not change rounding
    return scores


def select_diverse(
    scores: npt.ArrayLike, responses: Sequence[Sequence[int]], n: int, diversity: float
) -> Ints:
    """Choose n of M candidates, always the one of the largest value among those that are left.

    The value is (1 - w) * rank of the score - w * share of the candidate's words and pairs that a
    chosen one has, ranks from 0 for the lowest score to 1 for the highest, w = 0.6 + 0.4 *
    diversity: below 0.6 the ones of high consensus say the same, and are less varied than n that
    are not chosen at all. A candidate whose words are chosen already waits until no other is left.
    Equal values go to the higher score, then to the lower index.

    Args:
        scores: how good each candidate is, on any scale, (M,).
        responses: token ids of the M candidates, special ones left out.
        n: how many to choose, at most M.
        diversity: 0 = off, the first n as they are; above it from what most agree on to 1 = the
            best one, then whatever repeats least of those before.

    Returns:
        Indices of the chosen ones in the order of choice, (n,).

    Raises:
        ValueError: if the arguments do not fit each other.
    """
    goodness = np.asarray(scores, dtype=np.float64)
    _check(goodness, len(responses), n, diversity)
    if diversity == 0:
        return np.arange(n)
    said = _NGrams.of(responses)
    texts = [tuple(response) for response in responses]
    weight = _LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * diversity
    worth = (1 - weight) * _ranks(goodness)
    used = np.zeros(said.held.shape[1], dtype=np.float32)  # whether a chosen one has the n-gram
    left = np.arange(len(texts))
    repeats = np.zeros(len(texts), dtype=bool)
    chosen: list[int] = []
    for _ in range(n):
        value = worth - weight * said.share_in(used)
        keys = (left, -goodness[left], -value[left], repeats[left])  # the last one comes first
        best = int(left[np.lexsort(keys)[0]])
        chosen.append(best)
        left = left[left != best]
        used = np.maximum(used, said.held[best])
        repeats |= [text == texts[best] for text in texts]
    return np.array(chosen)


def _check(scores: Floats, count: int, n: int, diversity: float) -> None:
    if scores.shape != (count,):
        raise ValueError(f"scores have shape {scores.shape}, expected ({count},): one a candidate")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold numbers that are not finite; score by consensus instead")
    if not 1 <= n <= count:
        raise ValueError(f"n must be from 1 to {count}, the number of candidates, got {n}")
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be from 0 to 1, got {diversity:g}")


def _ranks(scores: Floats) -> Floats:
    """Return ranks from 0 to 1; equal scores share the middle of their places."""
    ordered = np.sort(scores)
    places = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    ranks: Floats = (places - 1) / 2 / max(1, len(scores) - 1)
    return ranks


@dataclass(frozen=True, eq=False)
class _NGrams:
    """Words and pairs of M responses; the k-th time a response says one is a column of its own.

    Attributes:
        held: 1 where a response has a column's n-gram that often, else 0, (M, G).
        first: column of the first time of each column's n-gram, (G,).
        sizes: how many words and pairs each response has, (M,).
    """

    held: npt.NDArray[np.float32]  # sums of whole numbers stay exact
    first: Ints
    sizes: Floats

    @classmethod
    def of(cls, responses: Sequence[Sequence[int]]) -> _NGrams:
        column: dict[tuple[Hashable, int], int] = {}
        rows = []
        for response in responses:
            times: Counter[Hashable] = Counter()
            row = []
            pairs = pairwise(response) if len(response) > 1 else [tuple(response)]
            for ngram in (*response, *pairs):
                row.append(column.setdefault((ngram, times[ngram]), len(column)))
                times[ngram] += 1
            rows.append(row)
        held = np.zeros((len(rows), len(column)), dtype=np.float32)
        for ones, row in zip(held, rows, strict=True):
            ones[row] = 1
        first = np.array([column[ngram, 0] for ngram, _ in column])
        return cls(held, first, np.array([len(row) for row in rows], dtype=np.float64))

    def share_in(self, used: npt.NDArray[np.float32]) -> Floats:
        """Tell which share of each response's words and pairs is among those `used`, (M,)."""
        return (self.held @ used[self.first]).astype(np.float64) / self.sizes
