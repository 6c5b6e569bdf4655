"""What a pretrained context encoder is told of a split's utterances: vectors, or token ids.

A frozen encoder has said all it can before training begins, so a batch gathers vectors; a tuned one
gets its ids in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Pieces", "Told", "Vectors", "padded"]

Ints = npt.NDArray[np.int64]


class Told(Protocol):
    """One row for each distinct text of a split."""

    def rows(self, numbers: Ints) -> Tensor:
        """Return the rows of some texts, (Q, ...)."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of a frozen encoder, any floating type, (texts, P)."""

    table: npt.NDArray[np.floating]

    def rows(self, numbers: Ints) -> Tensor:
        """Return vectors in float32, (Q, P)."""
        return torch.from_numpy(self.table[numbers].astype(np.float32))


@dataclass(frozen=True, eq=False)
class Pieces:
    """Ids of the encoder's own tokenizer, marks included, for each text."""

    ids: Sequence[tuple[int, ...]]

    def rows(self, numbers: Ints) -> Tensor:
        """Return ids, 0-padded, (Q, T)."""
        return padded([self.ids[number] for number in numbers.tolist()])


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Put rows of ids into one tensor, filled up with 0, (Q, T)."""
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return table
