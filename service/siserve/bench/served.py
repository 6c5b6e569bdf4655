"""A `siserve serve` that a measurement starts and stops."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType

from siserve.bench.processes import Usage, usage_of
from siserve.bundle.errors import SiserveError

__all__ = ["ServedProcess"]

_SECONDS_TO_DRAIN = 60.0


class ServedProcess:
    """A server in a process of its own, on free ports.

    Args:
        options: of `siserve serve`.
        observed: whether it tells the graphs' processor time apart.
    """

    def __init__(self, options: Sequence[str], observed: bool = False) -> None:
        """Start it and wait until it is ready.

        Raises:
            SiserveError: if it does not come up; the message is its own.
        """
        module = ["siserve.bench.observed"] if observed else ["siserve", "serve"]
        self._observed = observed
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", "0", "--metrics-port", "0", *options],
            stdin=subprocess.PIPE if observed else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
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

    def usage(self) -> Usage | None:
        """Tell the processor time of the server and of its workers up to now."""
        if not self._observed:
            return usage_of(self._process.pid)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Usage(**json.loads(self._process.stdout.readline()))

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
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
