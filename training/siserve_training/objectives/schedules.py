"""Schedules over training: the KL weight (paper eq. 13) and the number of auxiliaries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["AuxRamp", "BetaSchedule", "Moment", "ScheduleName"]

ScheduleName = Literal["constant", "monotonic", "cyclical"]


@dataclass(frozen=True)
class BetaSchedule:
    """Weight of the KL term at step t of T (paper eq. 13).

    tau = ((t - 1) mod ceil(T/M)) / (T/M); beta = beta_max * min(1, tau / ratio). Monotonic is
    M = 1; constant is beta_max throughout.

    Attributes:
        name: which schedule.
        total_steps: T.
        cycles: M, of the cyclical schedule.
        ratio: share of a cycle in which beta rises.
        beta_max: where it rises to.
    """

    name: ScheduleName
    total_steps: int
    cycles: int = 4
    ratio: float = 0.5
    beta_max: float = 1.0

    def at(self, step: int) -> float:
        """Return beta at step t = 1, 2, ..."""
        if self.name == "constant":
            return self.beta_max
        period = self.total_steps / (self.cycles if self.name == "cyclical" else 1)
        tau = ((step - 1) % math.ceil(period)) / period
        return self.beta_max * min(1.0, tau / self.ratio)


@dataclass(frozen=True)
class AuxRamp:
    """Number of auxiliary lambdas at step t of T, rising linearly (paper section 3.4).

    K_t = round(K_max * min(1, t / (horizon * T))), at least `floor`. The paper leaves the horizon
    open.

    Attributes:
        num_aux: K_max.
        total_steps: T.
        horizon: share of training over which K rises.
        floor: smallest K.
    """

    num_aux: int
    total_steps: int
    horizon: float = 1.0
    floor: int = 1

    def at(self, step: int) -> int:
        """Return K at step t = 1, 2, ..."""
        share = min(1.0, step / (self.horizon * self.total_steps)) if self.horizon > 0 else 1.0
        return min(self.num_aux, max(self.floor, round(self.num_aux * share)))


@dataclass(frozen=True)
class Moment:
    """Where in training a step stands.

    Attributes:
        step: t = 1, 2, ...
        horizon: T.
        steps_per_pass: steps of one pass over the training pairs.
        beta: weight of the KL term.
        num_aux: K.
    """

    step: int
    horizon: int
    steps_per_pass: int
    beta: float
    num_aux: int

    @property
    def passes_done(self) -> int:
        """Whole passes over the training pairs before this step."""
        return (self.step - 1) // self.steps_per_pass
