"""Servers under trial, each in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from .trial import Setting

__all__ = ["Served", "free_port", "run", "serving", "start"]


@dataclass
class Served:
    """A server that runs.

    Attributes:
        ready_s: seconds from its start to its line that it serves.
    """

    child: subprocess.Popen[str]
    log: Path
    address: str
    ready_s: float

    @property
    def process(self) -> psutil.Process:
        """The process, to be looked at."""
        return psutil.Process(self.child.pid)

    def logged(self) -> str:
        """All that it logged so far."""
        return self.log.read_text(errors="replace")

    def url(self, what: str) -> str:
        """Where the log says that its "metrics" or its "page" is."""
        found = re.search(rf"{what} on (http\S+)", self.logged())
        assert found is not None, self.logged()
        return found.group(1)

    def metrics(self) -> dict[str, float]:
        """Every metric by its name and labels, as Prometheus scrapes it."""
        with urllib.request.urlopen(self.url("metrics"), timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def answered(self, code: str) -> float:
        """How many calls ended with a status."""
        return sum(
            value
            for name, value in self.metrics().items()
            if name.startswith("siserve_requests_total") and f'code="{code}"' in name
        )

    def mib(self) -> float:
        """Resident memory."""
        return float(self.process.memory_info().rss) / 2**20

    def wait_idle(self, timeout_s: float = 60.0) -> float:
        """Wait until nothing waits or is decoded; return how many seconds that took."""
        began = time.monotonic()
        while True:
            now = self.metrics()
            if not now["siserve_inflight_rows"] and not now["siserve_queue_rows"]:
                return time.monotonic() - began
            assert time.monotonic() - began < timeout_s, "rows are left"

    def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        self.child.terminate()
        return self.child.wait(60)


def start(
    setting: Setting,
    *arguments: object,
    port: int = 0,
    variables: Mapping[str, str] = {},
) -> Served:
    """Start a server and wait until it serves; the caller ends it."""
    command = [sys.executable, "-m", "siserve", "serve", "--port", str(port)]
    command += ["--metrics-port", "0", *setting.options, *map(str, arguments)]
    environment = {**os.environ, **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each start compiles all modules anew
    with tempfile.NamedTemporaryFile("w", dir=setting.scratch, suffix=".log", delete=False) as log:
        began = time.monotonic()
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        child.wait()
        raise RuntimeError(f"no server: {Path(log.name).read_text()}")
    return Served(child, Path(log.name), line.split()[-1], time.monotonic() - began)


@contextmanager
def serving(
    setting: Setting,
    *arguments: object,
    variables: Mapping[str, str] = {},
) -> Iterator[Served]:
    """Run a server on the trial's bundle; it must end with exit code 0."""
    server = start(setting, "--model", setting.bundle, *arguments, variables=variables)
    try:
        yield server
        code = server.stop()
        assert code == 0, f"exit code {code}, expected 0: {server.logged()[-2000:]}"
    finally:
        server.child.kill()
        server.child.wait()


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a siserve command to its end; options are those of subprocess.run."""
    command = [sys.executable, "-m", "siserve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def free_port() -> int:
    """Find a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
