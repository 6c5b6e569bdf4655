"""Random inputs of a bundle's graphs, as ragged as real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from siserve.bundle.manifest import Tokens

__all__ = ["RandomInputs"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class RandomInputs:
    """Draws inputs.

    Args:
        tokens: ids of the special tokens.
        vocabulary: number of words.
        num_topics: known topics; ids go up to this number.
        context_ids: ids of the contexts' own tokenizer; 0 where they are words as in responses.
        rng: of all numbers.
    """

    tokens: Tokens
    vocabulary: int
    num_topics: int
    context_ids: int
    rng: np.random.Generator

    def contexts(self, count: int, window: int, length: int, known: bool) -> dict[str, Any]:
        """Inputs of context_encoder: 1 to `window` utterances of 2 to `length` tokens each.

        Args:
            count: B.
            window: U.
            length: T.
            known: whether topics and profiles are told.
        """
        draw = self.pieces if self.context_ids else self.utterances
        utterances = draw(count * window, length).reshape(count, window, length)
        inputs = {
            "utterances": utterances,
            "floor": self.rng.integers(0, 2, (count, window)),
            "topic": self.rng.integers(0, self.num_topics + 1, count) * known,
            "profile": self.normal(count, 8) * np.float32(known),
        }
        used = self.rng.integers(1, window + 1, count)
        utterances[np.arange(window) >= used[:, None]] = 0
        return inputs

    def utterances(self, count: int, length: int) -> Ids:
        """Utterances from ``<s>`` to ``</s>`` of 2 to `length` tokens, padded by 0, (count, T)."""
        special = set(self.tokens.model_dump().values())
        words = np.array([i for i in range(self.vocabulary) if i not in special])
        ids = self.rng.choice(words, (count, length))
        lengths = self.rng.integers(2, length + 1, count)
        ids[:, 0] = self.tokens.start
        ids[np.arange(count), lengths - 1] = self.tokens.end
        ids[np.arange(length) >= lengths[:, None]] = 0
        return ids

    def pieces(self, count: int, length: int) -> Ids:
        """Utterances in the contexts' own tokens, marks or not, padded by 0, (count, T)."""
        ids = self.rng.integers(1, self.context_ids, (count, length))
        lengths = self.rng.integers(2, length + 1, count)
        ids[np.arange(length) >= lengths[:, None]] = 0
        return ids

    def rows(self, contexts: int, count: int) -> Ids:
        """Choose a context for each of some rows, (count,)."""
        return self.rng.integers(0, contexts, count)

    def normal(self, *shape: int) -> NDArray[np.float32]:
        """Draw from N(0, 1)."""
        return self.rng.standard_normal(shape, np.float32)
