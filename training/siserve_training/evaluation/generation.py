"""Responses to the contexts of a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from siserve.bundle.selection import consensus, select_diverse

from siserve_training.data.batches import collate
from siserve_training.data.pairs import Ints, PairSet
from siserve_training.errors import ConfigError
from siserve_training.evaluation.system import Decoding, System
from siserve_training.tasks.prepared import RESPONSES, StepNoise

__all__ = ["Sampling", "respond"]

_ROWS_AT_ONCE = 640


@dataclass(frozen=True)
class Sampling:
    """How many responses a context gets, and how they are chosen.

    Attributes:
        num_responses: N.
        decoding: of each latent.
        diversity: how much the chosen shun repetition, 0 for the first N as drawn.
        oversample: latents drawn for each response that is chosen, where diversity is above 0.
        seed: of all noise.
    """

    num_responses: int = 10
    decoding: Decoding = Decoding()
    diversity: float = 0.0
    oversample: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        """Check numbers where a wrong one would draw something else than was meant."""
        if self.num_responses < 1:
            raise ConfigError(f"responses must be at least 1, got {self.num_responses}")
        if not 0 <= self.diversity <= 1:
            raise ConfigError(f"diversity must lie in 0 to 1, got {self.diversity}")
        if self.oversample < 1:
            raise ConfigError(f"oversample must be at least 1, got {self.oversample}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")
        if self.diversity and not self.decoding.stop_at_end:
            raise ConfigError(
                "diversity chooses among responses that end; measure what comes after </s> "
                "with diversity 0"
            )

    @property
    def num_drawn(self) -> int:
        """M, the latents that are decoded for a context."""
        return self.num_responses * (self.oversample if self.diversity else 1)


@torch.no_grad()
def respond(system: System, pairs: PairSet, responses: Ints, sampling: Sampling) -> Ints:
    """Draw latents from the prior for each context and decode one response from each.

    Args:
        system: any.
        pairs: the split.
        responses: positions whose contexts are answered, (N,).
        sampling: how.

    Returns:
        Id rows in the order of `responses`, (N, R, W).
    """
    drawn = sampling.num_drawn
    step = max(1, _ROWS_AT_ONCE // drawn)
    rows = [
        _chosen(system, pairs, responses[start : start + step], sampling, number)
        for number, start in enumerate(range(0, len(responses), step))
    ]
    return np.concatenate(rows)


def _chosen(
    system: System, pairs: PairSet, responses: Ints, sampling: Sampling, number: int
) -> Ints:
    drawn, width = sampling.num_drawn, sampling.decoding.max_tokens
    noise = StepNoise.of(sampling.seed, RESPONSES, number)
    c = system.encode(collate(pairs, responses).to(system.device)).c  # (B, C)
    eps = noise.normal(len(c), drawn, system.widths.z + system.widths.prior).to(system.device)
    uniform = torch.rand(width, len(c) * drawn, generator=noise.generator).to(system.device)
    z = system.draw_prior(c, eps).flatten(0, 1)  # (B*M, D)
    each = c.repeat_interleave(drawn, dim=0)
    ids = system.decode(each, z, sampling.decoding, uniform)
    rows = ids.view(len(c), drawn, width).cpu().numpy()
    return _select(rows, sampling, system.marks) if sampling.diversity else rows


def _select(rows: Ints, sampling: Sampling, marks: tuple[int, ...]) -> Ints:
    """Choose N of the M responses of each context as the service does, (B, M, W) to (B, N, W)."""
    chosen = []
    for candidates in rows:
        words = [[word for word in row if word not in marks] for row in candidates.tolist()]
        places = select_diverse(consensus(words), words, sampling.num_responses, sampling.diversity)
        chosen.append(candidates[places])
    return np.stack(chosen)
