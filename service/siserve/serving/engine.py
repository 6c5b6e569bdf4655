"""The engine: one thread that decodes the rows of all requests in flight together.

A request enters between two chunks of K steps: its context is encoded once, n latents are drawn,
and its n rows join the others. After each chunk rows that ended leave; a request whose rows have
all ended is complete. Every number that a row takes depends on its own request alone, so who else
is in flight changes when a response is ready but never what it is. It knows no gRPC.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np

from siserve.bundle.manifest import Manifest
from siserve.serving.encoding import ContextEncoder
from siserve.serving.errors import DeadlinePassed, QueueFull, RequestCancelled, ShuttingDown
from siserve.serving.flight import Flight, Generation, Job, row_axis
from siserve.serving.pace import Pace
from siserve.serving.scoring import BLOCK_ROWS, ScoreJob, Scores, Scoring
from siserve.serving.sessions import Sessions

__all__ = ["Engine", "EngineOptions", "Observer"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """How much the engine takes on at once.

    Attributes:
        max_queue_rows: most rows that wait, unless one job alone takes more.
        max_rows: most rows in flight, unless one job alone takes more.
        chunk_steps: steps between two looks at who is done and who waits.
        oversample: candidates for each response of a job with diversity, within `max_rows`.
        cache_utterances: encoded utterances that are kept for dialogs that go on; 0 = none.
    """

    max_queue_rows: int = 1024
    max_rows: int = 128
    chunk_steps: int = 4
    oversample: int = 6
    cache_utterances: int = 8192

    def __post_init__(self) -> None:
        """Refuse an engine that could do nothing."""
        for name, value in vars(self).items():
            least = 0 if name == "cache_utterances" else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def rows_of(self, job: Job | ScoreJob) -> int:
        """Count the rows of a job: its n responses, the candidates to choose n from, or samples."""
        if isinstance(job, ScoreJob):
            return job.num_rows
        if job.diversity == 0:
            return job.n
        return max(job.n, min(self.oversample * job.n, self.max_rows))


class Observer(Protocol):
    """Hears what the engine does, in the engine's thread."""

    def queue_changed(self, requests: int, rows: int) -> None:
        """`requests` wait now, which will take `rows` rows."""

    def rows_changed(self, rows: int) -> None:
        """`rows` are in flight now."""

    def batch_ran(self, rows: int) -> None:
        """One chunk of `rows` rows was decoded."""

    def utterances_found(self, hits: int, misses: int) -> None:
        """Of the utterances of a context `hits` needed no work and `misses` were encoded."""


