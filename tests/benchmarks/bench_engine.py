"""The decoding engine against its bars: speed by `siserve bench`, and two laws.

    python tests/benchmarks/bench_engine.py [--model DIR] [--only NAME ...] [--rounds 5] [--json F]

Prints one line a bar. The bars are ratios in one run, or latencies and rates on two cores, of the
embedded model; --json keeps all that was measured. Exit code 1 if a bar is missed. All takes about
20 minutes on two cores, which nothing else should use meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_laws import sampler_holds, seeds_hold
from siserve.bench.machine import machine_facts
from siserve.serving.models import embedded_bundle

Result = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One bar and what was found."""

    measure: str
    bar: str
    found: str
    holds: bool


class Trials:
    """Measures what is asked for, each result once.

    Args:
        model: folder of a bundle.
        rounds: of each measurement.
        seconds: of each load of a server.
    """

    def __init__(self, model: Path, rounds: int, seconds: float, scale: float) -> None:
        self._model, self._rounds, self._seconds, self._scale = model, rounds, seconds, scale
        self.results: dict[str, Result] = {}

    def steps(self) -> Iterator[Line]:
        """Steps against PyTorch, and against the floor."""
        result = self._bench("decode", "--parts", "steps", *self._of_rounds())
        of = {(r["precision"], r["rows"], r["threads"]): r for r in result["steps"]}
        for key, name, column, bar in (
            (("int8", 5, 1), "5 rows, 1 thread, int8, against batched PyTorch", "batched", 18.0),
            (("int8", 5, 1), "the same against one at a time", "one_at_a_time", 45.0),
            (("int8", 80, 2), "80 rows, 2 threads, int8, against batched", "batched", 12.0),
        ):
            yield _at_least(name, of[key][f"ratio_to_{column}"], bar)
        for threads, bar in ((1, 3.5), (2, 5.0)):
            ratios = {rows: of["fp32", rows, threads]["ratio_to_batched"] for rows in (5, 80)}
            name = f"fp32, {threads} thread(s), against batched PyTorch, least of 5 and 80 rows"
            yield _at_least(name, min(ratios.values()), bar)
        for precision, bar in (("fp32", 1.4), ("int8", 2.0)):
            gap = of[precision, 80, 1]["times_the_floor"]
            yield _at_most(f"distance to the floor, 80 rows, 1 thread, {precision}", gap, bar, "x")

    def in_flight(self) -> Iterator[Line]:
        """Full queues."""
        result = self._bench("decode", "--parts", "engine", *self._of_rounds())
        records = [r for r in result["engine"] if r["way"] == "in_flight"]
        for cores, bar in ((1, 2.0), (2, 3.4)):
            for contexts in ("new", "same"):
                found = {
                    r["precision"]: r["ratio_to_one_at_a_time"]
                    for r in sorted(records, key=lambda r: r["ratio_to_one_at_a_time"])
                    if r["workers"] * r["threads"] == cores and r["contexts"] == contexts
                }
                for precision, ratio in found.items():
                    name = f"in flight against one at a time, {cores} core(s), {contexts} contexts"
                    yield _at_least(f"{name}, {precision}", ratio, bar)

    def n(self) -> Iterator[Line]:
        """Cost of a response as n grows."""
        result = self._bench("decode", "--parts", "n", "--threads", "1", *self._of_rounds())
        for precision in dict.fromkeys(each["precision"] for each in result["n"]):
            costs = [r["ms_per_response"] for r in result["n"] if r["precision"] == precision]
            falls = all(b < a for a, b in zip(costs, costs[1:], strict=False))
            told = " > ".join(f"{cost:.2f}" for cost in costs)
            yield Line(
                f"cost of a response, n = 1 to 64, {precision}", "falls", f"{told} ms", falls
            )

    def idle(self) -> Iterator[Line]:
        """One client."""
        for dialogs, bar in (("new", 10.0), ("growing", 7.0)):
            load = self._serve(dialogs, "1")
            name = f"one idle client, n=5, five turns, {dialogs} dialogs, p50"
            yield _at_most(name, load["p50_ms"], bar, "ms")

    def busy(self) -> Iterator[Line]:
        """Sixteen clients."""
        for dialogs, bar in (("new", 250.0), ("growing", 350.0)):
            load = self._serve(dialogs, "16")
            name = f"16 clients, n=5, two cores, {dialogs} dialogs, requests/s"
            yield _at_least(name, load["requests_per_s"], bar)

    def python(self) -> Iterator[Line]:
        """Processor time outside of the graphs."""
        load = self._serve("growing", "16", "--python-share")
        name = "gRPC and Python of a request, processor time"
        yield _at_most(name, load["python_cpu_ms_per_request"], 0.5, "ms")

    def seeds(self) -> Iterator[Line]:
        """Same seed, other neighbours."""
        count = max(10, round(1000 * self._scale))
        for precision in ("fp32", "int8"):
            told, holds = seeds_hold(self._model, precision, count)
            yield Line(f"same seed alone and among neighbours, {precision}", "all", told, holds)

    def sampler(self) -> Iterator[Line]:
        """Draws against the exact distribution."""
        for precision in ("fp32", "int8"):
            told, holds = sampler_holds(self._model, precision, round(1_000_000 * self._scale))
            yield Line(f"sampler, {precision}", "p > 0.001", told, holds)

    def _of_rounds(self) -> tuple[str, ...]:
        return ("--rows", "5,80", "--model", str(self._model), "--rounds", str(self._rounds))

    def _serve(self, dialogs: str, clients: str, *more: str) -> Result:
        seconds = ("--seconds", str(self._seconds), "--rounds", "3")
        where = ("--start", "--model", str(self._model), "--dialogs", dialogs)
        load: Result = self._bench("serve", *where, "--clients", clients, *seconds, *more)["loads"][
            0
        ]
        return load

    def _bench(self, *arguments: str) -> Result:
        name = " ".join(arguments)
        if name not in self.results:
            command = [sys.executable, "-m", "siserve", "bench", *arguments, "--json"]
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            self.results[name] = json.loads(ran.stdout)
        return self.results[name]


def _at_least(measure: str, found: float, bar: float) -> Line:
    return Line(measure, f">= {bar:g}", f"{found:.2f}", found >= bar)


def _at_most(measure: str, found: float, bar: float, unit: str) -> Line:
    return Line(measure, f"<= {bar:g} {unit}", f"{found:.2f} {unit}", found <= bar)


TRIALS: dict[str, Callable[[Trials], Iterator[Line]]] = {
    "steps": Trials.steps,
    "in_flight": Trials.in_flight,
    "n": Trials.n,
    "idle": Trials.idle,
    "busy": Trials.busy,
    "python": Trials.python,
    "seeds": Trials.seeds,
    "sampler": Trials.sampler,
}


def main() -> int:
    """Measure and print; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=embedded_bundle())
    parser.add_argument("--only", choices=list(TRIALS), nargs="+", default=list(TRIALS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load of a server")
    parser.add_argument("--scale", type=float, default=1.0, help="of 1,000 seeds and 10^6 draws")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args()
    trials = Trials(options.model, options.rounds, options.seconds, options.scale)
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['flags'])}, {facts['date']}")
    missed = 0
    for name in options.only:
        for line in TRIALS[name](trials):
            missed += not line.holds
            verdict = "hit   " if line.holds else "MISSED"
            print(f"{verdict} {line.measure}: {line.found} ({line.bar})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(trials.results), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
