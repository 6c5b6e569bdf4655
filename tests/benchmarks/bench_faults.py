"""Cancel calls and mutate requests by the thousand, and count what clients saw.

    python tests/benchmarks/bench_faults.py [--bundle DIR] [--only NAME ...] [--scale 1.0]

Each trial starts a server of its own, on the embedded model unless --bundle names another, and
prints one line. At --scale 1: 10,000 cancels and 100,000 mutated requests. Exit code 1 if a bar is
missed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from siserve.client import Client
from siserve.client.answer import make_request
from siserve.serving.models import embedded_bundle
from siserve.v1 import dialog_pb2_grpc

CONTEXT = [("A", "do you have any pets")]
GENERATE = "/siserve.v1.DialogService/GenerateResponses"
#: What a mutated request may be answered with: never UNKNOWN, never INTERNAL.
SOUND = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    process: psutil.Process
    address: str
    metrics: str

    def gauge(self, name: str) -> float:
        """Value of a metric without labels."""
        with urllib.request.urlopen(self.metrics, timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def mib(self) -> float:
        """Resident memory."""
        return float(self.process.memory_info().rss) / 2**20


@contextmanager
def serving(*arguments: object) -> Iterator[Served]:
    """Run a server; it must end with exit code 0."""
    command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            log.seek(0)
            (metrics,) = [line.split()[-1] for line in log if "metrics on " in line]
            log.seek(0, 2)
            yield Served(psutil.Process(server.pid), address, metrics)
            server.terminate()
            assert server.wait(60) == 0, "the server did not drain"
        finally:
            server.kill()
            server.wait()


def cancels(bundle: Path, scale: float) -> tuple[str, bool]:
    """Calls that are given up at once or in flight leave nothing behind."""
    count, dice = max(100, round(10_000 * scale)), random.Random(1)
    with serving("--model", bundle) as server, grpc.insecure_channel(server.address) as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        stub.GenerateResponses(make_request(CONTEXT, n=64), timeout=60)
        before, threads = server.mib(), server.process.num_threads()
        for start in range(0, count, 50):
            request = make_request(CONTEXT, n=20)
            calls = [stub.GenerateResponses.future(request) for _ in range(min(50, count - start))]
            time.sleep(dice.random() * 0.02)
            for call in calls:
                call.cancel()
        began = time.monotonic()
        while server.gauge("siserve_inflight_rows") or server.gauge("siserve_queue_rows"):
            assert time.monotonic() - began < 30, "rows are left"
        freed = time.monotonic() - began
        stub.GenerateResponses(make_request(CONTEXT), timeout=60)
        grown, more = server.mib() - before, server.process.num_threads() - threads
    told = f"{count} cancels, idle after {freed:.2f} s, {grown:+.1f} MiB, {more:+d} threads"
    return told, grown < 30 and more <= 2


def mutations(bundle: Path, scale: float) -> tuple[str, bool]:
    """Requests with bytes changed, cut, doubled: each gets a sound status, and the server lives."""
    count, dice, codes = round(100_000 * scale), random.Random(2), Counter[str]()
    whole = make_request(CONTEXT * 3, n=2, seed=7, temperature=0.5, max_tokens=2, model="m")
    seeds = [whole.SerializeToString(), make_request(CONTEXT, n=1).SerializeToString()]
    with serving("--model", bundle) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(GENERATE, request_serializer=None, response_deserializer=None)
        before = server.mib()
        for start in range(0, count, 100):
            size = min(100, count - start)
            sent = [call.future(mutate(dice, seeds), timeout=60) for _ in range(size)]
            codes.update(each.code().name for each in sent)
        grown = server.mib() - before
        with Client(server.address, 60) as client:
            assert len(client.generate(CONTEXT).responses) == 5
    told = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    return f"{told}, {grown:+.1f} MiB", set(codes) <= SOUND and grown < 60


def mutate(dice: random.Random, seeds: list[bytes]) -> bytes:
    """Change a message where it hurts."""
    message = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(1, 4)):
        place, kind = dice.randrange(len(message) + 1), dice.randrange(4)
        if kind == 0 and place < len(message):
            message[place] = dice.choice((0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind == 1:
            del message[place : place + dice.randint(1, 8)]
        elif kind == 2:
            message[place:place] = dice.randbytes(dice.randint(1, 8))
        else:
            message += message[place : place + 40]
    return bytes(message)


TRIALS: dict[str, Callable[[Path, float], tuple[str, bool]]] = {
    "cancels": cancels,
    "mutations": mutations,
}


def main() -> int:
    """Run the trials; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--only", choices=list(TRIALS), nargs="+", default=list(TRIALS))
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    missed = 0
    for name in options.only:
        told, holds = TRIALS[name](options.bundle or embedded_bundle(), options.scale)
        missed += not holds
        print(f"{name:10} {'holds ' if holds else 'MISSED'} {told}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
