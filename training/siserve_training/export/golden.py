"""Make a bundle's golden request from the graphs that go into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from siserve.bundle.context_text import ContextText
from siserve.bundle.golden import ROWS, GoldenGraphs
from siserve.bundle.manifest import Description, Golden
from siserve.bundle.tensors import GRAPHS, Graph
from siserve.bundle.text import Text

from siserve_training.export.parity import open_graph

__all__ = ["make_golden"]

_DIALOG = (
    ("A", "hello , how are you doing today ?"),
    ("B", "i'm doing very well , thank you . do you have any pets"),
    ("A", "yes , i have a dog and two cats at home , they like the yard ."),
)
_STEPS = 16


def make_golden(folder: Path, about: Description, context_text: Text | ContextText) -> Golden:
    """Ask the graphs of a folder and write down what they gave.

    Args:
        folder: holds the graphs and their weights.
        about: what the bundle will say of itself.
        context_text: of contexts.

    Raises:
        ExportError: if onnxruntime refuses a graph.
    """
    sessions = {graph.file: open_graph(folder / graph.file) for graph in GRAPHS}

    def run(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        outputs: Sequence[NDArray[Any]] = sessions[graph.file].run(
            [tensor.name for tensor in graph.outputs], dict(inputs)
        )
        return outputs

    graphs = GoldenGraphs(run, about, context_text)
    turns, responder = (_DIALOG, "B") if about.task == "dialog" else ((), "")
    c = graphs.condition(turns, responder)
    said = graphs.decode(c, graphs.latents(c), np.full((_STEPS, ROWS), -1))[0][:, 0].tolist()
    words = said[: said.index(about.tokens.end)] if about.tokens.end in said else said
    response = (about.tokens.start, *words, about.tokens.end)
    return Golden(
        context=turns,
        responder=responder,
        response=response,
        expected=graphs.numbers(turns, responder, response),
    )
