"""What runs a graph: onnxruntime by the names that siserve.bundle.tensors gives, or a stand-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from siserve.bundle.tensors import Graph

__all__ = ["OF_STARTS", "AnyArray", "GraphSession", "Runs", "at_rows", "place_of_rows"]

AnyArray = NDArray[Any]

#: Those of the decoder's inputs that are read of rows that start, and of no others.
OF_STARTS = ("c", "z")

_BY_STEP = ("uniform", "forced", "tokens", "log_probs")


class GraphSession:
    """One graph, run by the names that siserve.bundle.tensors gives."""

    def __init__(self, graph: Graph, session: onnxruntime.InferenceSession) -> None:
        """Keep the order of the outputs."""
        self._session = session
        self._outputs = [tensor.name for tensor in graph.outputs]

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return the outputs in the graph's order."""
        outputs: Sequence[AnyArray] = self._session.run(self._outputs, dict(inputs))
        return outputs


class Runs(Protocol):
    """Whatever answers as a graph does."""

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return the outputs in the graph's order."""


def place_of_rows(name: str, rows: slice | NDArray[np.int64]) -> Any:
    """Index rows of one of the decoder's tensors, whichever axis they lie along."""
    return (slice(None), rows) if name in _BY_STEP else rows


def at_rows(inputs: Mapping[str, AnyArray], rows: slice | NDArray[np.int64]) -> dict[str, AnyArray]:
    """Take some rows of the decoder's inputs."""
    return {name: values[place_of_rows(name, rows)] for name, values in inputs.items()}
