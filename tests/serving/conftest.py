"""A model in this process, and a real server in a process of its own, both on one tiny bundle."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from bundle_factory import tiny_bundle
from siserve.bundle import open_bundle
from siserve.bundle.manifest import Manifest
from siserve.client import Client, Credentials
from siserve.serving.fused.native import cpu_library
from siserve.serving.sessions import Sessions, load_sessions


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("serving") / "tiny")


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


@pytest.fixture(scope="session")
def sessions(bundle: Path) -> Sessions:
    return load_sessions(open_bundle(bundle), "cpu", 1)


@pytest.fixture(scope="session")
def graphs(bundle: Path) -> Sessions:
    """The model as onnxruntime runs it, decoder included."""
    return load_sessions(open_bundle(bundle), "cpu", 1, kernels="off")


@dataclass
class RunningServer:
    """A `siserve serve` of its own, with what it printed."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    lines: list[str]
    log: list[str]

    def client(self, timeout_s: float = 30.0, credentials: Credentials | None = None) -> Client:
        return Client(self.address, timeout_s, credentials)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def finish(self, timeout_s: float = 20.0) -> int:
        return self.process.wait(timeout=timeout_s)


StartServer = Callable[..., RunningServer]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SISERVE_")}
    return kept | changes


def _start(stack: ExitStack, *arguments: object, **variables: str) -> RunningServer:
    command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        env=_environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.close()

    lines: list[str] = []
    log: list[str] = []
    ready = threading.Event()

    def read_lines() -> None:
        for line in process.stdout or ():
            lines.append(line.rstrip("\n"))
            ready.set()
        ready.set()

    def read_log() -> None:
        for line in process.stderr or ():
            log.append(line.rstrip("\n"))

    readers = [threading.Thread(target=target) for target in (read_lines, read_log)]
    for reader in readers:
        reader.start()
    stack.callback(end)
    assert ready.wait(100) and lines, f"the server did not come up: {log}"
    deadline = time.monotonic() + 10
    while not (urls := re.findall(r'metrics on (http[^\s"]+)', "\n".join(log))):
        assert time.monotonic() < deadline, log
        time.sleep(0.01)
    return RunningServer(process, lines[0].split()[-1], urls[0], lines, log)


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads compute at once in kernels; some find no core of their own here."""
    cpu_library().allow(request.param)
    yield request.param
    cpu_library().allow(1)


@pytest.fixture
def start_server(bundle: Path) -> Iterator[StartServer]:
    """Start servers on the tiny bundle; what still runs at the end is killed."""
    with ExitStack() as stack:

        def start(
            *arguments: object, without_model: bool = False, **variables: str
        ) -> RunningServer:
            model = () if without_model else ("--model", bundle)
            return _start(stack, *model, *arguments, **variables)

        yield start


@pytest.fixture(scope="module")
def start_for_module() -> Iterator[StartServer]:
    """Start servers, on whatever models, that live as long as a file's tests."""
    with ExitStack() as stack:
        yield lambda *arguments, **variables: _start(stack, *arguments, **variables)


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[RunningServer]:
    """One server that many tests ask; none may end it."""
    with ExitStack() as stack:
        yield _start(stack, "--model", bundle)


@pytest.fixture
def run_siserve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a siserve command to its end."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "siserve", *map(str, arguments)],
            env=_environment(variables),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
