"""The engine in flight against one request at a time, and what a response costs as n grows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from siserve.bench.rounds import alternating, median_ratio
from siserve.bench.variants import WORKER, Variant
from siserve.bundle.verify import Bundle

__all__ = ["EnginePlan", "measure_costs", "measure_engine"]

Way = Literal["one_at_a_time", "in_flight"]
_KINDS = ("new", "same")


@dataclass(frozen=True)
class EnginePlan:
    """What is measured.

    Attributes:
        threads: cores to fill, by one worker of as many threads or as many workers of one.
        n: responses of a request.
        seconds: of one measurement.
    """

    threads: Sequence[int]
    precisions: Sequence[str]
    n: int
    rounds: int
    seconds: float


@dataclass(frozen=True)
class _Crew:
    """One engine, in a process of its own."""

    way: Way
    workers: int
    threads: int
    precision: str

    @property
    def cores(self) -> int:
        return self.workers * self.threads

    def start(self, bundle: Bundle, n: int) -> Variant:
        asked = {
            "kind": "engine",
            "bundle": str(bundle.path.resolve()),
            "workers": self.workers,
            "threads": self.threads,
            "precision": self.precision,
            "max_rows": n if self.way == "one_at_a_time" else None,
        }
        return Variant(WORKER, asked)


def measure_engine(
    bundle: Bundle, plan: EnginePlan, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure full queues, with contexts that are all new and with one that is known.

    Returns:
        A record of each crew and kind of contexts; its ratio is to one request at a time on as many
        cores, with as many threads.
    """
    crews = _crews(plan)
    found: defaultdict[tuple[_Crew, str], list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        started = {crew: stack.enter_context(crew.start(bundle, plan.n)) for crew in crews}
        for variant in started.values():
            variant.ready()
        visits = [(crew, kind) for kind in _KINDS for crew in crews]
        for number, (crew, kind) in alternating(visits, plan.rounds):
            say(f"{crew.way}, {crew.cores} cores, {kind} contexts, round {number + 1}")
            asked = {"n": plan.n, "dialogs": kind, "seconds": plan.seconds}
            found[crew, kind].append(started[crew].ask(**asked))
    return [_record(crew, kind, plan.n, found) for kind in _KINDS for crew in crews]


def _crews(plan: EnginePlan) -> list[_Crew]:
    crews = []
    for precision in plan.precisions:
        for threads in plan.threads:
            crews += [
                _Crew("one_at_a_time", 1, threads, precision),
                _Crew("in_flight", 1, threads, precision),
            ]
            if threads > 1:
                crews.append(_Crew("in_flight", threads, 1, precision))
    return crews


def _record(
    crew: _Crew, kind: str, n: int, found: dict[tuple[_Crew, str], list[dict[str, float]]]
) -> dict[str, Any]:
    rates = [each["requests_per_s"] for each in found[crew, kind]]
    base = _Crew("one_at_a_time", 1, crew.cores, crew.precision)
    of_base = [each["requests_per_s"] for each in found[base, kind]]
    return {
        "way": crew.way,
        "workers": crew.workers,
        "threads": crew.threads,
        "precision": crew.precision,
        "contexts": kind,
        "n": n,
        "requests_per_s": statistics.median(rates),
        "responses_per_s": n * statistics.median(rates),
        "response_tokens": statistics.fmean(e["response_tokens"] for e in found[crew, kind]),
        "ratio_to_one_at_a_time": median_ratio(rates, of_base),
        "rounds": rates,
    }


def measure_costs(
    bundle: Bundle, plan: EnginePlan, numbers: Sequence[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure one idle engine's time for a request of n responses to a known context.

    Returns:
        A record of each n, at the first number of threads and each precision.
    """
    records = []
    for precision in plan.precisions:
        crew = _Crew("in_flight", 1, plan.threads[0], precision)
        found: defaultdict[int, list[float]] = defaultdict(list)
        with crew.start(bundle, plan.n) as variant:
            variant.ready()
            for number, n in alternating(numbers, plan.rounds):
                say(f"n = {n}, round {number + 1}")
                found[n].append(variant.ask(n=n, alone=True, seconds=plan.seconds)["seconds"])
        records += [
            {
                "n": n,
                "threads": crew.threads,
                "precision": precision,
                "ms": 1e3 * statistics.median(found[n]),
                "ms_per_response": 1e3 * statistics.median(found[n]) / n,
            }
            for n in numbers
        ]
    return records
