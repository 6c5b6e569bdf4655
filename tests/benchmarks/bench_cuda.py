"""Decode on CUDA: fused kernels and onnxruntime's recordings against the decoder with a loop.

    python tests/benchmarks/bench_cuda.py [--rows 5,80,4096] [--rounds 10] [--laws] [--out FILE]

Each figure is the median time of 40 steps of all rows through the graph, in the engine's chunks,
noise and copies to and from the device included; contexts are encoded before. All variants take
turns in one process. --laws asks too whether 1,000 seeds see their neighbours and whether 1,000,000
draws are exact. Needs onnxruntime-gpu and a device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
from engine_laws import sampler_holds, seeds_hold
from siserve.bench.decoding import Decoding
from siserve.bench.machine import machine_facts
from siserve.bundle.errors import UsageError
from siserve.bundle.verify import open_bundle
from siserve.serving.models import embedded_bundle
from siserve.serving.recorded import RecordedDecoder
from siserve.serving.sessions import Sessions, load_sessions

_STEPS = 40


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="5,20,80,320,4096")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--laws", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = [int(count) for count in asked.rows.split(",")]
    try:
        records = measure(rows, asked.rounds)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'rows':>5} {'decoder':>14} {'ms':>8} {'responses/s':>12} {'to fp32 loop':>12}")
    for told in records:
        print(
            f"{told['rows']:5d} {told['decoder']:>14} {told['ms']:8.2f} "
            f"{told['responses_per_s']:12.0f} {told['times_the_loop']:11.1f}x"
        )
    held = True
    for law, trials in ((seeds_hold, 1000), (sampler_holds, 1_000_000)) if asked.laws else ():
        told, holds = law(embedded_bundle(), "auto", trials, "cuda")
        print(f"{law.__name__}: {told}: {'held' if holds else 'broken'}")
        held = held and holds
    if asked.out:
        facts = {**machine_facts(), "onnxruntime": onnxruntime.__version__, "steps": _STEPS}
        content = {"facts": facts, "rounds": asked.rounds, "records": records}
        asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if held else 1


def _kind(sessions: Sessions) -> str:
    if not isinstance(sessions.decoder, RecordedDecoder):
        return "loop"
    return "fused" if sessions.decoder.is_fused else "recorded"


def measure(rows: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure every decoder at every number of rows.

    Raises:
        UsageError: if there is no CUDA.
    """
    bundle = open_bundle(embedded_bundle())
    exact, rounded = (load_sessions(bundle, "cuda", 1, asked) for asked in ("fp32", "auto"))
    ways = {"loop, fp32": replace(exact, decoder=exact.exact_decoder)}
    ways |= {f"{_kind(told)}, {told.precision}": told for told in (exact, rounded)}
    records = []
    for count in rows:
        decoders = {name: Decoding(told, bundle.manifest, count) for name, told in ways.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, decoder in decoders.items():
                seconds = decoder.seconds(_STEPS)
                if number:  # the first one warms up
                    times[name].append(seconds)
        slow = statistics.median(times["loop, fp32"])
        for name, taken in times.items():
            middle = statistics.median(taken)
            records.append(
                {
                    "rows": count,
                    "decoder": name,
                    "ms": 1e3 * middle,
                    "responses_per_s": count / middle,
                    "times_the_loop": slow / middle,
                    "seconds": taken,
                }
            )
    return records


if __name__ == "__main__":
    sys.exit(main())
