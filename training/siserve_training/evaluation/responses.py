"""What is scored: contexts of a split, their references, and the responses drawn for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import SpecialTokens, Text

from siserve_training.data.corpus import Dialog
from siserve_training.data.pairs import PairSet
from siserve_training.errors import ResponseError

__all__ = ["ResponseSet", "responses_to_pairs", "words_of"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ResponseSet:
    """N contexts, a reference and R responses each.

    Attributes:
        contexts: ``speaker: text`` of each utterance, oldest first; empty where the response
            opens the dialog.
        references: ids from ``<s>`` to ``</s>``.
        samples: raw id rows as decoded, without ``<s>``, filled with pads, (N, R, W).
        words: the vocabulary; a word's place is its id.

    Raises:
        ResponseError: if the parts do not fit together.
    """

    contexts: tuple[tuple[str, ...], ...]
    references: tuple[tuple[int, ...], ...]
    samples: Ints
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check sizes and ids before any metric sees them."""
        count = len(self.references)
        if self.samples.ndim != 3 or 0 in self.samples.shape or self.samples.dtype != np.int64:
            raise ResponseError(
                "expected samples of shape (contexts, samples, ids), int64 and none of them 0, "
                f"got {self.samples.shape}, {self.samples.dtype}"
            )
        if not len(self.contexts) == count == len(self.samples):
            raise ResponseError(
                f"expected one context, one reference and one row of samples each, got "
                f"{len(self.contexts)}, {count} and {len(self.samples)}"
            )
        if len(set(self.words)) != len(self.words):
            raise ResponseError(
                "expected every word of the vocabulary once; one stands there twice"
            )
        start, end = self.tokens.start, self.tokens.end
        size = len(self.words)
        for number, ids in enumerate(self.references):
            if len(ids) < 2 or ids[0] != start or ids[-1] != end or not in_range(ids, size):
                raise ResponseError(
                    f"reference {number}: expected ids from {start} (<s>) to {end} (</s>), each "
                    f"below {size}, got {list(ids)}"
                )
        if self.samples.min() < 0 or self.samples.max() >= size:
            raise ResponseError(
                f"expected sample ids from 0 to {size - 1}, got {self.samples.min()} to "
                f"{self.samples.max()}; the samples come from another vocabulary"
            )

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.references)

    @cached_property
    def text(self) -> Text:
        """The text module of this vocabulary."""
        try:
            return Text.from_words(self.words)
        except ValueError as error:
            raise ResponseError(f"the vocabulary: {error}") from None

    @property
    def tokens(self) -> SpecialTokens:
        """Ids of the marks."""
        return self.text.tokens

    @cached_property
    def reference_texts(self) -> tuple[str, ...]:
        """The references, written as people write."""
        return tuple(self.text.decode(ids) for ids in self.references)

    @cached_property
    def sample_texts(self) -> tuple[tuple[str, ...], ...]:
        """The samples, written as people write, R for each context."""
        return tuple(tuple(self.text.decode(row) for row in rows) for rows in self.samples.tolist())


def in_range(ids: Sequence[int], size: int) -> bool:
    """Say whether all ids belong to a vocabulary of that size."""
    return all(0 <= index < size for index in ids)


def responses_to_pairs(
    pairs: PairSet,
    dialogs: Sequence[Dialog],
    text: Text,
    samples: Ints,
    responses: Ints | None = None,
) -> ResponseSet:
    """Put samples beside the contexts and references of a split.

    Args:
        pairs: the split.
        dialogs: those that `pairs` was made of; speakers' names come from them.
        text: vocabulary of `pairs` and `samples`.
        samples: id rows in the order of `responses`, (N, R, W).
        responses: positions of the responses; all of `pairs` if None, (N,).

    Raises:
        ResponseError: if the samples do not fit.
    """
    contexts = []
    references = []
    for response in (pairs.responses if responses is None else responses).tolist():
        number = int(pairs.dialog_of[response])
        opener = int(pairs.first_of[number])
        said = [
            dialogs[number].utterances[position - opener - 1]
            for position in pairs.context_of(response)
            if position != opener
        ]
        contexts.append(tuple(f"{utterance.speaker}: {utterance.text}" for utterance in said))
        references.append(pairs.texts[pairs.text_of[response]])
    return ResponseSet(tuple(contexts), tuple(references), samples, words_of(text))


def words_of(text: Text) -> tuple[str, ...]:
    """Return the vocabulary; a word's place is its id."""
    return tuple(str(text.tokenizer.id_to_token(index)) for index in range(text.size))
