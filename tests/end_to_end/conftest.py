"""siserve as its users meet it: typed commands, a running server, a corpus in a folder."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from bundle_factory import tiny_bundle

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("siserve"))
READY = re.compile(r"^serving (\S+) on (127\.0\.0\.1:\d+)$")

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """The tests' environment without siserve's own variables, which would change the commands."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SISERVE_")}


@pytest.fixture(scope="session")
def siserve() -> Run:
    """Run the installed command with the given arguments and return what came of it."""

    def run(*arguments: str | Path, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@contextmanager
def serving(*arguments: str | Path) -> Iterator[str]:
    """A server on free ports: yields its address, stops it by SIGTERM and wants exit code 0."""
    command = [COMMAND, "serve", "--port", "0", "--metrics-port", "0", *map(str, arguments)]
    server = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        ready = next(filter(None, map(READY.match, server.stdout)), None)
        assert ready is not None, "the server ended before it was ready"
        yield ready[2]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with random weights."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny_bundle(folder)
    return folder


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Start a server with the given options for the length of a with block."""
    return serving


@pytest.fixture(scope="session")
def address(bundle: Path) -> Iterator[str]:
    """HOST:PORT of a server that serves the tiny bundle."""
    with serving("--model", bundle) as host_and_port:
        yield host_and_port


OPENERS = ("do you like", "have you seen", "what about", "did you ever try", "tell me about")
THINGS = ("the garden", "that movie", "fishing", "the new car", "cooking dinner", "the old dog")
REPLIES = ("yes i like it", "no i never did", "it is a lot of work", "we did that last summer")


def dialog(dice: random.Random, num_turns: int = 8) -> dict[str, object]:
    """One made-up telephone conversation, as a line of a corpus holds it."""
    turns = []
    for turn in range(num_turns):
        asked = f"{dice.choice(OPENERS)} {dice.choice(THINGS)}"
        turns.append(["AB"[turn % 2], asked if turn % 2 == 0 else dice.choice(REPLIES)])
    return {"utts": turns, "topic": dice.choice(("HOBBIES", "FAMILY"))}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small dialog corpus that is whole; a test that wants a broken one breaks it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    dice = random.Random(7)
    for split, num_dialogs in {"train": 24, "valid": 4, "test": 4}.items():
        lines = [json.dumps(dialog(dice)) for _ in range(num_dialogs)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
