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
    number, different = 0, set[object]()
    for response in responses:
        number += max(0, len(response) - order + 1)
        if order == 1:
            different.update(response)
        else:
            starts = [response[start:] for start in range(order)]
            different.update(zip(*starts, strict=False))
    return len(different) / number if number else 0.0
