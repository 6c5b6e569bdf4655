"""What waits for the engine: jobs in the order in which they are due, bounded in rows.

A job is due some time after it came, the longer the more rows it asks for. So a request for one
response overtakes one for 64 that came just before, but not one that has waited for its turn.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from siserve.serving.errors import DeadlinePassed, QueueFull, RequestCancelled, ShuttingDown
from siserve.serving.flight import Job
from siserve.serving.pace import Pace
from siserve.serving.scoring import BLOCK_ROWS, ScoreJob

__all__ = ["AnyJob", "EngineOptions", "JobQueue", "Observer", "settle_abandoned"]

AnyJob = Job | ScoreJob

#: A job may be overtaken by smaller ones for this time for each of its rows.
_SECONDS_A_ROW = 0.002
#: For a call that is not read yet a full queue is not looked through more often than this.
_DROP_SECONDS = 0.005


@dataclass(frozen=True)
class EngineOptions:
    """How much the engine takes on at once.

    Attributes:
        workers: threads that decode, each with rows of its own; 0 = one for each core, on CUDA a
            few, which whoever makes an engine settles.
        max_queue_rows: most rows that wait, unless one job alone takes more.
        max_rows: most rows in flight in a worker, unless one job alone takes more.
        chunk_steps: steps between two looks at who is done and who waits; None = as the decoder
            wants it.
        oversample: candidates for each response of a job with diversity, within `max_rows`.
        cache_utterances: encoded utterances that are kept for dialogs that go on; 0 = none.
    """

    workers: int = 1
    max_queue_rows: int = 1024
    max_rows: int = 128
    chunk_steps: int | None = None
    oversample: int = 6
    cache_utterances: int = 8192

    def __post_init__(self) -> None:
        """Refuse an engine that could do nothing."""
        for name, value in vars(self).items():
            least = 0 if name in ("workers", "cache_utterances") else 1
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def rows_of(self, job: AnyJob) -> int:
        """Count the rows of a job: its n responses, the candidates to choose n from, or samples."""
        if isinstance(job, ScoreJob):
            return job.num_rows
        if job.diversity == 0:
            return job.n
        return max(job.n, min(self.oversample * job.n, self.max_rows))


class Observer(Protocol):
    """Hears what the engine does, in the engine's threads."""

    def queue_changed(self, requests: int, rows: int) -> None:
        """`requests` wait now, which will take `rows` rows."""

    def rows_changed(self, rows: int) -> None:
        """`rows` are in flight now."""

    def batch_ran(self, rows: int) -> None:
        """One chunk of `rows` rows was decoded."""

    def utterances_found(self, hits: int, misses: int) -> None:
        """Of the utterances of contexts `hits` needed no work and `misses` were encoded."""


