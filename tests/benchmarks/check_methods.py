"""Every dialog method from the command line: train, export, serve, five responses.

    python tests/benchmarks/check_methods.py --data CORPUS [--steps 200] [--only gmm-cvae]

Each takes its small preset, and `cvae-co` both of its update schemes. What is checked: every
command ends with 0, the server says where it serves, answers with five responses under its own
model's name, repeats them for the same seed, and stops with 0 when told to.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siserve_training.methods import METHODS

RESPONSES = 5


def siserve(*arguments: object) -> list[str]:
    """Return a command in this environment."""
    return [sys.executable, "-m", "siserve", *map(str, arguments)]


def done(*arguments: object) -> str:
    """Run a command to its end; return what it printed.

    Raises:
        AssertionError: if it ends with anything but 0.
    """
    ended = subprocess.run(siserve(*arguments), capture_output=True, text=True, check=False)
    last = (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
    assert ended.returncode == 0, f"{arguments[0]} ended with {ended.returncode}: {last}"
    return ended.stdout


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """Serve a bundle; yield the address.

    Raises:
        AssertionError: if it does not serve, or does not stop with 0.
    """
    command = siserve("serve", "--model", bundle, "--port", 0, "--metrics-port", 0)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("serving "), f"serve printed {line!r}"
            yield line.split()[-1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0, f"serve ended with {server.returncode}"
        finally:
            server.kill()


def answer(address: str) -> dict[str, Any]:
    """Ask a server about a dialog of two turns."""
    turns = ("--turn", "A:hi how are you", "do you have any pets")
    wanted = ("-n", RESPONSES, "--seed", 7, "--address", address, "--json")
    found: dict[str, Any] = json.loads(done("ask", *turns, *wanted))
    return found


def check(method: str, settings: tuple[str, ...], options: argparse.Namespace) -> str:
    """Go the way of one method; return what its server answered.

    Raises:
        AssertionError: what went wrong.
    """
    changes = [f"max_steps={options.steps}", "valid_pairs=300", *settings]
    flags = [word for change in changes for word in ("--set", change)]
    with tempfile.TemporaryDirectory() as folder:
        run, bundle = Path(folder) / "run", Path(folder) / "bundle"
        preset = f"dialog-{method}-small"
        train = ("train", "--task", "dialog", "--preset", preset, "--data", options.data)
        done(*train, "--out", run, *flags)
        done("export", run, "--out", bundle, "--data", options.data)
        with served(bundle) as address:
            first, second = answer(address), answer(address)
    responses = [response["text"] for response in first["responses"]]
    assert len(responses) == RESPONSES, f"{len(responses)} responses, expected {RESPONSES}"
    assert first["model"].startswith(f"dialog-{method}@"), f"model {first['model']}"
    assert first["responses"] == second["responses"], "one seed gave two answers"
    return " | ".join(textwrap.shorten(text, 50, placeholder="...") for text in responses)


def cases(only: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield methods and what is set beside their presets."""
    for method in METHODS:
        if only in ("", method):
            yield method, ()
            if method == "cvae-co":
                yield method, ("co_updates=alternate",)


def main() -> None:
    """Go the way of every method; exit 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the dialog corpus")
    parser.add_argument("--steps", type=int, default=200, help="updates of a run")
    parser.add_argument("--only", default="", help="one method")
    options = parser.parse_args()
    failed = 0
    for method, settings in cases(options.only):
        begin = time.perf_counter()
        name = " ".join((method, *settings))
        try:
            said = check(method, settings, options)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {name}: {error}", flush=True)
            continue
        print(f"ok {name}: {time.perf_counter() - begin:.0f} s; {said}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
