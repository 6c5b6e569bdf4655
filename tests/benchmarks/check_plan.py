"""Hold `siserve plan` against two replicas: the rate that they bear within a p99, and that told.

    python tests/benchmarks/check_plan.py --out FOLDER [-n 5] [--turns 6] [--requests 300]

One replica and the load generator share core 0; two replicas have a core each, and the generator
both, at twice the rates. So a core bears the same in both. They take turns rate by rate, so that a
slow minute of the machine meets both; rates are shares of what eight clients that wait for their
answers get out of one replica. Both have as many requests for a rate: the p99 of fewer is lower.
Their callers have a replica each, so that each replica has Poisson arrivals, as the plan takes
them; `--spread turns` shows the gain of turns.
For several p99, what two bear is compared with twice what the plan says of one, without headroom:
over all the p99 that both went through, but for those that the plan refuses.
Figures are kept in FOLDER: a second run adds turns to those that lie there, and `--turns 0` only
compares. one.jsonl is what `siserve plan --figures` reads. Ends with 1 if a difference is above
20 %. Nothing else may run on the two cores; as root, `nice -n -20` before it keeps them free.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from siserve.bench.capacity import Curve, lowest_p99, rate_within
from siserve.bench.figures_file import read_figures
from siserve.bundle.errors import SiserveError

SERVED = ("--threads=1", "--workers=1")
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
SISERVE = [sys.executable, "-m", "siserve"]
MOST_OFF = 0.2
#: Seeds of one and of two replicas lie as far apart: no two visits have the same arrivals.
SEEDS_APART = 1000


@contextmanager
def replicas(cores: str) -> Iterator[str]:
    """Start a replica on each of cores 0,1,...; yield what the generator is to ask."""
    started: list[subprocess.Popen[str]] = []
    try:
        for core in cores.split(","):
            command = ["taskset", "-c", core, *SISERVE, "serve", *SERVED]
            command += ["--port=0", "--metrics-port=0"]
            started.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
        lines = [each.stdout.readline() for each in started if each.stdout]
        yield "ipv4:" + ",".join(line.split()[-1] for line in lines)
    finally:
        for each in started:
            each.terminate()
        for each in started:
            each.wait()


def bench(options: argparse.Namespace, address: str, cores: str, *load: str) -> dict[str, Any]:
    """Run the load generator on some cores against the replicas of an address."""
    command = ["taskset", "-c", cores, *SISERVE, "bench", "serve", "--json"]
    command += [f"--n={options.n}", f"--address={address}", "--seconds=4"]
    command += [f"--spread={options.spread}", *load]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    result["options"]["server"] = " ".join(["siserve serve", *SERVED])
    return result


def rates_of_one(options: argparse.Namespace, path: Path) -> Sequence[float]:
    """The rates of earlier turns; without any, shares of what eight clients get."""
    if path.exists():
        (one,) = read_figures([path]).curves
        return [point.rate for point in one.points]
    with replicas("0") as address:
        (load,) = bench(options, address, "0", "--clients=8")["loads"]
    return [round(share * load["requests_per_s"], 1) for share in SHARES]


def measure(options: argparse.Namespace, paths: Mapping[int, Path], rates: Sequence[float]) -> None:
    """Add a turn of so many replicas each: all rates of one times their number."""
    cores = {number: ",".join(map(str, range(number))) for number in paths}
    done = {number: _lines(path) // len(rates) for number, path in paths.items()}
    with ExitStack() as stack:
        started = {number: stack.enter_context(replicas(cores[number])) for number in paths}
        for place, rate in enumerate(rates):
            for number, path in paths.items():
                seed = number * SEEDS_APART + done[number] * len(rates) + place
                load = ["--clients=", f"--rate={number * rate:g}"]
                load += [f"--requests={options.requests}", f"--seed={seed}"]
                result = bench(options, started[number], cores[number], *load)
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def targets(one: Curve, two: Curve) -> Sequence[float]:
    """Values of p99 that both went through, from the least that the plan answers to the most."""
    low = max(lowest_p99(curve) for curve in (one, two))
    high = min(curve.p99.highest_ms for curve in (one, two))
    if high <= low:
        sys.exit(f"no p99 that both runs went through: {one}, {two}; measure other rates")
    return [low + share * (high - low) for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)]


def compare(one: Curve, two: Curve) -> float:
    """Print each p99; return the largest difference where neither is refused."""
    print(f"{'p99 ms':>8} {'plan, 2 x one':>14} {'measured, two':>14} {'off by':>7}")
    worst = 0.0
    for p99_ms in targets(one, two):
        try:
            told, seen = 2 * rate_within(one, p99_ms).rps, rate_within(two, p99_ms).rps
        except SiserveError:
            print(f"{p99_ms:8.1f}   refused: the figures leave more doubt than a plan may have")
            continue
        worst = max(worst, abs(told / seen - 1))
        print(f"{p99_ms:8.1f} {told:14.1f} {seen:14.1f} {100 * (told / seen - 1):+6.0f} %")
    return worst


def main() -> int:
    """Measure the turns and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--requests", type=int, default=300, help="of a rate and turn")
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--spread", choices=["callers", "turns"], default="callers")
    parser.add_argument("--only-one", action="store_true", help="measure one replica and stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    paths = {1: options.out / "one.jsonl", 2: options.out / "two.jsonl"}
    rates = rates_of_one(options, paths[1])
    for _ in range(options.turns):
        measure(options, {1: paths[1]} if options.only_one else paths, rates)
    if options.only_one:
        return 0
    one, two = (read_figures([path]).curves[0] for path in paths.values())
    return 1 if compare(one, two) > MOST_OFF else 0


if __name__ == "__main__":
    sys.exit(main())
