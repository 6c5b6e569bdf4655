"""The weights of a bundle: taken from a model by name, stored once, shared by all graphs.

`Parameters` is what comes in (names and layouts of the torch model), `WeightStore` is what goes
out (the layouts that the graphs want, in weights.safetensors). A weight is converted at export so
that no graph has to transpose anything, and always in the same way, so that graphs can share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from siserve_training.export.errors import ExportError

__all__ = [
    "DType",
    "FloatArray",
    "Parameters",
    "Place",
    "WeightStore",
    "read_places",
    "round_weights",
]

DType = Literal["float32", "float16"]
FloatArray = NDArray[np.floating[Any]]

_FLOAT16_MAX = 65504.0


class Parameters:
    """A model's weights by their names in its state dict, and a record of which were used.

    Args:
        arrays: name to array, any floating type.

    Raises:
        ExportError: if a weight is not a finite array of floats.
    """

    def __init__(self, arrays: Mapping[str, FloatArray]) -> None:
        self._arrays = dict(arrays)
        self._taken: set[str] = set()
        for name, array in self._arrays.items():
            if not np.issubdtype(array.dtype, np.floating):
                raise ExportError(f"weight {name} has type {array.dtype}; expected floats")
            if not np.isfinite(array).all():
                raise ExportError(
                    f"weight {name} holds values that are not finite; export an earlier checkpoint"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> FloatArray:
        """Return a weight in float32 and note that it was used."""
        if name not in self._arrays:
            raise ExportError(
                f"the model has no weight {name}; it has {', '.join(sorted(self._arrays))}"
            )
        self._taken.add(name)
        return self._arrays[name].astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, which counts as a use of it."""
        return tuple(self[name].shape)

    def unused(self) -> list[str]:
        """Names of the weights that no graph has taken."""
        return sorted(set(self._arrays) - self._taken)

    def count_used(self) -> int:
        """Count the numbers in all the weights that were taken."""
        return sum(self._arrays[name].size for name in self._taken)


@dataclass(frozen=True)
class Place:
    """Where a weight lies in weights.safetensors, in bytes."""

    offset: int
    length: int


class WeightStore:
    """The content of weights.safetensors: every weight once, whichever graphs use it.

    Args:
        dtype: type of the stored numbers; graphs compute in float32 either way.
    """

    def __init__(self, dtype: DType = "float32") -> None:
        self.dtype = dtype
        self._arrays: dict[str, FloatArray] = {}

    def add(self, name: str, array: FloatArray) -> None:
        """Store a weight; the same weight may be added again, a different one may not.

        Raises:
            ExportError: if the stored type cannot hold the values.
        """
        largest = float(np.abs(array).max(initial=0.0))
        if self.dtype == "float16" and largest > _FLOAT16_MAX:
            raise ExportError(
                f"weight {name} reaches {largest:.3g}, float16 ends at {_FLOAT16_MAX:.0f}; "
                "export with dtype float32"
            )
        stored = np.ascontiguousarray(array, dtype=self.dtype)
        present = self._arrays.setdefault(name, stored)
        assert np.array_equal(present, stored), f"two different weights are called {name}"

    def to_bytes(self) -> bytes:
        """Return the content of weights.safetensors."""
        return safetensors.numpy.save(dict(self._arrays), metadata={"format": "onnx"})


def read_places(serialized: bytes) -> dict[str, Place]:
    """Find each tensor of a safetensors file: 8 bytes of header size, JSON header, numbers."""
    size = int.from_bytes(serialized[:8], "little")
    header = json.loads(serialized[8 : 8 + size])
    places = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            places[name] = Place(8 + size + start, stop - start)
    return places


def round_weights(arrays: Mapping[str, FloatArray], dtype: DType) -> dict[str, FloatArray]:
    """Round weights to the type that they will be stored in, and return them in float32."""
    return {name: array.astype(dtype).astype(np.float32) for name, array in arrays.items()}
