"""Hold `siserve plan` against two replicas: the rate that they bear within a p99, and that told.

    python tests/benchmarks/check_plan.py --out FOLDER [-n 5] [--rounds 2] [--seconds 10]

One replica and the load generator share core 0 and are measured at shares of what eight clients
that wait for their answers get out of it; then two replicas have a core each, the generator both,
at twice the rates. So a core bears the same in both runs. For several p99, what two bear is
compared with twice what the plan says of one, without headroom.
Figures are kept in FOLDER, and taken from there if they lie there: one.jsonl is what
`siserve plan --figures` reads. Ends with 1 if a difference is above 20 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from siserve.bench.capacity import Curve, rate_within
from siserve.bench.figures_file import read_figures

SERVED = ("--threads=1", "--workers=1")
SHARES = (0.2, 0.4, 0.55, 0.7, 0.8, 0.9)
SISERVE = [sys.executable, "-m", "siserve"]
MOST_OFF = 0.2


def bench(options: argparse.Namespace, cores: str, *more: str) -> str:
    """Run the load generator on some cores; return its line of JSON."""
    command = ["taskset", "-c", cores, *SISERVE, "bench", "serve", "--json", f"--n={options.n}"]
    command += [f"--seconds={options.seconds}", f"--rounds={options.rounds}", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def measure_one(options: argparse.Namespace) -> str:
    """One replica, started by the generator and on its core."""
    start = ("--start", f"--server={' '.join(SERVED)}")
    (load,) = json.loads(bench(options, "0", *start, "--clients=8", "--rounds=1"))["loads"]
    rates = (f"{share * load['requests_per_s']:.1f}" for share in SHARES)
    return bench(options, "0", *start, "--clients=", f"--rate={','.join(rates)}")


def measure_two(options: argparse.Namespace, one: Curve) -> str:
    """Two replicas on a core each."""
    started: list[subprocess.Popen[str]] = []
    try:
        for core in ("0", "1"):
            command = ["taskset", "-c", core, *SISERVE, "serve", *SERVED]
            command += ["--port=0", "--metrics-port=0"]
            started.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
        lines = [each.stdout.readline() for each in started if each.stdout]
        address = "ipv4:" + ",".join(line.split()[-1] for line in lines)
        rates = (f"{2 * point.rate:g}" for point in one.points)
        load = ("--clients=", f"--rate={','.join(rates)}")
        return bench(options, "0,1", f"--address={address}", *load)
    finally:
        for each in started:
            each.terminate()
        for each in started:
            each.wait()


def curve(path: Path, measure: Callable[[], str]) -> Curve:
    """Measure unless that was done."""
    if not path.exists():
        path.write_text(measure())
    (found,) = read_figures([path]).curves
    return found


def targets(one: Curve, two: Curve) -> Sequence[float]:
    """Values of p99 that both runs went through, from the least to the most."""
    low = max(one.points[0].p99_ms, two.points[0].p99_ms)
    high = min(max(point.p99_ms for point in curve.points) for curve in (one, two))
    if high <= low:
        sys.exit(f"no p99 that both runs went through: {one}, {two}; measure other rates")
    return [low + share * (high - low) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]


def main() -> int:
    """Measure what is missing and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--only-one", action="store_true", help="measure one replica and stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    one = curve(options.out / "one.jsonl", lambda: measure_one(options))
    if options.only_one:
        return 0
    two = curve(options.out / "two.jsonl", lambda: measure_two(options, one))
    print(f"{'p99 ms':>8} {'plan, 2 x one':>14} {'measured, two':>14} {'off by':>7}")
    worst = 0.0
    for p99_ms in targets(one, two):
        told, seen = 2 * rate_within(one, p99_ms)[0], rate_within(two, p99_ms)[0]
        worst = max(worst, abs(told / seen - 1))
        print(f"{p99_ms:8.1f} {told:14.1f} {seen:14.1f} {100 * (told / seen - 1):+6.0f} %")
    return 1 if worst > MOST_OFF else 0


if __name__ == "__main__":
    sys.exit(main())
