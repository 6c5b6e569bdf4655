"""Similarity of responses by their words' vectors: average, extrema and greedy matching.

Rus & Lintean 2012 (greedy), Forgues et al. 2014 (extrema), Mitchell & Lapata 2008 (average), in two
forms. ``peer`` is what the published dialog tables hold, DialogWAE's code (Gu et al. 2019) with all
it does to padding; ``clean`` looks at words alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK, SpecialTokens

from siserve_training.data.glove import read_vectors
from siserve_training.errors import CorpusError

__all__ = ["BowScores", "bow_clean", "bow_peer", "load_word_vectors"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MARKS = frozenset({PAD, UNK, START, END, DIALOG_START})
_SEED = 1111
_SCALE = 0.1


def load_word_vectors(path: Path, words: Sequence[str]) -> Floats:
    """Build the table of vectors that the scores rest on.

    A word of the file has the file's vector. The other words and the five marks have one drawn
    from N(0, 0.1^2), in the order of the vocabulary, from numpy's legacy generator with seed 1111
    (Gu et al. 2019).

    Args:
        path: GloVe's text format.
        words: the vocabulary; a word's place is its id.

    Returns:
        Vectors, (V, D).

    Raises:
        CorpusError: if the file is missing, malformed or has none of the words.
    """
    found = read_vectors(path, set(words) - _MARKS)
    if not found:
        raise CorpusError(
            f"{path}: none of the {len(words):,} words of the vocabulary is in it; expected "
            "vectors of the same language, in lower case"
        )
    width = len(next(iter(found.values())))
    generator = np.random.RandomState(_SEED)
    rows = [found[word] if word in found else generator.randn(width) * _SCALE for word in words]
    return np.stack(rows)  # (V, D)


@dataclass(frozen=True)
class BowScores:
    """Cosine similarities of every sample with its reference, each (N, R)."""

    average: Floats
    extrema: Floats
    greedy: Floats


Scores = tuple[Floats, Floats, Floats]


def bow_peer(
    samples: Ints, references: Sequence[Sequence[int]], vectors: Floats, tokens: SpecialTokens
) -> BowScores:
    """Score raw rows as DialogWAE's code does; n is the number of ids before the first ``</s>``.

    * average: sum of the first n vectors over n + 1e-8.
    * extrema, over *all* positions: the maximum takes positions from n on as 0, the minimum takes
      them as v + 1; the maximum is kept where it is at least the minimum's magnitude.
    * greedy: all positions of the row, whatever follows ``</s>`` and pads included, against all
      of the reference, ``</s>`` included.

    So the same words score differently with another tail, and an empty response can score 1.

    Args:
        samples: id rows, (N, R, W).
        references: ids from ``<s>`` to ``</s>``, N of them.
        vectors: (V, D).
        tokens: ids of the marks.
    """
    unit = _unit(vectors)

    def score(rows: Ints, ids: Ints) -> Scores:
        ours, theirs = _before_end(rows, tokens), _before_end(ids[None], tokens)
        v, w = vectors[rows], vectors[ids[None]]  # (R, W, D), (1, L, D)
        average = _cosine(_mean(v, ours, 1e-8), _mean(w, theirs, 1e-8))
        extrema = _cosine(_extrema_with_tail(v, ours), _extrema_with_tail(w, theirs))
        cosines = unit[rows] @ unit[ids].T  # (R, W, L)
        greedy = (cosines.max(axis=1).mean(axis=1) + cosines.max(axis=2).mean(axis=1)) / 2
        return average, extrema, greedy

    return _each_context(score, samples, references, tokens)


def bow_clean(
    samples: Ints, references: Sequence[Sequence[int]], vectors: Floats, tokens: SpecialTokens
) -> BowScores:
    """Score words alone: positions before the first ``</s>`` that are no pads, on both sides.

    The formulas are those of the papers, over n words. Average: the mean of the n vectors. Extrema:
    in each dimension the maximum over the n where it is at least the minimum's magnitude, else the
    minimum. Greedy: the mean of each word's best cosine with a word of the other side, averaged
    over both directions. What stands after ``</s>``, and how far a row is padded, changes nothing.
    A side without words scores 0.

    Args:
        samples: id rows, (N, R, W).
        references: ids from ``<s>`` to ``</s>``, N of them.
        vectors: (V, D).
        tokens: ids of the marks.
    """
    unit = _unit(vectors)

    def score(rows: Ints, ids: Ints) -> Scores:
        is_word = _before_end(rows, tokens) & (rows != tokens.pad)
        ids = ids[_before_end(ids[None], tokens)[0] & (ids != tokens.pad)]
        width = max(1, int(is_word.any(axis=0).nonzero()[0].max(initial=0)) + 1)
        rows, is_word = rows[:, :width], is_word[:, :width]
        if not len(ids):
            nothing = np.zeros(len(rows))
            return nothing, nothing, nothing
        v, w = vectors[rows], vectors[ids[None]]  # (R, W, D), (1, L, D)
        everywhere = np.ones((1, len(ids)), dtype=bool)
        average = _cosine(_mean(v, is_word, 0.0), _mean(w, everywhere, 0.0))
        extrema = _cosine(_extrema(v, is_word), _extrema(w, everywhere))
        cosines = np.where(is_word[..., None], unit[rows] @ unit[ids].T, -1.0)  # (R, W, L)
        best = (cosines.max(axis=2) * is_word).sum(axis=1) / np.maximum(1, is_word.sum(axis=1))
        greedy = np.where(is_word.any(axis=1), (cosines.max(axis=1).mean(axis=1) + best) / 2, 0.0)
        return average, extrema, greedy

    return _each_context(score, samples, references, tokens)


def _each_context(
    score: Callable[[Ints, Ints], Scores],
    samples: Ints,
    references: Sequence[Sequence[int]],
    tokens: SpecialTokens,
) -> BowScores:
    kept = [np.array([i for i in ids if i != tokens.start]) for ids in references]
    scored = [score(rows, ids) for rows, ids in zip(samples, kept, strict=True)]
    average, extrema, greedy = (np.stack(column) for column in zip(*scored, strict=True))
    return BowScores(average, extrema, greedy)  # (N, R) each


def _before_end(rows: Ints, tokens: SpecialTokens) -> Bools:
    before: Bools = np.cumsum(rows == tokens.end, axis=-1) == 0
    return before


def _unit(v: Floats) -> Floats:
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    unit: Floats = v / np.where(norm == 0, 1.0, norm)
    return unit


def _cosine(ours: Floats, theirs: Floats) -> Floats:
    cosine: Floats = _unit(ours) @ _unit(theirs[0])
    return cosine  # (R,); 0 with a zero vector


def _mean(v: Floats, is_word: Bools, epsilon: float) -> Floats:
    count = is_word.sum(axis=1, keepdims=True)
    total = (is_word[:, None].astype(np.float64) @ v)[:, 0]  # (R, D)
    mean: Floats = total / np.where(count + epsilon == 0, 1.0, count + epsilon)
    return mean


def _extrema(v: Floats, is_word: Bools) -> Floats:
    some = is_word.any(axis=1, keepdims=True)
    largest = np.where(is_word[..., None], v, -np.inf).max(axis=1)
    smallest = np.where(is_word[..., None], v, np.inf).min(axis=1)
    return np.where(some, _stronger(largest, smallest), 0.0)  # (R, D)


def _extrema_with_tail(v: Floats, is_before: Bools) -> Floats:
    inside = is_before[..., None].astype(np.float64)
    return _stronger((v * inside).max(axis=1), (v + (1 - inside)).min(axis=1))


def _stronger(largest: Floats, smallest: Floats) -> Floats:
    return np.where(largest >= np.abs(smallest), largest, smallest)
