"""Numbers of the steps since the last log line."""

from __future__ import annotations

import time
from collections import Counter

from siserve_training.methods.method import LossReport

__all__ = ["Meter", "merged"]


def merged(reports: list[LossReport]) -> LossReport:
    """Join the reports of a step's updates; of a part that stands in several, the last counts."""
    parts = {name: value for report in reports for name, value in report.parts.items()}
    return LossReport(reports[0].loss, parts, reports[0].tokens)


class Meter:
    """Means of the numbers since they were last asked for, and tokens per second."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything and start the clock."""
        self.sums: Counter[str] = Counter()
        self.steps = 0
        self.tokens = 0
        self.start = time.monotonic()

    def add(self, report: LossReport, norm: float) -> None:
        """Take in one step."""
        self.sums.update(
            {
                "loss": float(report.loss.detach()),
                **{name: float(value) for name, value in report.parts.items()},
                "grad_norm": norm,
            }
        )
        self.steps += 1
        self.tokens += report.tokens

    def means(self) -> dict[str, float]:
        """Return the means and the rate, and start anew."""
        values = {name: value / max(1, self.steps) for name, value in self.sums.items()}
        values["tokens_per_s"] = self.tokens / max(1e-9, time.monotonic() - self.start)
        self.clear()
        return values
