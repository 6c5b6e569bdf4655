"""Choose varied responses among more candidates than are asked for.

Greedy maximal marginal relevance (Carbonell & Goldstein 1998, "The use of MMR, diversity-based
reranking"): the next choice has the best trade of its own score against its likeness to what is
chosen already. Likeness is the overlap of bigrams, because different bigrams are what makes a set
varied (a response of one word has that word for its bigram); the score is the consensus among the
candidates. Serving and evaluation use these same functions. Nothing here is drawn, and the order in
which candidates come decides only between candidates that are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["consensus", "select_diverse"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def consensus(responses: Sequence[Sequence[int]]) -> Floats:
    """Score each candidate by its mean likeness to all of them, itself included.

    The candidates are draws from p(x|c), so this is the expected likeness to another draw: minimum
    Bayes risk (Kumar & Byrne 2004) with the Dice coefficient of bigrams for the gain. Unlike the
    log probability of a response given its own latent it does not prefer short responses, and it
    asks nothing of the model.

    Args:
        responses: token ids of the M candidates, special ones left out.

    Returns:
        Scores above 0 and up to 1, (M,).
    """
    shared, sizes = _count_shared_bigrams(responses)
    dice = 2 * shared / (sizes[:, None] + sizes)  # (M, M)
    scores: Floats = np.sort(dice, axis=1).mean(axis=1)  # sorted: order must not change rounding
    return scores


def select_diverse(
    scores: npt.ArrayLike, responses: Sequence[Sequence[int]], n: int, diversity: float
) -> Ints:
    """Choose n of M candidates, always the one of the largest value among those that are left.

    The value is (1 - diversity) * rank of the score - diversity * largest likeness to a chosen one,
    ranks from 0 for the lowest score to 1 for the highest, likeness from 0 to 1. A candidate whose
    words are chosen already waits until no other is left. Equal values go to the higher score, then
    to the lower index.

    Args:
        scores: how good each candidate is, on any scale, (M,).
        responses: token ids of the M candidates, special ones left out.
        n: how many to choose, at most M.
        diversity: 0 = off, the first n as they are; above it from the best ones that differ to 1 =
            the best one, then whatever is least like those before.

    Returns:
        Indices of the chosen ones in the order of choice, (n,).

    Raises:
        ValueError: if the arguments do not fit each other.
    """
    goodness = np.asarray(scores, dtype=np.float64)
    _check(goodness, len(responses), n, diversity)
    if diversity == 0:
        return np.arange(n)
    shared, sizes = _count_shared_bigrams(responses)
    likeness = shared / np.minimum(sizes[:, None], sizes)  # (M, M)
    texts = [tuple(response) for response in responses]
    worth = (1 - diversity) * _ranks(goodness)
    nearest = np.zeros(len(texts))  # likeness to the most alike of those that are chosen
    left = np.arange(len(texts))
    repeats = np.zeros(len(texts), dtype=bool)
    chosen: list[int] = []
    for _ in range(n):
        value = worth - diversity * nearest
        keys = (left, -goodness[left], -value[left], repeats[left])  # the last one comes first
        best = int(left[np.lexsort(keys)[0]])
        chosen.append(best)
        left = left[left != best]
        nearest = np.maximum(nearest, likeness[best])
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


def _count_shared_bigrams(responses: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    """Count the different bigrams that two responses share, (M, M), and that each has, (M,)."""
    bigrams: list[set[tuple[int, ...]]] = [
        {*pairwise(response)} or {tuple(response)} for response in responses
    ]
    column = {bigram: place for place, bigram in enumerate(set().union(*bigrams))}
    has = np.zeros((len(bigrams), len(column)), dtype=np.float32)  # whole numbers stay exact
    for row, held in zip(has, bigrams, strict=True):
        row[[column[bigram] for bigram in held]] = 1
    return (has @ has.T).astype(np.float64), has.sum(axis=1, dtype=np.float64)
