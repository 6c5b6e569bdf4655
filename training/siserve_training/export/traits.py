"""What the graphs of a bundle tell of their model that neither weights nor manifest do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from siserve.bundle.tensors import CONTEXT_ENCODER, PRIOR, SI_SAMPLER, Graph
from siserve.bundle.verify import Bundle

from siserve_training.data.sentence_folder import SentenceShape
from siserve_training.export.errors import ExportError
from siserve_training.export.weights import FloatArray

__all__ = ["Traits", "read_sentence_shape", "read_traits"]

_BERT = "sentence_encoder.bert"


@dataclass(frozen=True)
class Traits:
    """Choices of a model that show in its operators; see TrainedModel."""

    logvar_clamp: float
    noise_multiplies: bool
    keep_start_mark: bool


def read_traits(bundle: Bundle) -> Traits:
    """Find the choices in the graphs that a bundle has."""
    sampler, prior, encoder = (_Nodes(bundle, g) for g in (SI_SAMPLER, PRIOR, CONTEXT_ENCODER))
    return Traits(
        logvar_clamp=max(sampler.clamp(), prior.clamp()),
        noise_multiplies=sampler.adds_one_to("posterior_net.", ".kernel_noise"),
        keep_start_mark=not (sampler.has("Slice") or encoder.has("Slice")),
    )


def read_sentence_shape(bundle: Bundle, arrays: Mapping[str, FloatArray]) -> SentenceShape:
    """Find the shape of the pretrained encoder that a bundle's contexts go through.

    Raises:
        ExportError: if the graph does not tell it.
    """
    graph = _Nodes(bundle, CONTEXT_ENCODER)
    vocabulary, hidden = arrays[f"{_BERT}.embeddings.word_embeddings.weight"].shape
    layers = {name.split(".")[4] for name in arrays if name.startswith(f"{_BERT}.encoder.layer.")}
    heads = {int(shape[2]) for shape in graph.constants_of("Reshape", 1) if shape.size == 4}
    epsilons = {each.f for each in graph.attributes("LayerNormalization", "epsilon")}
    if len(heads) != 1 or len(epsilons) != 1:
        raise ExportError(
            f"{CONTEXT_ENCODER.file} does not tell the heads of its encoder; export the run again"
        )
    pads = graph.constants_of("Pad", 1)
    return SentenceShape(
        vocabulary=vocabulary,
        hidden=hidden,
        layers=len(layers),
        heads=heads.pop(),
        intermediate=len(arrays[f"{_BERT}.encoder.layer.0.intermediate.dense.bias"]),
        positions=len(arrays[f"{_BERT}.embeddings.position_embeddings.weight"]),
        token_types=len(arrays[f"{_BERT}.embeddings.token_type_embeddings.weight"]),
        epsilon=epsilons.pop(),
        pooling="mean" if any(pad.size == 6 for pad in pads) else "first",
        normalize=graph.has("Sqrt"),
    )


class _Nodes:
    """The operators of a graph."""

    def __init__(self, bundle: Bundle, graph: Graph) -> None:
        model = onnx.load(bundle.file(graph.file), load_external_data=False)
        self._nodes = list(model.graph.node)
        self._weights = {tensor.name for tensor in model.graph.initializer}
        self._constants: dict[str, NDArray[Any]] = {
            node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
            for node in self._nodes
            if node.op_type == "Constant"
        }

    def has(self, kind: str) -> bool:
        return any(self._of(kind))

    def clamp(self) -> float:
        """Return the largest b of operators that keep numbers in [-b, b]; 0 without one."""
        bounds = [[self._constants.get(name) for name in n.input[1:]] for n in self._of("Clip")]
        pairs = [(low, high) for low, high in bounds if low is not None and high is not None]
        return max((float(high) for low, high in pairs if low == -high), default=0.0)

    def adds_one_to(self, start: str, end: str) -> bool:
        """Say whether 1 is added to a product with a weight of such a name."""
        found = {name for name in self._weights if name.startswith(start) and name.endswith(end)}
        for node in self._nodes:  # in the order in which they run
            if node.op_type in ("Cast", "MatMul") and found & set(node.input):
                found |= set(node.output)
            elif node.op_type == "Add" and found & set(node.input):
                return any(np.all(self._constants.get(name, 0) == 1) for name in node.input)
        return False

    def constants_of(self, kind: str, place: int) -> list[NDArray[Any]]:
        """Return the constants among the inputs at a place of such operators."""
        names = [node.input[place] for node in self._of(kind)]
        return [self._constants[name] for name in names if name in self._constants]

    def attributes(self, kind: str, name: str) -> list[onnx.AttributeProto]:
        return [each for n in self._of(kind) for each in n.attribute if each.name == name]

    def _of(self, kind: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self._nodes if node.op_type == kind)