class Engine:
    """Decodes jobs in a thread of its own, from start() to stop()."""

    def __init__(
        self, sessions: Sessions, manifest: Manifest, options: EngineOptions, observer: Observer
    ) -> None:
        """Nothing runs before start()."""
        self._sessions = sessions
        self._manifest = manifest
        self._options = options
        self._observer = observer
        self._encoder = ContextEncoder(
            sessions, manifest.tokens.pad, options.cache_utterances, observer.utterances_found
        )
        self._waiting: deque[Job | ScoreJob] = deque()
        self._waiting_rows = 0
        self._pace = Pace()
        self._progress = time.monotonic()
        self._wake = threading.Condition()
        self._accepts = True
        self._running: list[Flight | Scoring] = []
        self._thread = threading.Thread(target=self._loop, name="siserve-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def stalled_seconds(self) -> float:
        """For how long there has been work and no progress."""
        if not self._waiting and not self._running:
            return 0.0
        return time.monotonic() - self._progress

    @overload
    def submit(self, job: Job) -> Future[Generation]: ...

    @overload
    def submit(self, job: ScoreJob) -> Future[Scores]: ...

    def submit(self, job: Job | ScoreJob) -> Future[Generation] | Future[Scores]:
        """Queue a job.

        Raises:
            DeadlinePassed: if nobody waits for it any more.
            QueueFull: if as many rows wait as may wait; it tells when there will be room.
            ShuttingDown: after stop().
        """
        rows = self._options.rows_of(job)
        with self._wake:
            if not self._accepts:
                raise ShuttingDown("the server is shutting down; ask another one")
            job.submitted = time.monotonic()
            if job.submitted > job.deadline:
                raise DeadlinePassed("the deadline had passed when the request came")
            if self._is_full_for(rows):
                self._drop_abandoned_waiting()
            if self._is_full_for(rows):
                raise QueueFull(
                    f"{self._waiting_rows} responses wait already",
                    self._pace.seconds_for(self._waiting_rows),
                )
            job.result.set_running_or_notify_cancel()  # who awaits it cannot take it back now
            if not self._waiting and not self._running:
                self._progress = job.submitted
            self._waiting.append(job)
            self._queue_changed(rows)
            self._wake.notify()
        return job.result

    def _is_full_for(self, rows: int) -> bool:
        """Say whether rows find no room in the queue; in an empty one any number does."""
        limit = self._options.max_queue_rows
        return bool(self._waiting) and self._waiting_rows + rows > limit

    def _queue_changed(self, rows: int) -> None:
        self._waiting_rows += rows
        self._observer.queue_changed(len(self._waiting), self._waiting_rows)

    def stop(self, finish: bool = True) -> None:
        """Take no more jobs and end the thread.

        Args:
            finish: complete the jobs that were taken; False ends them as cancelled.
        """
        with self._wake:
            self._accepts = False
            if not finish:
                for job in self._waiting:
                    job.cancel()
                for flight in self._running:
                    flight.job.cancel()
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while self._accepts and not self._waiting and not self._running:
                    self._wake.wait()
                self._progress = time.monotonic()
                if not self._accepts and not self._waiting and not self._running:
                    return
            self._admit()
            self._drop_abandoned()
            decoding = [flight for flight in self._running if isinstance(flight, Flight)]
            if decoding:
                self._decode_chunk(decoding)
            scoring = next((each for each in self._running if isinstance(each, Scoring)), None)
            if scoring is not None:
                self._score_block(scoring)
            self._observer.rows_changed(sum(flight.num_rows for flight in self._running))

    def _admit(self) -> None:
        """Let waiting jobs in, in order, while their rows find room; the first one always does."""
        while True:
            with self._wake:
                rows = sum(flight.num_rows for flight in self._running)
                if not self._waiting:
                    return
                job, waiting = self._waiting[0], self._options.rows_of(self._waiting[0])
                needed = min(waiting, BLOCK_ROWS) if isinstance(job, ScoreJob) else waiting
                if self._running and rows + needed > self._options.max_rows:
                    return
                self._waiting.popleft()
                self._queue_changed(-waiting)
            if _settle_abandoned(job):
                continue
            try:
                graphs = (self._encoder, self._sessions, self._manifest)
                if isinstance(job, ScoreJob):
                    self._running.append(Scoring(job, *graphs))
                else:
                    self._running.append(Flight(job, needed, *graphs))
            except Exception as error:  # whatever a graph raises belongs to this job alone
                _log.exception("encoding failed")
                job.result.set_exception(error)

    def _drop_abandoned(self) -> None:
        self._running = [flight for flight in self._running if not _settle_abandoned(flight.job)]
        with self._wake:
            self._drop_abandoned_waiting()

    def _drop_abandoned_waiting(self) -> None:
        """Give the places of jobs that nobody waits for to others."""
        left = [job for job in self._waiting if not _settle_abandoned(job)]
        if len(left) < len(self._waiting):
            self._waiting = deque(left)
            self._queue_changed(sum(map(self._options.rows_of, left)) - self._waiting_rows)

    def _score_block(self, scoring: Scoring) -> None:
        """Weigh one block of samples of one request; the others have their turn in between."""
        rows, before = scoring.num_rows, scoring.decode_seconds
        try:
            scoring.advance()
        except Exception as error:  # whatever a graph raises belongs to this job alone
            _log.exception("scoring failed")
            self._running.remove(scoring)
            scoring.job.result.set_exception(error)
            return
        self._observer.batch_ran(rows)
        self._pace.observe(rows, scoring.decode_seconds - before)
        self._running.remove(scoring)
        if scoring.num_rows:
            self._running.append(scoring)  # behind the others
        else:
            scoring.job.result.set_result(scoring.scores())

    def _decode_chunk(self, flights: list[Flight]) -> None:
        num_rows = sum(flight.num_rows for flight in flights)
        num_steps = self._options.chunk_steps
        started = time.perf_counter()
        try:
            inputs = [flight.decoder_inputs(num_steps) for flight in flights]
            tokens, log_probs, state = self._sessions.decoder.run(
                {
                    name: np.concatenate([part[name] for part in inputs], axis=row_axis(name))
                    for name in inputs[0]
                }
            )
        except Exception as error:  # the jobs fail, the engine goes on
            _log.exception("decoding failed")
            self._running = [each for each in self._running if isinstance(each, Scoring)]
            for flight in flights:
                flight.job.result.set_exception(error)
            return
        self._observer.batch_ran(num_rows)
        seconds = time.perf_counter() - started
        first = 0
        for flight in flights:
            rows = slice(first, first + flight.num_rows)
            first += flight.num_rows
            flight.take(tokens[:, rows], log_probs[:, rows], state[rows], seconds)
        self._running = [each for each in self._running if each.num_rows]
        self._pace.observe(num_rows - sum(flight.num_rows for flight in flights), seconds)
        for flight in flights:
            if not flight.num_rows:
                flight.job.result.set_result(flight.generation())


def _settle_abandoned(job: Job | ScoreJob) -> bool:
    """End a job that nobody waits for any more."""
    if job.is_cancelled:
        job.result.set_exception(RequestCancelled("the request was cancelled"))
    elif time.monotonic() > job.deadline:
        job.result.set_exception(DeadlinePassed("the deadline passed before all was decoded"))
    else:
        return False
    return True
