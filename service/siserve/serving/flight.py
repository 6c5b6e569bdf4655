"""A request in flight: what the engine is given, what it holds between chunks, what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Sizes
from siserve.bundle.selection import consensus, select_diverse
from siserve.serving import noise
from siserve.serving.encoding import Context
from siserve.serving.rows import Ended, Row
from siserve.serving.sessions import AnyArray, Sessions

__all__ = [
    "Flight",
    "Generation",
    "Job",
    "Row",
    "Variation",
    "latents",
    "rows_of",
]


class Generation(NamedTuple):
    """All responses of a request and where the time went."""

    rows: tuple[Row, ...]
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Variation:
    """A response to draw latents around.

    Attributes:
        response: ids from <s> to </s>.
        noise_scale: of the posterior's noise; 1 = the posterior itself.
    """

    response: tuple[int, ...]
    noise_scale: float = 1.0


@dataclass
class Job:
    """One request to the engine.

    Attributes:
        variation: latents come from the posterior of this response; None = from the prior.
        on_rows: told in the engine's thread which responses are complete, by their indices; never
            where they are chosen among more.
        diversity: above 0 the n responses are chosen among more candidates.
        deadline: time.monotonic() after which nobody waits for the result.
        result: filled by the engine: the generation, or the error that ended it.
        on_cancel: told when nobody waits any more, in the thread of who gave up.
    """

    context: Context
    n: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    diversity: float = 0.0
    variation: Variation | None = None
    on_rows: Callable[[Sequence[tuple[int, Row]]], None] | None = None
    deadline: float = float("inf")
    result: Future[Generation] = field(default_factory=Future)
    on_cancel: Callable[[], None] | None = None
    submitted: float = 0.0
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Stop the work at the next chunk; safe from any thread."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


class Flight:
    """A job in flight: what its rows have produced.

    Attributes:
        decode_seconds: time of the chunks that it was part of.
    """

    def __init__(
        self, job: Job, num_candidates: int, queue_seconds: float, encode_seconds: float
    ) -> None:
        """Begin without any row.

        Args:
            job: what was asked.
            num_candidates: how many rows it has, at least job.n.
            queue_seconds: how long it waited.
            encode_seconds: how long encoding took, that of others included.
        """
        self.job = job
        self.decode_seconds = 0.0
        self._queue_seconds = queue_seconds
        self._encode_seconds = encode_seconds
        self._done: list[Row | None] = [None] * num_candidates
        self._untold: list[tuple[int, Row]] = []
        self._num_left = num_candidates

    @property
    def is_complete(self) -> bool:
        """Whether all of its rows have ended."""
        return not self._num_left

    def take(self, ended: Ended) -> None:
        """Keep a row that ended."""
        self._done[ended.place] = ended.row
        self._untold.append((ended.place, ended.row))
        self._num_left -= 1

    def tell(self) -> None:
        """Tell whoever listens which responses are complete, unless they are chosen among more."""
        if self.job.on_rows is not None and not self.job.diversity:
            self.job.on_rows(self._untold)
        self._untold = []

    def generation(self) -> Generation:
        """Return the responses, in the order of their latents or, with diversity, of choice."""
        rows = [row for row in self._done if row is not None]
        if self.job.diversity:
            started = time.perf_counter()
            rows = _choose(rows, self.job.n, self.job.diversity)
            self.decode_seconds += time.perf_counter() - started
        return Generation(
            tuple(rows), self._queue_seconds, self._encode_seconds, self.decode_seconds
        )


def rows_of(
    jobs: Sequence[Job], counts: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Tell of each row of some jobs its job's place, its index in the job and its seed, (R,)."""
    owners = np.repeat(np.arange(len(jobs)), counts)
    index = np.concatenate([np.arange(rows) for rows in counts])
    return owners, index, np.array([job.seed for job in jobs], np.uint64)[owners]


def latents(
    jobs: Sequence[Job],
    owners: NDArray[np.int64],
    c: AnyArray,
    eps_z: AnyArray,
    sessions: Sessions,
    sizes: Sizes,
) -> AnyArray:
    """Draw z for each row of some jobs, from the prior or around the response that is varied.

    Args:
        jobs: those that are to start together.
        owners: place of each row's job among them, (R,).
        c: of each row, (R, C).
        eps_z: noise of each row's prior, (R, P).
        sessions: the graphs.
        sizes: of the model.

    Returns:
        (R, D).
    """
    varied = [number for number, job in enumerate(jobs) if job.variation is not None]
    if not varied:
        (z,) = sessions.prior.run({"c": c, "eps_z": eps_z})
        return z
    z = np.zeros((len(owners), sizes.latent), np.float32)
    from_prior = ~np.isin(owners, varied)
    if from_prior.any():
        (z[from_prior],) = sessions.prior.run({"c": c[from_prior], "eps_z": eps_z[from_prior]})
    for number in varied:
        job, mine = jobs[number], owners == number
        if job.variation is not None:
            z[mine] = _around(job.variation, job.seed, c[mine], sessions, sizes)
    return z


def _around(
    variation: Variation, seed: int, c: AnyArray, sessions: Sessions, sizes: Sizes
) -> AnyArray:
    scale, rows = np.float32(variation.noise_scale), np.arange(len(c))
    eps_z = scale * noise.normals(seed, rows, sizes.latent, noise.Purpose.POSTERIOR)
    eps_lam = scale * noise.normals(seed, rows, sizes.noise, noise.Purpose.LAMBDA)
    z, _, _ = sessions.si_sampler.run(
        {
            "c": c,
            "response": np.tile(variation.response, (len(rows), 1)),  # (R, T)
            "eps_lam": eps_lam[:, None],  # (R, 1, E): no auxiliary, no density is asked for
            "eps_z": eps_z,
        }
    )
    return z


def _choose(candidates: list[Row], n: int, diversity: float) -> list[Row]:
    said = [row.tokens for row in candidates]
    return [candidates[i] for i in select_diverse(consensus(said), said, n, diversity)]
