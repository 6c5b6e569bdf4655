"""`make demo`: start a server, ask it three contexts over gRPC, show the answers, stop it.

Every option of the server can be given by its variable, as in SISERVE_MODEL=./my-bundle.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from siserve.bundle.errors import SiserveError
from siserve.client.client import Client
from siserve.client.show import show_answer

__all__ = ["main"]

CONTEXTS = (
    (("A", "do you have any pets?"),),
    (
        ("A", "hi, how are you doing today?"),
        ("B", "pretty good, it is raining here."),
        ("A", "so what do you do for a living?"),
    ),
    (
        ("A", "have you seen any good movies lately?"),
        ("B", "no, with two kids we hardly ever get out."),
        ("A", "oh, i know what you mean."),
    ),
)


class DemoError(SiserveError):
    """The server of the demo did not come up."""


def main() -> int:
    """Run the demo; return the exit code."""
    console = Console(highlight=False)
    try:
        with _server() as ready, Client(ready.split()[-1]) as client:
            console.print(ready, soft_wrap=True, markup=False)
            for seed, context in enumerate(CONTEXTS, start=1):
                console.print()
                show_answer(console, list(context), client.generate(context, n=5, seed=seed))
    except SiserveError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _server() -> Iterator[str]:
    """Run a server on free ports; yield the line that it prints when it is ready."""
    command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            ready = server.stdout.readline().strip()
            if not ready:
                reason = (server.stderr.read().strip().splitlines() or ["no reason given"])[-1]
                raise DemoError(f"the server did not come up ({reason})")
            yield ready
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
