"""What runs a graph: onnxruntime by the names that siserve.bundle.tensors gives, or a stand-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import onnxruntime
from numpy.typing import NDArray

from siserve.bundle.tensors import Graph

__all__ = ["AnyArray", "GraphSession", "Runs"]

AnyArray = NDArray[Any]


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
