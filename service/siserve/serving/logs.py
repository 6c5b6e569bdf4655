"""The log of a server: text for people or a JSON object a line for machines.

A line about a call has its facts: names, sizes, times, codes; never what was said.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["Format", "log_call", "start_log"]

Format = Literal["text", "json"]

_calls = logging.getLogger("siserve.calls")


def start_log(format: Format) -> None:
    """Send the log of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if format == "json" else _Text("%(asctime)s %(levelname)s %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # What no line tells is not found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def log_call(method: str, code: str, seconds: float, facts: dict[str, Any]) -> None:
    """Write the one line of a call that was answered."""
    level = logging.ERROR if code in ("INTERNAL", "UNKNOWN") else logging.INFO
    if _calls.isEnabledFor(level):
        told = {"method": method, "code": code, "seconds": round(seconds, 6), **facts}
        # Made here: Logger.log() would look through the stack for who calls.
        record = logging.LogRecord(_calls.name, level, "", 0, "call", None, None)
        record.facts = told
        _calls.handle(record)


class _Text(logging.Formatter):
    """Time and level, what is said, and facts as NAME=VALUE."""

    _second, _written = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Write the time as `logging` does; of the calls of one second the same is written once."""
        if self._second != int(record.created):
            self._second = int(record.created)
            self._written = super().formatTime(record, self.default_time_format)
        return f"{self._written},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Write a record on one line; the trace of an error comes below it."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        told = [
            f" {name}={value:.6g}" if isinstance(value, float) else f" {name}={value}"
            for name, value in facts.items()
        ]
        return super().formatMessage(record) + "".join(told)


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; the trace of an error is a field of it."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)
