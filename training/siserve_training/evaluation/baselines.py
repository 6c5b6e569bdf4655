"""Replies that never saw the context, scored by the same code: the floor under every table.

Random utterances beat several published models in BLEU's F1 and all of them in inter-distinct.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import Text

from siserve_training.data.pairs import PairSet

__all__ = [
    "FIXED_SENTENCE",
    "context_blind_replies",
    "random_unigrams",
    "random_utterances",
    "repeat_sentence",
]

Ints = npt.NDArray[np.int64]
Shape = tuple[int, int, int]

FIXED_SENTENCE = "well i do not know but i think that it is a good idea"
_UNIGRAMS = 12  # words, about the mean length of an utterance of Switchboard


def context_blind_replies(valid: PairSet, text: Text, shape: Shape, seed: int) -> dict[str, Ints]:
    """Make the replies of every baseline.

    Args:
        valid: the split that random replies come from, never the one that is scored.
        text: its vocabulary.
        shape: N contexts, R samples, W ids.
        seed: of the draws.

    Returns:
        Id rows (N, R, W) by baseline: random_utterances, random_unigrams, yeah, fixed_sentence.
    """
    utterances, unigrams = np.random.default_rng(seed).spawn(2)
    return {
        "random_utterances": random_utterances(valid, text, shape, utterances),
        "random_unigrams": random_unigrams(valid, text, shape, unigrams),
        "yeah": repeat_sentence("yeah", text, shape),
        "fixed_sentence": repeat_sentence(FIXED_SENTENCE, text, shape),
    }


def random_utterances(
    pairs: PairSet, text: Text, shape: Shape, generator: np.random.Generator
) -> Ints:
    """Draw utterances of a split, each as likely as it is frequent, (N, R, W)."""
    rows = np.stack([_row(ids[1:], text, shape[2]) for ids in pairs.texts])
    drawn: Ints = rows[generator.choice(_said(pairs), size=shape[:2])]
    return drawn


def random_unigrams(
    pairs: PairSet, text: Text, shape: Shape, generator: np.random.Generator
) -> Ints:
    """Draw 12 independent words of a split, each as likely as it is frequent, (N, R, W)."""
    words = np.concatenate([pairs.texts[number][1:-1] for number in _said(pairs)])
    rows = np.full(shape, text.tokens.pad, dtype=np.int64)
    length = min(_UNIGRAMS, shape[2])
    rows[..., :length] = generator.choice(words, size=(*shape[:2], length))
    rows[..., length : length + 1] = text.tokens.end
    return rows


def repeat_sentence(sentence: str, text: Text, shape: Shape) -> Ints:
    """Answer everything with one sentence, (N, R, W)."""
    row = _row(text.encode_utterance(sentence)[1:], text, shape[2])
    return np.broadcast_to(row, shape).copy()


def _said(pairs: PairSet) -> Ints:
    """Return the text of every position but the dialogs' artificial first ones."""
    return np.delete(pairs.text_of, pairs.first_of)


def _row(ids: tuple[int, ...], text: Text, width: int) -> Ints:
    row = np.full(width, text.tokens.pad, dtype=np.int64)
    row[: len(ids)] = ids[:width]
    return row
