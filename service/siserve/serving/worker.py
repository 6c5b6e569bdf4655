"""A worker of the engine: one thread that decodes its share of the requests, all rows together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from itertools import count

import numpy as np

from siserve.bundle.manifest import Manifest
from siserve.serving import noise
from siserve.serving.cores import give_way
from siserve.serving.encoding import ContextEncoder
from siserve.serving.flight import Flight, Job, latents, rows_of
from siserve.serving.jobs import AnyJob, JobQueue, settle_abandoned
from siserve.serving.rows import NewRows, RowTable
from siserve.serving.scoring import ScoreJob, Scoring
from siserve.serving.sessions import Sessions

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker:
    """Takes jobs of a queue, from start() until the queue is closed and all is done.

    Args:
        name: of the thread.
        sessions: the graphs, which workers share.
        manifest: of their bundle.
        encoder: of contexts, which workers share.
        jobs: what waits; it is told of rows in flight and of their pace.
        chunk_steps: steps between two looks at who is done and who waits; None = as the decoder
            has them.
    """

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        manifest: Manifest,
        encoder: ContextEncoder,
        jobs: JobQueue,
        chunk_steps: int | None,
    ) -> None:
        self._sessions = sessions
        self._manifest = manifest
        self._encoder = encoder
        self._jobs = jobs
        self._chunk_steps = chunk_steps
        seat = sessions.seat(chunk_steps)
        self._decoder = seat or sessions.decoder
        self._rows = RowTable(manifest, seat.no_states if seat else None)
        self._flights: dict[int, Flight] = {}
        self._scorings: list[Scoring] = []
        self._numbers = count()
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread's end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""
        return bool(self._flights or self._scorings)

    @property
    def stalled_seconds(self) -> float:
        """For how long it has had work and made no progress."""
        return time.monotonic() - self._progress if self.is_busy else 0.0

    @property
    def num_rows(self) -> int:
        """Rows in flight."""
        return len(self._rows) + sum(scoring.num_rows for scoring in self._scorings)

    def cancel(self) -> None:
        """End what it has at the next look."""
        for flight in list(self._flights.values()):
            flight.job.cancel()
        for scoring in list(self._scorings):
            scoring.job.cancel()

    def _loop(self) -> None:
        give_way()
        while True:
            was_busy = self.is_busy
            jobs = self._jobs.take(self.num_rows, was_busy)
            if jobs is None:
                return
            if jobs and not was_busy:
                self._sessions.occupy(1)
            self._progress = time.monotonic()
            self._admit(jobs)
            self._drop_abandoned()
            if len(self._rows):
                self._decode_chunk()
            if self._scorings:
                self._score_block()
            # By its id: were it the worker, both would hold each other, and a retired model's
            # memory, until a collection of cycles.
            self._jobs.rows_changed(id(self), self.num_rows)
            if (jobs or was_busy) and not self.is_busy:
                self._sessions.occupy(-1)

    def _admit(self, jobs: Sequence[AnyJob]) -> None:
        """Let jobs in: contexts are encoded together; if that fails, one by one."""
        told = [job for job in jobs if isinstance(job, Job)]
        try:
            self._let_in(told)
        except Exception:  # a graph broke: whose job broke it is not known
            for job in told:
                self._try_alone(job)
        for each in jobs:
            if isinstance(each, ScoreJob):
                self._try_alone(each)

    def _try_alone(self, job: AnyJob) -> None:
        try:
            if isinstance(job, ScoreJob):
                graphs = (self._encoder, self._sessions, self._manifest)
                self._scorings.append(Scoring(job, *graphs))
            else:
                self._let_in([job])
        except Exception as error:  # whatever a graph raises belongs to this job alone
            _log.exception("encoding failed")
            job.result.set_exception(error)

    def _let_in(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        now, started = time.monotonic(), time.perf_counter()
        counts = [self._jobs.options.rows_of(job) for job in jobs]
        encoded = self._encoder.encode([job.context for job in jobs])  # (B, C)
        owners, index, seeds = rows_of(jobs, counts)
        limits = np.array([job.max_tokens for job in jobs])
        sizes, most_steps = self._manifest.sizes, int(limits.max())
        eps_z, uniform = noise.normals_and_uniforms(seeds, index, sizes.prior_noise, most_steps)
        c = encoded[owners]  # (R, C)
        z = latents(jobs, owners, c, eps_z, self._sessions, sizes)  # (R, D)
        seconds = time.perf_counter() - started
        numbers = [next(self._numbers) for _ in jobs]
        for number, job, rows in zip(numbers, jobs, counts, strict=True):
            self._flights[number] = Flight(job, rows, now - job.submitted, seconds)
        new = NewRows(
            owner=np.array(numbers)[owners],
            index=index,
            limit=limits[owners],
            c=c,
            z=z,
            uniform=uniform.T,
            temperature=np.array([job.temperature for job in jobs], np.float32)[owners],
            top_k=np.array([job.top_k for job in jobs])[owners],
            top_p=np.array([job.top_p for job in jobs], np.float32)[owners],
        )
        self._rows.add(new)

    def _drop_abandoned(self) -> None:
        gone = [owner for owner, flight in self._flights.items() if settle_abandoned(flight.job)]
        for owner in gone:
            del self._flights[owner]
        self._rows.remove(gone)
        self._scorings = [each for each in self._scorings if not settle_abandoned(each.job)]

    def _decode_chunk(self) -> None:
        num_rows, started = len(self._rows), time.perf_counter()
        try:
            steps = self._chunk_steps or self._sessions.chunk_steps(num_rows)
            ended = self._rows.take_steps(self._decoder, steps)
        except Exception as error:  # the jobs fail, the engine goes on
            _log.exception("decoding failed")
            self._rows.clear()
            for flight in self._flights.values():
                flight.job.result.set_exception(error)
            self._flights = {}
            return
        seconds = time.perf_counter() - started
        self._jobs.chunk_ran(num_rows, len(ended), seconds)
        for flight in self._flights.values():
            flight.decode_seconds += seconds
        for row in ended:
            self._flights[row.owner].take(row)
        for owner in dict.fromkeys(row.owner for row in ended):
            flight = self._flights[owner]
            flight.tell()
            if flight.is_complete:
                del self._flights[owner]
                flight.job.result.set_result(flight.generation())

    def _score_block(self) -> None:
        """Weigh one block of samples of one request; the others have their turn in between."""
        scoring = self._scorings.pop(0)
        rows, before = scoring.num_rows, scoring.decode_seconds
        try:
            scoring.advance()
        except Exception as error:  # whatever a graph raises belongs to this job alone
            _log.exception("scoring failed")
            scoring.job.result.set_exception(error)
            return
        self._jobs.chunk_ran(rows, rows, scoring.decode_seconds - before)
        if scoring.num_rows:
            self._scorings.append(scoring)  # behind the others
        else:
            scoring.job.result.set_result(scoring.scores())
