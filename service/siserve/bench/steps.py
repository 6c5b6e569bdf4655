"""Time of a decoder's step, at several numbers of rows: ours, research code's, and the floor."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from siserve.bench.decoding import step_work
from siserve.bench.roofline import Precision, Rates, StepWork, floor_seconds
from siserve.bench.rounds import alternating, median_ratio
from siserve.bench.variants import WORKER, Variant, why_no_torch
from siserve.bundle.errors import SiserveError
from siserve.bundle.verify import Bundle

__all__ = ["Way", "StepPlan", "measure_steps"]

Way = Literal["one", "batched", "greedy"]
#: Ways of research code, by the names of their columns.
RESEARCH_WAYS: Mapping[str, Way] = {
    "one_at_a_time": "one",
    "batched": "batched",
    "batched_greedy": "greedy",
}
_TORCH_WORKER = "siserve_training.bench.decoding"


@dataclass(frozen=True)
class StepPlan:
    """What is measured.

    Attributes:
        against: which of research code's ways.
        seconds: each variant decodes for about as long in each round.
    """

    rows: Sequence[int]
    against: Sequence[Way]
    threads: Sequence[int]
    precisions: Sequence[Precision]
    device: Literal["auto", "cpu", "cuda"]
    rounds: int
    steps: int
    seconds: float


def measure_steps(
    bundle: Bundle, plan: StepPlan, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure every precision, number of threads and number of rows.

    Args:
        bundle: whose decoder.
        plan: what and how long.
        say: told what is going on.

    Returns:
        A record each, and why numbers are left out of them.
    """
    records: list[dict[str, Any]] = []
    left_out: list[str] = []
    for threads in plan.threads:
        with ExitStack() as stack:
            field = _Field(bundle, plan, threads, stack, left_out)
            for number, rows in alternating(plan.rows, plan.rounds):
                say(f"{threads} threads, round {number + 1} of {plan.rounds}, {rows} rows")
                field.visit(rows, backwards=number % 2 == 1)
            records += [
                field.record(precision, rows) for rows in plan.rows for precision in plan.precisions
            ]
    return records, list(dict.fromkeys(left_out))


class _Field:
    """All variants at one number of threads, each in its process, and what they took."""

    def __init__(
        self, bundle: Bundle, plan: StepPlan, threads: int, stack: ExitStack, left_out: list[str]
    ) -> None:
        self._plan, self._threads = plan, threads
        self._work: StepWork | None = None
        self._variants: dict[str, Variant] = {}
        self._seconds: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._floors: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._rates: defaultdict[str, list[Rates]] = defaultdict(list)
        self._device = ""
        common = {"bundle": str(bundle.path.resolve()), "threads": threads}
        ours = [
            {**common, "kind": "decode", "device": plan.device, "precision": precision}
            for precision in plan.precisions
        ]
        missing = why_no_torch()
        research = {} if missing else {k: v for k, v in RESEARCH_WAYS.items() if v in plan.against}

        def start(module: str, asked: dict[str, Any]) -> Variant:
            return stack.enter_context(Variant(module, asked))

        started = [start(WORKER, asked) for asked in ours]  # all begin at once
        theirs = [start(_TORCH_WORKER, {**common, "way": way}) for way in research.values()]
        self._measurer = start(WORKER, {**common, "kind": "rates"}).ready()
        for precision, variant in zip(plan.precisions, started, strict=True):
            self._variants[precision] = variant.ready()
        try:
            for name, variant in zip(research, theirs, strict=True):
                self._variants[name] = variant.ready()
        except SiserveError as error:
            missing = str(error)
        if missing:
            left_out.append(f"ratios to PyTorch: {missing}")
        try:
            self._work = step_work(bundle)
        except SiserveError as error:
            left_out.append(f"roofline: {error}")

    def visit(self, rows: int, backwards: bool) -> None:
        """Measure every variant once, in order or in the opposite order."""
        names = [*self._variants]
        self._visit_rates(rows)
        for name in reversed(names) if backwards else names:
            answer = self._variants[name].ask(
                rows=rows, steps=self._plan.steps, seconds=self._plan.seconds
            )
            self._seconds[name, rows].append(answer["seconds_per_step"])
            self._device = answer.get("device", self._device)

    def _visit_rates(self, rows: int) -> None:
        if self._work is None:
            return
        for precision in self._plan.precisions:
            told = self._measurer.ask(bytes=self._work.bytes(precision), precision=precision)
            rates = Rates(**told)
            self._rates[precision].append(rates)
            self._floors[precision, rows].append(floor_seconds(self._work, rows, precision, rates))

    def record(self, precision: Precision, rows: int) -> dict[str, Any]:
        """Write down what was found of one precision and number of rows."""
        ours = self._seconds[precision, rows]
        step = statistics.median(ours)
        record: dict[str, Any] = {
            "rows": rows,
            "threads": self._threads,
            "precision": precision,
            "device": self._device,
            "ms_per_step": 1e3 * step,
            "responses_per_s": rows / (step * self._plan.steps),
        }
        for name in RESEARCH_WAYS:
            theirs = self._seconds.get((name, rows))
            scale = rows if name == "one_at_a_time" else 1  # its step is one of one row
            record[f"{name}_ms_per_step"] = theirs and 1e3 * statistics.median(theirs)
            record[f"ratio_to_{name}"] = theirs and scale * median_ratio(theirs, ours)
        return {**record, **self._floor(precision, rows, ours), "seconds_per_step": ours}

    def _floor(self, precision: Precision, rows: int, ours: list[float]) -> dict[str, Any]:
        floors = self._floors.get((precision, rows))
        if self._work is None or floors is None or self._device != "cpu":
            return {"floor_ms": None, "times_the_floor": None}
        rates = self._rates[precision]
        return {
            "floor_ms": 1e3 * statistics.median(floors),
            "times_the_floor": median_ratio(ours, floors),
            "weights_bytes": self._work.bytes(precision),
            "operations": self._work.operations(rows),
            "bandwidth_gb_per_s": statistics.median(r.bandwidth for r in rates) / 1e9,
            "arithmetic_gop_per_s": statistics.median(r.arithmetic for r in rates) / 1e9,
        }
