"""Start the server on the embedded model: seconds to SERVING, memory, latency of n=5.

    python tests/benchmarks/bench_start.py [--bundle DIR] [--rounds 5] [--requests 100]

Start is timed from the command to its `serving` line, which it prints when health says SERVING, and
so is the processor time of all its threads; memory is the process's resident set, at the start and
after the requests. A server may write bytecode, as it is there once siserve was installed or has
run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import psutil
from siserve.client import Client


def measure(arguments: list[str], requests: int) -> dict[str, float]:
    """Start a server, ask it, stop it."""
    may_write = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "siserve", "serve", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=may_write,
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            ready = time.perf_counter() - start
            process = psutil.Process(server.pid)
            used, idle = process.cpu_times(), process.memory_info().rss
            latency = []
            with Client(address) as client:
                for seed in range(requests):
                    begin = time.perf_counter()
                    client.generate([("A", "do you have any pets")], n=5, seed=seed)
                    latency.append(1000 * (time.perf_counter() - begin))
            busy = process.memory_info().rss
        finally:
            server.terminate()
    return {
        "start to SERVING, s": ready,
        "processor time of it, s": used.user + used.system,
        "memory at start, MiB": idle / 2**20,
        "memory after requests, MiB": busy / 2**20,
        "latency of n=5, p50 ms": statistics.median(latency),
        "latency of n=5, p99 ms": statistics.quantiles(latency, n=100)[98],
    }


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", help="a bundle; the embedded one by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    arguments = ["--model", options.bundle] if options.bundle else []
    rounds = [measure(arguments, options.requests) for _ in range(options.rounds)]
    print(f"{platform.machine()}, {options.rounds} rounds of {options.requests} requests, medians")
    for name in rounds[0]:
        print(f"{name:28} {statistics.median(row[name] for row in rounds):8.2f}")


if __name__ == "__main__":
    main()
