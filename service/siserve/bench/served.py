"""A `siserve serve` that a measurement starts and stops."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType

from siserve.bundle.errors import SiserveError

__all__ = ["ServedProcess"]

_SECONDS_TO_DRAIN = 60.0


class ServedProcess:
    """A server in a process of its own, on free ports.

    Args:
        options: of `siserve serve`.
    """

    def __init__(self, options: Sequence[str]) -> None:
        """Start it and wait until it is ready.

        Raises:
            SiserveError: if it does not come up; the message is its own.
        """
        command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            self._close()
            raise SiserveError(said[-1] if said else "the server ended without a word")
        self.address = line.split()[-1]

    @property
    def pid(self) -> int:
        """Of the server, or of the parent of its workers."""
        return self._process.pid

    def __enter__(self) -> ServedProcess:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_DRAIN)
        finally:
            self._process.kill()
            self._process.wait()
            self._close()

    def _close(self) -> None:
        self._log.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
