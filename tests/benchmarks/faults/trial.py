"""What a trial is given and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Setting", "Trial", "Verdict"]


@dataclass(frozen=True)
class Setting:
    """What a trial is given.

    Attributes:
        bundle: that its servers serve.
        scale: of its counts and times; 1 = as the bars ask.
        minutes: of the soak.
        scratch: an empty folder of its own.
        responses: n of the calls of the overload.
        options: of every `siserve serve`, beside the trial's own.
        rate: calls a second of the soak; None = 80 % of the peak that the server has before it.
    """

    bundle: Path
    scale: float
    minutes: float
    scratch: Path
    responses: int = 5
    options: tuple[str, ...] = ()
    rate: float | None = None

    def count(self, full: int, least: int = 1) -> int:
        """Scale a count."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Verdict:
    """Whether a bar holds, what it is, and what was seen."""

    holds: bool
    bar: str
    seen: str


Trial = Callable[[Setting], Verdict]