class JobQueue:
    """Jobs that wait, and what workers share: any number of threads may use it."""

    def __init__(self, options: EngineOptions, observer: Observer) -> None:
        """Begin empty and open."""
        self.options = options
        self._observer = observer
        self._waiting: list[tuple[float, int, AnyJob]] = []  # a heap by when a job is due
        self._waiting_rows = 0
        self._numbers = count()
        self._in_flight: dict[Hashable, int] = {}
        self._pace = Pace()
        self._wake = threading.Condition()
        self._is_open = True
        self.progress = time.monotonic()
        self._dropped = 0.0

    def __len__(self) -> int:
        """Count the jobs that wait."""
        return len(self._waiting)

    def put(self, job: AnyJob) -> None:
        """Let a job wait.

        Raises:
            DeadlinePassed: if nobody waits for it any more.
            QueueFull: if as many rows wait as may wait; it tells when there will be room.
            ShuttingDown: after close().
        """
        rows = self.options.rows_of(job)
        with self._wake:
            if not self._is_open:
                raise ShuttingDown("the server is shutting down; ask another one")
            job.submitted = time.monotonic()
            if job.submitted > job.deadline:
                raise DeadlinePassed("the deadline had passed when the request came")
            if self._is_full_for(rows):
                self._drop_abandoned()
            if self._is_full_for(rows):
                raise self._no_room()
            job.result.set_running_or_notify_cancel()  # who awaits it cannot take it back now
            if not self._waiting:
                self.progress = job.submitted
            due = job.submitted + _SECONDS_A_ROW * rows
            heapq.heappush(self._waiting, (due, next(self._numbers), job))
            self._changed(rows)
            self._wake.notify()

    def check_room(self) -> None:
        """Refuse what is not even read yet, if there is no room for a job like those that wait.

        Without the lock: who refuses calls by the thousand shall not wait for a worker that has it.

        Raises:
            QueueFull: telling when there will be.
        """
        rows = self._waiting_rows // max(1, len(self._waiting))
        if self._is_full_for(rows) and time.monotonic() - self._dropped >= _DROP_SECONDS:
            with self._wake:
                self._drop_abandoned()
        if self._is_full_for(rows):
            raise self._no_room()

    def take(self, num_rows: int, is_busy: bool) -> list[AnyJob] | None:
        """Return jobs that a worker is to start now; wait for one if it has nothing else to do.

        A worker takes jobs while it has less than its share of all rows, so that work spreads.

        Args:
            num_rows: rows that the worker has in flight.
            is_busy: whether it has work.

        Returns:
            Jobs in the order in which they are due, or None if the worker is to end.
        """
        with self._wake:
            while self._is_open and not self._waiting and not is_busy:
                self._wake.wait()
            self.progress = time.monotonic()
            if not self._waiting:
                return [] if is_busy or self._is_open else None
            self._drop_abandoned()
            return self._take(num_rows)

    def close(self, finish: bool) -> None:
        """Take no more jobs; without `finish` those that wait are to end as cancelled."""
        with self._wake:
            self._is_open = False
            if not finish:
                for _, _, job in self._waiting:
                    job.cancel()
            self._wake.notify_all()

    def rows_changed(self, worker: Hashable, num_rows: int) -> None:
        """A worker tells how many rows it has in flight."""
        with self._wake:
            self._in_flight[worker] = num_rows
            self._observer.rows_changed(sum(self._in_flight.values()))

    def chunk_ran(self, num_rows: int, num_ended: int, seconds: float) -> None:
        """A worker decoded a chunk, after which `num_ended` rows left."""
        self._observer.batch_ran(num_rows)
        with self._wake:
            self._pace.observe(num_ended, seconds)

    def _take(self, num_rows: int) -> list[AnyJob]:
        taken: list[AnyJob] = []
        total = self._waiting_rows + sum(self._in_flight.values())
        share = -(-total // self.options.workers)
        while self._waiting:
            job = self._waiting[0][2]
            rows = self.options.rows_of(job)
            needed = min(rows, BLOCK_ROWS) if isinstance(job, ScoreJob) else rows
            if num_rows and (num_rows >= share or num_rows + needed > self.options.max_rows):
                break
            heapq.heappop(self._waiting)
            self._changed(-rows)
            num_rows += needed
            taken.append(job)
        if self._waiting and taken:
            self._wake.notify()  # another worker may have room
        return taken

    def _no_room(self) -> QueueFull:
        return QueueFull(
            f"{self._waiting_rows} responses wait already",
            self._pace.seconds_for(self._waiting_rows),
        )

    def _is_full_for(self, rows: int) -> bool:
        """Say whether rows find no room in the queue; in an empty one any number does."""
        limit = self.options.max_queue_rows
        return bool(self._waiting) and self._waiting_rows + rows > limit

    def _changed(self, rows: int) -> None:
        self._waiting_rows += rows
        self._observer.queue_changed(len(self._waiting), self._waiting_rows)

    def _drop_abandoned(self) -> None:
        """Give the places of jobs that nobody waits for to others."""
        self._dropped = time.monotonic()
        left = [entry for entry in self._waiting if not settle_abandoned(entry[2])]
        if len(left) < len(self._waiting):
            heapq.heapify(left)
            self._waiting = left
            rows = sum(self.options.rows_of(job) for _, _, job in left)
            self._changed(rows - self._waiting_rows)


def settle_abandoned(job: AnyJob) -> bool:
    """End a job that nobody waits for any more."""
    if job.is_cancelled:
        job.result.set_exception(RequestCancelled("the request was cancelled"))
    elif time.monotonic() > job.deadline:
        job.result.set_exception(DeadlinePassed("the deadline passed before all was decoded"))
    else:
        return False
    return True
