"""What a person sees of a run: a progress bar, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from torch.utils.tensorboard import SummaryWriter

from siserve_training.run_folder import RunFolder

__all__ = ["Reporter"]

_PLAIN_SECONDS = 10.0
_BAR_LABELS = {
    "loss": "loss",
    "rec": "rec",
    "kl": "KL",
    "b_k": "B_K",
    "beta": "beta",
    "K": "K",
}


class Reporter:
    """Shows and records numbers; on processes other than the first it does nothing.

    Args:
        run: where to record.
        total: steps of the whole run.
        done: steps done before.
        enabled: whether this process reports.
    """

    def __init__(self, run: RunFolder, total: int, done: int, enabled: bool) -> None:
        self.run = run
        self.enabled = enabled
        self.console = Console(stderr=True, soft_wrap=True)
        self.last_plain = 0.0
        if not enabled:
            return
        run.cut_metrics(done)
        self.lines = run.metrics.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run.tensorboard), purge_step=done + 1)
        self.progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=_whole()),
            TimeElapsedColumn(table_column=_whole()),
            TextColumn("ETA", table_column=_whole()),
            TimeRemainingColumn(table_column=_whole()),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("train", total=total, completed=done, numbers="")

    def __enter__(self) -> Reporter:
        if self.enabled:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.enabled:
            self.progress.stop()
            self.lines.close()
            self.board.close()

    def say(self, message: str) -> None:
        """Print one line for a person."""
        if self.enabled:
            self.console.print(message, markup=False, highlight=False)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.enabled:
            self.progress.update(self.bar, completed=step)

    def record(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Record numbers of a step: JSON line, TensorBoard, and the bar or a plain line."""
        if not self.enabled:
            return
        entry: dict[str, Any] = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        self.lines.write(json.dumps({**entry, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        numbers = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if kind == "train":
            self.progress.update(self.bar, numbers=_bar_numbers(values))
            now = time.monotonic()
            if self.console.is_terminal or now - self.last_plain < _PLAIN_SECONDS:
                return
            self.last_plain = now
        self.say(f"{kind} step {step}  {numbers}")
        sys.stderr.flush()


def _whole() -> Column:
    return Column(no_wrap=True, min_width=3)


def _bar_numbers(values: dict[str, float]) -> str:
    """Write what matters most first, since a narrow terminal cuts the end."""
    shown = " ".join(
        f"{label} {_short(values[name])}" for name, label in _BAR_LABELS.items() if name in values
    )
    return f"{shown} {_short(values.get('tokens_per_s', 0.0))} tok/s"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"
