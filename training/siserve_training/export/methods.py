"""How each method's graphs are made: one function a method, named here."""

from __future__ import annotations

from collections.abc import Callable

from siserve_training.export.errors import ExportError
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.si_cvae import si_cvae_graphs
from siserve_training.export.weights import WeightStore

__all__ = ["METHODS", "build_graphs"]

METHODS: dict[str, Callable[[TrainedModel, WeightStore], GraphSet]] = {
    "si-cvae": si_cvae_graphs,
}


def build_graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the graphs of a model by its method.

    Raises:
        ExportError: if the method is unknown or the weights are not those of the method.
    """
    if model.method not in METHODS:
        raise ExportError(
            f"method {model.method!r} cannot be exported; expected one of {', '.join(METHODS)}"
        )
    return METHODS[model.method](model, weights)
