"""Dropout whose masks come from a generator, so that a resumed run draws the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Dropout"]


@dataclass(frozen=True)
class Dropout:
    """Zeroes units at random and scales up the others (Srivastava et al. 2014).

    Attributes:
        rate: share of units that are zeroed, 0 to below 1.
        generator: draws the masks, on the device of the units.
    """

    rate: float
    generator: torch.Generator

    def __call__(self, units: Tensor) -> Tensor:
        """Mask each unit by itself; the expected value stays."""
        if not self.rate:
            return units
        keep = 1 - self.rate
        mask = torch.empty_like(units).bernoulli_(keep, generator=self.generator)
        return units * mask.div_(keep)
