"""How different the responses to one context are."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["distinct"]


def distinct(responses: Sequence[Sequence[int]], order: int) -> float:
    """Share of different n-grams among all n-grams of all responses.

    Li et al. 2016, "A diversity-promoting objective function", with the n-grams pooled over the
    responses to one context; none crosses from one response into the next.

    Args:
        responses: token ids without special tokens.
        order: length of an n-gram.

    Returns:
        Between 0 and 1; 0 if no response is long enough for one n-gram.
    """
    ngrams = [
        ngram
        for response in responses
        for ngram in zip(*[response[start:] for start in range(order)], strict=False)
    ]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
