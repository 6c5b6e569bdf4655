"""The engine: workers that decode the rows of all requests in flight together.

A request enters between two chunks of K steps: contexts of those that enter together are encoded at
once, each draws n latents, and their rows join the others. After each chunk rows that ended leave;
a request whose rows have all ended is complete. Every number that a row takes depends on its own
request alone, so who else is in flight, and in which worker, changes when a response is ready but
never what it is. It knows no gRPC.

Workers are threads that share the graphs: onnxruntime lets go of Python's lock while it runs, and
what Python does for a chunk is a few operations on arrays.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Protocol, overload

from siserve.bundle.manifest import Manifest
from siserve.serving.encoding import ContextEncoder
from siserve.serving.flight import Generation, Job
from siserve.serving.jobs import AnyJob, EngineOptions, JobQueue, Observer
from siserve.serving.scoring import ScoreJob, Scores
from siserve.serving.sessions import Sessions
from siserve.serving.worker import Worker

__all__ = ["AnyEngine", "Engine", "EngineOptions", "Observer"]


class AnyEngine(Protocol):
    """What decodes jobs, here or in another process."""

    @property
    def stalled_seconds(self) -> float:
        """See Engine."""

    def start(self) -> None:
        """See Engine."""

    @overload
    def submit(self, job: Job) -> Future[Generation]: ...

    @overload
    def submit(self, job: ScoreJob) -> Future[Scores]: ...

    def check_room(self) -> None:
        """See Engine."""

    def stop(self, finish: bool = True) -> None:
        """See Engine."""


class Engine:
    """Decodes jobs in threads of its own, from start() to stop()."""

    def __init__(
        self, sessions: Sessions, manifest: Manifest, options: EngineOptions, observer: Observer
    ) -> None:
        """Nothing runs before start()."""
        pad, capacity = manifest.tokens.pad, options.cache_utterances
        encoder = ContextEncoder(sessions, pad, capacity, observer.utterances_found)
        self._jobs = JobQueue(options, observer)
        self._workers = [
            Worker(
                f"siserve-engine-{number}",
                sessions,
                manifest,
                encoder,
                self._jobs,
                options.chunk_steps,
            )
            for number in range(options.workers)
        ]

    def start(self) -> None:
        """Start the threads."""
        for worker in self._workers:
            worker.start()

    @property
    def stalled_seconds(self) -> float:
        """For how long there has been work and no progress."""
        waited = time.monotonic() - self._jobs.progress if len(self._jobs) else 0.0
        return max(waited, *(worker.stalled_seconds for worker in self._workers))

    @overload
    def submit(self, job: Job) -> Future[Generation]: ...

    @overload
    def submit(self, job: ScoreJob) -> Future[Scores]: ...

    def submit(self, job: AnyJob) -> Future[Generation] | Future[Scores]:
        """Queue a job; raises what JobQueue.put does."""
        self._jobs.put(job)
        return job.result

    def check_room(self) -> None:
        """Refuse a job that is still to be read, if there is no room; see JobQueue.check_room."""
        self._jobs.check_room()

    def stop(self, finish: bool = True) -> None:
        """Take no more jobs and end the threads.

        Args:
            finish: complete the jobs that were taken; False ends them as cancelled.
        """
        self._jobs.close(finish)
        if not finish:
            for worker in self._workers:
                worker.cancel()
        for worker in self._workers:
            worker.join()
