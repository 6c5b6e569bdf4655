"""One variant of a measurement in a process of its own: a JSON object a line in, one a line out.

    python -m siserve.bench.worker '{"kind": "decode", "bundle": "DIR", "threads": 1, ...}'

It prints {"ready": ...} first, then an answer to each line; it ends with its standard input. While
others are measured it waits for a line and takes no time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["main"]

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Answer until nobody asks."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from siserve.bundle.errors import SiserveError

    asked = json.loads(sys.argv[1])
    try:
        answer = _KINDS[asked["kind"]](asked)
        _tell({"ready": True})
        for line in sys.stdin:
            _tell(answer(json.loads(line)))
    except SiserveError as error:
        _tell({"error": str(error)})


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _decode(asked: dict[str, Any]) -> Answer:
    """Time steps of {"rows", "steps", "seconds"}: passes for about as long, the median of them."""
    import statistics

    from siserve.bench.decoding import Decoding
    from siserve.bundle.verify import open_bundle
    from siserve.serving.sessions import load_sessions

    bundle = open_bundle(Path(asked["bundle"]))
    sessions = load_sessions(bundle, asked["device"], asked["threads"], asked["precision"])
    held: dict[int, Decoding] = {}

    def answer(told: dict[str, Any]) -> dict[str, Any]:
        rows, steps = told["rows"], told["steps"]
        if rows not in held:
            held[rows] = Decoding(sessions, bundle.manifest, rows)
            held[rows].seconds(steps)  # every shape once
        times = [held[rows].seconds(steps)]
        while sum(times) < told["seconds"]:
            times.append(held[rows].seconds(steps))
        return {"seconds_per_step": statistics.median(times) / steps, "device": sessions.device}

    return answer


def _rates(asked: dict[str, Any]) -> Answer:
    """Measure the roofline of {"bytes", "precision"} for the worker's threads."""
    from siserve.bench.roofline import measure_rates
    from siserve.bundle.verify import open_bundle
    from siserve.serving.fused.loading import NotFused, load_decoders_on_cpu

    try:
        exact, in_integers = load_decoders_on_cpu(open_bundle(Path(asked["bundle"])), True)
        own = {"fp32": exact, "int8": in_integers}
    except NotFused:
        own = {}

    def answer(told: dict[str, Any]) -> dict[str, Any]:
        precision, threads = told["precision"], asked["threads"]
        return measure_rates(told["bytes"], precision, threads, kernels=own.get(precision))

    return answer


def _engine(asked: dict[str, Any]) -> Answer:
    """Fill an engine's queue: {"n", "dialogs", "seconds"}, or ask it alone: {"n", "alone", ...}."""
    from siserve.bench.engine_load import EngineLoad
    from siserve.serving.sessions import Placement

    load = EngineLoad(
        Path(asked["bundle"]),
        Placement("cpu", asked["precision"], asked["threads"]),
        asked["workers"],
        asked["max_rows"],
    )

    def answer(told: dict[str, Any]) -> dict[str, Any]:
        if told.get("alone"):
            return load.cost(told["n"], told["seconds"])
        return load.full_queue(told["n"], told["dialogs"], told["seconds"])

    return answer


_KINDS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "decode": _decode,
    "rates": _rates,
    "engine": _engine,
}

if __name__ == "__main__":
    main()
