"""How fast an engine's rows leave, and so when a full queue will have room."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """How fast rows leave, as a mean over the last hundred chunks or so."""

    def __init__(self) -> None:
        """Begin with a guess."""
        self._rows, self._seconds = 100.0, 0.5

    def observe(self, rows: int, seconds: float) -> None:
        """Take in a chunk: how many rows left after it and how long it took."""
        self._rows = 0.99 * self._rows + rows
        self._seconds = 0.99 * self._seconds + seconds

    def seconds_for(self, rows: int) -> float:
        """Estimate when as many rows will have left, within 0.05 to 10 seconds."""
        return min(10.0, max(0.05, rows * self._seconds / max(self._rows, 0.01)))
