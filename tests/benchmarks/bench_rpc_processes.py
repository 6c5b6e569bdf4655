"""What `--rpc-processes` costs and takes off the engine's process, under a closed loop of clients.

    python tests/benchmarks/bench_rpc_processes.py [--processes 0,1,2] [--clients 16] [--rounds 3]

Processor time of a request is told for the whole server, for the engine's process, for the thread
in it that has the event loop, and for the processes that take calls (Linux). The load generator
shares the machine. Variants are visited there and back; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from siserve.bench.machine import machine_facts
from siserve.bench.processes import Usage, cpu_seconds, listener
from siserve.bench.served import ServedProcess
from siserve.bench.serving_load import Level, LoadPlan, measure_load
from siserve.client.credentials import Credentials

FIGURES = {
    "requests_per_s": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "server": "CPU ms: server",
    "engine": "engine's process",
    "loop": "its loop",
    "rpc": "RPC processes",
}


def seconds_of(stat: Path) -> float:
    """Processor time of one process or thread, its children not counted."""
    told = stat.read_text()
    fields = told[told.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(processes: int, options: argparse.Namespace) -> dict[str, float]:
    """Start a server, load it, stop it."""
    served = [*(["--model", options.bundle] if options.bundle else [])]
    served += ["--rpc-processes", str(processes), *options.server.split()]
    plan = LoadPlan(
        [Level(clients=options.clients)],
        n=options.n,
        turns=5,
        dialogs="new",
        spread="turns",
        seconds=options.seconds,
        requests=0,
        deadline_s=0.1,
        rounds=1,
        seed=options.seed,
    )
    marks: list[tuple[float, float, float]] = []
    with ServedProcess(served) as server:
        pid = listener(server.address)
        assert pid is not None

        def usage() -> Usage:
            own = Path(f"/proc/{pid}")
            every = cpu_seconds(pid) or 0.0
            marks.append((every, seconds_of(own / "stat"), seconds_of(own / f"task/{pid}/stat")))
            return Usage(every)

        credentials = Credentials()
        _, (record,) = measure_load(server.address, plan, credentials, usage, lambda _: None)
    assert not record["errors"], record["errors"]
    before, after = marks
    per_request = 1e3 * record["server_cpu_ms_per_request"] / (1e3 * (after[0] - before[0]))
    spent = [per_request * (then - now) for now, then in zip(before, after, strict=True)]
    names = ("requests_per_s", "p50_ms", "p99_ms")
    times = dict(zip(("server", "engine", "loop"), spent, strict=True))
    return {name: record[name] for name in names} | times | {"rpc": spent[0] - spent[1]}


def main() -> None:
    """Measure and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", help="a bundle; the embedded one by default")
    parser.add_argument("--processes", default="0,1,2", help="0 = calls in the engine's process")
    parser.add_argument("--server", default="", help="more options of siserve serve")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    variants = [int(each) for each in options.processes.split(",")]
    rows: dict[int, list[dict[str, float]]] = {each: [] for each in variants}
    for number in range(options.rounds):
        for each in variants if number % 2 == 0 else reversed(variants):
            rows[each].append(measure(each, options))
    print(machine_facts())
    print(f"{options.clients} clients, n={options.n}, {options.rounds} rounds")
    print(f"{'processes':10}" + "".join(f"{title:>18}" for title in FIGURES.values()))
    for each, found in rows.items():
        medians = (statistics.median(row[name] for row in found) for name in FIGURES)
        print(f"{each:<10}" + "".join(f"{value:18.2f}" for value in medians))


if __name__ == "__main__":
    main()
