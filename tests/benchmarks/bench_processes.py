"""Training by one process and by two on one machine: tokens per second, and scaling efficiency.

    python tests/benchmarks/bench_processes.py --data CORPUS [--preset NAME] [--batch-size 96]

Each way trains the same preset from the same seed with the same batch over all processes; the ways
take turns. The first fifth of the steps is left out. Efficiency is the tokens per second of two
processes over twice those of one, each with one thread; one process with two threads is the
alternative that needs no launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """How many processes, and how many threads each has."""

    processes: int
    threads: int

    def command(self) -> list[str]:
        if self.processes == 1:
            return [sys.executable, "-m", "siserve"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc-per-node={self.processes}", "-m", "siserve"]

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


WAYS = (Way(1, 1), Way(2, 1), Way(1, 2))


def tokens_per_second(way: Way, options: argparse.Namespace) -> float:
    """Train once; return the median of the logged rates."""
    every = max(1, options.steps // 10)
    settings = {"batch_size": options.batch_size, "max_steps": options.steps, "log_every": every}
    settings |= {"eval_every": 10**9, "valid_pairs": 96}  # one validation, at the end
    environment = {**os.environ, "OMP_NUM_THREADS": str(way.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "--task=dialog", f"--preset={options.preset}"]
        arguments += [f"--data={options.data}", f"--out={folder}/run"]
        arguments += [f"--set={key}={value}" for key, value in settings.items()]
        done = subprocess.run(
            [*way.command(), *arguments], env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(done.stderr)
        rows = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        rates = [row["tokens_per_s"] for row in rows if row["kind"] == "train"]
    return statistics.median(rates[2:])


def main() -> None:
    """Measure and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the dialog corpus")
    parser.add_argument("--preset", default="dialog-si-cvae-small")
    parser.add_argument("--batch-size", type=int, default=96, help="over all processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    rounds = [{way: tokens_per_second(way, options) for way in WAYS} for _ in range(options.rounds)]
    print(
        f"{options.preset}, {options.rounds} rounds of {options.steps} steps, {os.cpu_count()} CPUs"
    )
    print(f"{'processes x threads':20} {'tokens/s':>9} {'of one':>7} {'efficiency':>11}")
    for way in WAYS:
        rate = statistics.median(each[way] for each in rounds)
        gain = statistics.median(each[way] / each[WAYS[0]] for each in rounds)
        share = gain / (way.processes * way.threads)
        print(f"{way!s:20} {rate:9.0f} {gain:7.2f} {share:11.2f}")


if __name__ == "__main__":
    main()
