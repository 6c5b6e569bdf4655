"""A request in flight: what the engine is given, what it holds between chunks, what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest, Sizes
from siserve.bundle.selection import consensus, select_diverse
from siserve.serving import noise
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.sessions import AnyArray, Sessions

__all__ = [
    "Flight",
    "Generation",
    "Job",
    "Row",
    "Variation",
    "row_axis",
]


@dataclass(frozen=True)
class Row:
    """One response.

    Attributes:
        tokens: ids without special tokens.
        log_prob: natural log probability of the tokens and, if it ended, of the end mark.
        ended: whether the model ended it; False = cut at max_tokens.
    """

    tokens: tuple[int, ...]
    log_prob: float
    ended: bool


@dataclass(frozen=True)
class Generation:
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
    submitted: float = 0.0
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Stop the work at the next chunk; safe from any thread."""
        self.is_cancelled = True


class Flight:
    """A job in flight: the state of its rows that have not ended, and what all rows produced."""

    def __init__(
        self,
        job: Job,
        num_candidates: int,
        encoder: ContextEncoder,
        sessions: Sessions,
        manifest: Manifest,
    ) -> None:
        """Encode the job's context once and draw a latent for each candidate, at least job.n."""
        self.job = job
        self._end = manifest.tokens.end
        self.queue_seconds = time.monotonic() - job.submitted
        started = time.perf_counter()
        self._alive = np.arange(num_candidates)
        c = encoder.encode([job.context])
        self._c = np.repeat(c, num_candidates, axis=0)  # (R, C)
        self._z = _draw_latents(job, self._alive, self._c, sessions, manifest.sizes)  # (R, D)
        self.encode_seconds = time.perf_counter() - started
        self.decode_seconds = 0.0
        self._state = np.zeros((num_candidates, manifest.sizes.state), dtype=np.float32)
        self._token = np.full(num_candidates, manifest.tokens.start)
        self._step = 0
        self._tokens = np.full((num_candidates, job.max_tokens), self._end)
        self._log_probs = np.zeros((num_candidates, job.max_tokens), dtype=np.float32)

    @property
    def num_rows(self) -> int:
        """Rows that have not ended."""
        return len(self._alive)

    def decoder_inputs(self, num_steps: int) -> dict[str, NDArray[np.generic]]:
        """Return the decoder's inputs for the next chunk."""
        rows = self.num_rows
        return {
            "c": self._c,
            "z": self._z,
            "state": self._state,
            "token": self._token,
            "uniform": noise.uniforms(self.job.seed, self._alive, self._step, num_steps),
            "forced": np.full((num_steps, rows), -1),
            "temperature": np.full(rows, self.job.temperature, dtype=np.float32),
            "top_k": np.full(rows, self.job.top_k),
            "top_p": np.full(rows, self.job.top_p, dtype=np.float32),
        }

    def take(
        self,
        tokens: NDArray[np.int64],
        log_probs: NDArray[np.float32],
        state: NDArray[np.float32],
        seconds: float,
    ) -> None:
        """Keep what a chunk produced, (K, R) each, and let go of the rows that ended."""
        self.decode_seconds += seconds
        used = min(len(tokens), self.job.max_tokens - self._step)
        steps = slice(self._step, self._step + used)
        self._tokens[self._alive, steps] = tokens[:used].T
        self._log_probs[self._alive, steps] = log_probs[:used].T
        self._step += used
        goes_on = tokens[-1] != self._end
        if self._step == self.job.max_tokens:
            goes_on = np.zeros_like(goes_on)
        if self.job.on_rows is not None and not self.job.diversity:
            ended = self._alive[~goes_on].tolist()
            if ended:
                self.job.on_rows([(index, self._row(index)) for index in ended])
        self._alive = self._alive[goes_on]
        self._c, self._z = self._c[goes_on], self._z[goes_on]
        self._state, self._token = state[goes_on], tokens[-1][goes_on]

    def generation(self) -> Generation:
        """Return the responses, in the order of their latents or, with diversity, of choice."""
        rows = [self._row(index) for index in range(len(self._tokens))]
        if self.job.diversity:
            started = time.perf_counter()
            rows = _choose(rows, self.job.n, self.job.diversity)
            self.decode_seconds += time.perf_counter() - started
        return Generation(tuple(rows), self.queue_seconds, self.encode_seconds, self.decode_seconds)

    def _row(self, index: int) -> Row:
        tokens, log_probs = self._tokens[index], self._log_probs[index]
        (ends,) = np.nonzero(tokens == self._end)
        length = int(ends[0]) if len(ends) else len(tokens)
        return Row(
            tuple(tokens[:length].tolist()),
            float(log_probs[: length + 1].sum(dtype=np.float64)),
            bool(len(ends)),
        )


def _draw_latents(
    job: Job, rows: NDArray[np.int64], c: AnyArray, sessions: Sessions, sizes: Sizes
) -> AnyArray:
    """Draw z for each row from the prior, or around the response that is varied, (R, D)."""
    if job.variation is None:
        eps_z = noise.normals(job.seed, rows, sizes.prior_noise)  # (R, P)
        (z,) = sessions.prior.run({"c": c, "eps_z": eps_z})
        return z
    scale = np.float32(job.variation.noise_scale)
    eps_z = scale * noise.normals(job.seed, rows, sizes.latent, noise.Purpose.POSTERIOR)
    eps_lam = scale * noise.normals(job.seed, rows, sizes.noise, noise.Purpose.LAMBDA)
    z, _, _ = sessions.si_sampler.run(
        {
            "c": c,
            "response": np.tile(job.variation.response, (len(rows), 1)),  # (R, T)
            "eps_lam": eps_lam[:, None],  # (R, 1, E): no auxiliary, no density is asked for
            "eps_z": eps_z,
        }
    )
    return z


def _choose(candidates: list[Row], n: int, diversity: float) -> list[Row]:
    said = [row.tokens for row in candidates]
    return [candidates[i] for i in select_diverse(consensus(said), said, n, diversity)]


def row_axis(name: str) -> int:
    """Axis of a decoder input along which rows lie."""
    return 1 if name in ("uniform", "forced") else 0
