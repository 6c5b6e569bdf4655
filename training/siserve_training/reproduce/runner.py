"""Runs of a table side by side: each is two commands, train and evaluate, in a folder of its own.

A row whose result file stands is not run again; a run that was broken off goes on from its last
checkpoint. The commands are those that a person would type, and the table prints them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from siserve_training.checkpoint import write_atomically
from siserve_training.config import preset_values
from siserve_training.errors import RunError
from siserve_training.reproduce.machine import machine
from siserve_training.reproduce.rows import Row, Scale

__all__ = ["Job", "Plan", "run_jobs", "toml"]

_PDEATHSIG = 1  # prctl(2): the kernel signals a child when its parent dies


@dataclass(frozen=True)
class Plan:
    """What is common to all runs of a table.

    Attributes:
        data: folder of the corpus.
        out: folder of the results.
        scale: how much of everything.
        vectors: GloVe text file for embedding scores, None to go without them.
        word_vectors: GloVe text file that word vectors start from, None for random ones.
        max_steps: ends every run early, 0 for none.
        contexts: contexts that are answered, 0 for all.
        only_finished: run nothing, and make the table of what has finished.
        changes: configuration keys that replace the scale's, by row; "" for all rows.
    """

    data: Path
    out: Path
    scale: Scale
    vectors: Path | None
    word_vectors: Path | None
    max_steps: int = 0
    contexts: int = 0
    only_finished: bool = False
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def changes_of(self, row: str) -> dict[str, Any]:
        """Return the configuration keys that were asked for a row, its own over those of all."""
        return {**self.changes.get("", {}), **self.changes.get(row, {})}


@dataclass(frozen=True)
class Job:
    """One row with one training seed."""

    row: Row
    seed: int
    plan: Plan

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        return self.plan.out / "rows" / self.row.name / f"seed-{self.seed}"

    @property
    def run(self) -> Path:
        """Where the run is, which may be another row's."""
        owner = self.row.of or self.row.name
        return self.plan.out / "rows" / owner / f"seed-{self.seed}" / "run"

    @property
    def result(self) -> Path:
        """File that stands when the job is done."""
        return self.folder / "result.json"

    @property
    def task(self) -> str:
        """The task of its preset."""
        return str(preset_values(f"{self.row.preset}{self.plan.scale.suffix}")["task"])

    @property
    def machine(self) -> Path:
        """File that says where it was last run."""
        return self.folder / "machine.json"

    @property
    def dump(self) -> Path:
        """File of the responses."""
        return self.folder / "responses.jsonl"

    def train_command(self) -> list[str]:
        """Return the arguments of `siserve` that train the run, or go on with it."""
        plan, scale = self.plan, self.plan.scale
        preset = f"{self.row.preset}{scale.suffix}"
        changes = plan.changes_of(self.row.name)
        settings = {**scale.settings, **self.row.settings, **changes, "seed": self.seed}
        if plan.word_vectors and not preset_values(preset).get("word_vectors"):
            settings["word_vectors"] = str(plan.word_vectors)
        if plan.max_steps:
            settings["max_steps"] = plan.max_steps
        flags = [f"{key}={toml(value)}" for key, value in settings.items()]
        resume = ["--resume"] if (self.run / "config.json").is_file() else []
        return [
            *("train", "--task", self.task, "--data", str(plan.data), "--preset", preset),
            *("--out", str(self.run), *(part for flag in flags for part in ("--set", flag))),
            *resume,
        ]

    def evaluate_command(self) -> list[str]:
        """Return the arguments of `siserve` that score the run."""
        plan = self.plan
        options = {"split": "test", **plan.scale.evaluation, **self.row.evaluation}
        if plan.vectors:
            options["vectors"] = plan.vectors
        if plan.contexts:
            options["contexts"] = plan.contexts
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        dump = ["--dump", str(self.dump)] if self.task == "dialog" else []
        return [
            *("evaluate", str(self.run), "--data", str(plan.data), "--checkpoint", "last", *flags),
            *("--out", str(self.result), *dump, "--json"),
        ]

    def values(self) -> dict[str, Any]:
        """Read the result."""
        return _read(self.result)

    def ran_on(self) -> dict[str, Any]:
        """Read where it was last run; nothing if that was not noted."""
        return _read(self.machine) if self.machine.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def toml(value: object) -> str:
    """Write a setting's value as --set reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_jobs(
    jobs: Sequence[Job], side_by_side: int, threads: int, say: Callable[[str], None]
) -> None:
    """Do all jobs whose results do not stand yet.

    Args:
        jobs: a job that scores another row's run comes after that one.
        side_by_side: runs at a time.
        threads: of each run on a CPU.
        say: told of each command as it begins and ends.

    Raises:
        RunError: if a command fails; the others are told to save and end.
        KeyboardInterrupt: after running commands were told to save and end.
    """
    left = [job for job in jobs if not job.result.is_file()]
    say(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already")
    if not left:
        return
    stop = Event()
    with locked(left[0].plan.out) as lock, ThreadPoolExecutor(side_by_side) as pool:
        done: dict[tuple[str, int], Future[None]] = {}
        for job in left:
            before = done.get((job.row.of, job.seed))
            worker = Worker(job, before, threads, lock, stop, say)
            done[job.row.name, job.seed] = pool.submit(worker.run)
        try:
            wait(done.values(), return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            stop.set()
            raise
        failed = [future for future in done.values() if future.done() and future.exception()]
        if failed:
            stop.set()
            failed[0].result()


@dataclass(frozen=True)
class Worker:
    """Does one job by two commands, one after the other."""

    job: Job
    before: Future[None] | None
    threads: int
    lock: int
    stop: Event
    say: Callable[[str], None]

    def run(self) -> None:
        """Train, then score; a run that another job trains is waited for."""
        if self.before is not None:
            self.before.result()
        self.job.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.job.machine, json.dumps({**machine(), "cores": self.threads}))
        if not self.job.row.of:
            self.command(self.job.train_command(), "train.log")
        self.command(self.job.evaluate_command(), "evaluate.log")
        self.say(f"done: {self.job.row.name}, seed {self.job.seed}")

    def command(self, arguments: list[str], log: str) -> None:
        """Run `siserve ARGUMENTS`; its output goes to a file of the job's folder.

        Raises:
            RunError: if it fails or all is to stop.
        """
        if self.stop.is_set():
            raise RunError("stopped; the same command goes on")
        self.say(f"siserve {shlex.join(arguments)}")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "passive",
        }
        path = self.job.folder / log
        with path.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "siserve", *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=file,
                preexec_fn=die_with_parent,
                pass_fds=(self.lock,),
            )
            code = self.ended(process)
        if self.stop.is_set():
            raise RunError("stopped; the same command goes on")
        if code:
            last = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RunError(
                f"{self.job.row.name}, seed {self.job.seed}: `siserve {arguments[0]}` failed with "
                f"{code}: {' '.join(last)} (all of it in {path})"
            )

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a command; tell it to save and end when all is to stop."""
        while not self.stop.is_set():
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()  # once: a second signal would break the saving off
        return process.wait()


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this child when its parent dies, where Linux offers that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes the wish to stop on
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a folder for one table at a time; children that get the descriptor hold it too.

    Raises:
        RunError: if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is in use by another `siserve reproduce`, or by a run of one that was "
                "killed and is still saving; wait for it or pass another --out"
            ) from None
        yield file.fileno()
