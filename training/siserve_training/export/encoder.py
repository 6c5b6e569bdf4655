"""Emitter of what all dialog models share: the context encoder and the condition vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx
from siserve.bundle.tensors import CONTEXT_ENCODER, Graph

from siserve_training.export.errors import ExportError
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import context_state, utterance_vectors
from siserve_training.export.sentence import sentence_vectors
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["begin", "condition_size", "finished", "told_utterances"]

_PROFILE_SIZE = 8


def begin(weights: WeightStore, graph: Graph) -> tuple[GraphBuilder, dict[str, Value]]:
    """Open a graph; return its builder and its inputs by name."""
    return GraphBuilder(weights), {tensor.name: Value(tensor.name) for tensor in graph.inputs}


def context_encoder_graph(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> onnx.ModelProto:
    """Emit context_encoder.onnx: c = [topic, profiles, context state], as far as they are known."""
    g, given = begin(weights, CONTEXT_ENCODER)
    if model.sentence is None:
        encode, utterances = utterance_vectors, told_utterances(g, model, given["utterances"])
    else:
        encode, utterances = partial(sentence_vectors, shape=model.sentence), given["utterances"]
    parts = [context_state(g, p, utterances, given["floor"], encode)]
    if model.features.profile:
        parts.insert(0, given["profile"])
    if model.features.topics:
        table = p["topic_embedding.weight"]
        parts.insert(0, g.rows_of("topic_embedding.weight", table, given["topic"]))
    c = parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)  # (B, C)
    return g.build(CONTEXT_ENCODER, {"c": c}, sizes.by_axis())


def told_utterances(g: GraphBuilder, model: TrainedModel, ids: Value) -> Value:
    """Leave out the first column, that of ``<s>``, if the model never sees it; (..., T)."""
    if model.keep_start_mark:
        return ids
    return g.op("Slice", ids, g.integers(1), g.integers(2**31), g.integers(-1))


def condition_size(model: TrainedModel, p: Parameters) -> int:
    """Return C.

    Raises:
        ExportError: if the table of topics does not fit the features.
    """
    condition = p.shape("context_encoder.gru.weight_hh_l0")[1]
    features = model.features
    if features.profile:
        condition += _PROFILE_SIZE
    if features.topics:
        num_topics, topic_size = p.shape("topic_embedding.weight")
        condition += topic_size
        if num_topics != len(features.topics) + 1:
            raise ExportError(
                f"topic_embedding.weight has {num_topics} rows; expected "
                f"{len(features.topics) + 1}, one for each topic and one for none"
            )
    return condition


def finished(
    model: TrainedModel,
    weights: WeightStore,
    p: Parameters,
    sizes: AxisSizes,
    own: Mapping[Graph, onnx.ModelProto],
    training_only: str = "no such weight",
) -> GraphSet:
    """Put the context encoder beside a model's own graphs and check that every weight is used.

    Args:
        model: what is exported.
        weights: the store that all graphs share.
        p: the model's weights.
        sizes: of the model.
        own: prior, sampler and decoder, and a context encoder that is not as dialog models have.
        training_only: what the names of weights that only training needs begin with.

    Raises:
        ExportError: if a weight is left over.
    """
    built = {graph.file: made for graph, made in own.items()}
    if CONTEXT_ENCODER.file not in built:
        encoder = context_encoder_graph(model, weights, p, sizes)
        built = {CONTEXT_ENCODER.file: encoder, **built}
    unused = [name for name in p.unused() if not name.startswith(training_only)]
    if unused:
        raise ExportError(
            f"no graph uses {', '.join(unused)}; the features or the method named for the export "
            "are not those that the model was trained with"
        )
    return GraphSet(built, sizes.manifest(p))
