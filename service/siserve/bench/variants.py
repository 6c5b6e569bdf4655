"""Processes of variants, one each, asked one at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from siserve.bundle.errors import SiserveError

__all__ = ["WORKER", "Variant", "why_no_torch"]

#: Module of the variants that need no torch.
WORKER = "siserve.bench.worker"
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS_TO_END = 10.0


class Variant:
    """A process that answers a JSON object with one.

    Args:
        module: what it runs.
        asked: what it is told at the start; "threads" also bounds the pools of its libraries.
    """

    def __init__(self, module: str, asked: Mapping[str, Any]) -> None:
        """Start it; ready() waits for it."""
        threads = str(asked.get("threads", 1))
        self._name = module
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **dict.fromkeys(_POOLS, threads), "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Variant:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def ready(self) -> Variant:
        """Wait until it can be asked, before the first question.

        Raises:
            SiserveError: if it cannot begin; the message says why.
        """
        self._read()
        return self

    def ask(self, **told: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            SiserveError: if it failed; the message says why.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.close()
            raise SiserveError(str(answer["error"]))
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        last = lines[-1] if lines else "no word"
        return f"{self._name} ended with code {self._process.returncode} ({last})"


def why_no_torch() -> str:
    """Say why there is nothing to compare with; "" if there is."""
    try:
        is_there = importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:
        is_there = False
    return "" if is_there else "torch is not installed: pip install 'siserve[train]'"
