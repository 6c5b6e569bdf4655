"""`make demo`: a server on the embedded model, three dialogs asked over gRPC, and the end of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from siserve.bundle.errors import SiserveError
from siserve.client.client import Client
from siserve.client.show import show_answer

__all__ = ["DIALOGS", "main", "running_server"]

DIALOGS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("A", "do you have any pets"),),
    (
        ("A", "so what do you do in your spare time"),
        ("B", "well i like to work in the yard when the weather is nice"),
        ("A", "do you grow your own vegetables"),
    ),
    (
        ("A", "have you seen any good movies lately"),
        ("B", "we hardly ever go we have two small children"),
    ),
)
SEED = 7
STOP_SECONDS = 15.0


@contextmanager
def running_server() -> Iterator[str]:
    """Start `siserve serve` on free ports, yield its address, and stop it whatever happens.

    Raises:
        SiserveError: if the server ends before it is ready; it has said why on stderr.
    """
    command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        ready = server.stdout.readline()  # "serving MODEL on HOST:PORT"
        if not ready.startswith("serving "):
            raise SiserveError("the server did not start")
        print(ready, flush=True)
        yield ready.split()[-1]
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


def main() -> int:
    """Run the demo and return its exit code."""
    console = Console()
    try:
        with running_server() as address, Client(address) as client:
            for dialog in DIALOGS:
                show_answer(console, list(dialog), client.generate(dialog, n=5, seed=SEED))
                console.print()
    except SiserveError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
