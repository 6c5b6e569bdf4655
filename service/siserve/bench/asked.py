"""Lists as the options of a measurement take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from siserve.bundle.errors import UsageError

__all__ = ["choices", "levels", "numbers"]

_Word = TypeVar("_Word", bound=str)


def numbers(option: str, told: str) -> list[int]:
    """Read a list such as 5,20,80.

    Raises:
        UsageError: if it is none.
    """
    try:
        values = [int(part) for part in told.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UsageError(f"{option} must be whole numbers from 1 as in 1,4,16, got {told!r}")
    return values


def choices(option: str, told: str, known: Sequence[_Word]) -> list[_Word]:
    """Read a list of words.

    Raises:
        UsageError: if one is not known.
    """
    by_name = {str(word): word for word in known}
    for value in told.split(","):
        if value not in by_name:
            raise UsageError(f"{option} must be of {', '.join(by_name)}, got {value!r}")
    return [by_name[value] for value in told.split(",")]


def levels(clients: str, rate: str) -> tuple[list[int], list[float]]:
    """Read both kinds of load.

    Raises:
        UsageError: if one is odd, or if there is none.
    """
    counts = numbers("--clients", clients) if clients else []
    try:
        rates = [float(part) for part in rate.split(",")] if rate else []
    except ValueError:
        rates = [0.0]
    if not all(0 < each < 1e6 for each in rates):
        raise UsageError(f"--rate must be arrivals a second as in 50,100, got {rate!r}")
    if not counts and not rates:
        raise UsageError("no load; give --clients or --rate")
    return counts, rates
