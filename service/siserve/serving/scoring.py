"""Score given responses: log p(x|c) by importance sampling, a block of samples at a time.

Burda et al. 2016 with the semi-implicit posterior as proposal: the mean over S latents of
p(x|z,c) p(z|c) / q(z|x,c). Sample s of every response has the same noise, so that differences of
scores have less of it, and a score does not depend on what else is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest
from siserve.serving import noise
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.noise import Purpose
from siserve.serving.sessions import AnyArray, Sessions

__all__ = ["BLOCK_ROWS", "Estimate", "ScoreJob", "Scores", "Scoring", "estimate"]

#: Samples of one run: others wait no longer for it than for a batch of their own.
BLOCK_ROWS = 64


@dataclass(frozen=True)
class Estimate:
    """An estimate of log p(x|c) and the standard error that S samples leave, in nats."""

    log_prob: float
    std_error: float


@dataclass(frozen=True)
class Scores:
    """All estimates of a request and where the time went.

    Attributes:
        by_posterior: whether latents came from the posterior; if it has no density, from the prior.
    """

    estimates: tuple[Estimate, ...]
    by_posterior: bool
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float


@dataclass
class ScoreJob:
    """One request for scores.

    Attributes:
        responses: ids from <s> to </s> of each.
        num_samples: S.
        num_aux: K.
        deadline: time.monotonic() after which nobody waits for the result.
        result: filled by the engine.
        on_cancel: see Job.
    """

    context: Context
    responses: tuple[tuple[int, ...], ...]
    num_samples: int
    num_aux: int
    seed: int
    deadline: float = float("inf")
    result: Future[Scores] = field(default_factory=Future)
    on_cancel: Callable[[], None] | None = None
    submitted: float = 0.0
    is_cancelled: bool = False

    @property
    def num_rows(self) -> int:
        """Samples of all responses together."""
        return len(self.responses) * self.num_samples

    def cancel(self) -> None:
        """Stop the work at the next block; safe from any thread."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


class Scoring:
    """A score job in flight."""

    def __init__(
        self, job: ScoreJob, encoder: ContextEncoder, sessions: Sessions, manifest: Manifest
    ) -> None:
        """Encode the job's context."""
        self.job = job
        self.queue_seconds = time.monotonic() - job.submitted
        started = time.perf_counter()
        self._sessions, self._manifest = sessions, manifest
        self._c = encoder.encode([job.context])  # (1, C)
        self.encode_seconds = time.perf_counter() - started
        self.decode_seconds = 0.0
        self._weights: list[list[NDArray[np.float64]]] = [[] for _ in job.responses]
        self._blocks = [
            (number, np.arange(first, min(first + BLOCK_ROWS, job.num_samples)))
            for number in range(len(job.responses))
            for first in range(0, job.num_samples, BLOCK_ROWS)
        ]
        self._by_posterior = True

    @property
    def num_rows(self) -> int:
        """Rows of the next block; 0 = all is done."""
        return len(self._blocks[0][1]) if self._blocks else 0

    def advance(self) -> None:
        """Weigh the next block of samples."""
        started = time.perf_counter()
        number, samples = self._blocks[0]
        response = self.job.responses[number]
        c = np.repeat(self._c, len(samples), axis=0)  # (R, C)
        if self._by_posterior:
            z, log_weights = self._draw_posterior(c, response, samples)
            if np.isnan(log_weights).any():  # no density: begin again with the prior
                self._by_posterior = False
        if not self._by_posterior:
            z, log_weights = self._draw_prior(c, samples)
        log_weights = log_weights + self._log_p_x(c, z, response)
        self._weights[number].append(log_weights)
        del self._blocks[0]
        self.decode_seconds += time.perf_counter() - started

    def scores(self) -> Scores:
        """Return the estimates, in the order of the responses."""
        return Scores(
            tuple(estimate(np.concatenate(blocks)) for blocks in self._weights),
            self._by_posterior,
            self.queue_seconds,
            self.encode_seconds,
            self.decode_seconds,
        )

    def _draw_posterior(
        self, c: AnyArray, response: tuple[int, ...], samples: NDArray[np.int64]
    ) -> tuple[AnyArray, NDArray[np.float64]]:
        """Return z, (R, D), and log p(z|c) - log q(z|x,c), (R,)."""
        sizes, seed = self._manifest.sizes, self.job.seed
        width = (self.job.num_aux + 1) * sizes.noise
        eps_lam = noise.normals(seed, samples, width, Purpose.LAMBDA)
        z, log_q_z, log_p_z = self._sessions.si_sampler.run(
            {
                "c": c,
                "response": np.tile(response, (len(samples), 1)),  # (R, T)
                "eps_lam": eps_lam.reshape(len(samples), -1, sizes.noise),  # (R, K+1, E)
                "eps_z": noise.normals(seed, samples, sizes.latent, Purpose.POSTERIOR),
            }
        )
        return z, (log_p_z - log_q_z).astype(np.float64)

    def _draw_prior(
        self, c: AnyArray, samples: NDArray[np.int64]
    ) -> tuple[AnyArray, NDArray[np.float64]]:
        eps_z = noise.normals(self.job.seed, samples, self._manifest.sizes.prior_noise)
        (z,) = self._sessions.prior.run({"c": c, "eps_z": eps_z})
        return z, np.zeros(len(samples))

    def _log_p_x(self, c: AnyArray, z: AnyArray, response: tuple[int, ...]) -> NDArray[np.float64]:
        """Return log p(x|z,c) by decoding with every token forced, (R,)."""
        rows, forced = len(z), np.tile(np.array(response[1:])[:, None], (1, len(z)))  # (T-1, R)
        _, log_probs, _ = self._sessions.exact_decoder.run(
            {
                "c": c,
                "z": z,
                "state": np.zeros((rows, self._manifest.sizes.state), dtype=np.float32),
                "token": np.full(rows, self._manifest.tokens.start),
                "uniform": np.zeros(forced.shape, dtype=np.float32),
                "forced": forced,
                "temperature": np.zeros(rows, dtype=np.float32),
                "top_k": np.zeros(rows, dtype=np.int64),
                "top_p": np.ones(rows, dtype=np.float32),
            }
        )
        summed: NDArray[np.float64] = log_probs.sum(axis=0, dtype=np.float64)
        return summed


def estimate(log_weights: NDArray[np.float64]) -> Estimate:
    """Return the log of the mean weight, and its standard error to first order.

    Args:
        log_weights: of S samples, in nats, (S,).
    """
    count, largest = len(log_weights), float(log_weights.max())
    relative = np.exp(log_weights - largest)
    mean = float(relative.mean())
    error = float(relative.std(ddof=1)) / mean / math.sqrt(count) if count > 1 else 0.0
    return Estimate(largest + math.log(mean), error)
