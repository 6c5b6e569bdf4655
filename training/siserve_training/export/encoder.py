"""Emitter of what all dialog models share: the context encoder and the condition vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import onnx
from siserve.bundle.tensors import CONTEXT_ENCODER, DIALOG_ENCODER, UTTERANCE_ENCODER, Graph

from siserve_training.export.errors import ExportError
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import (
    Encode,
    context_state,
    dialog_state,
    utterance_vectors,
)
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
    encode, utterances = _encoding(g, model, given["utterances"])
    state = context_state(g, p, utterances, given["floor"], encode)
    c = _condition(g, model, p, state, given)
    return g.build(CONTEXT_ENCODER, {"c": c}, sizes.by_axis())


def utterance_encoder_graph(
    model: TrainedModel, weights: WeightStore, p: Parameters
) -> onnx.ModelProto:
    """Emit utterance_encoder.onnx: what the context encoder makes of each utterance."""
    g, given = begin(weights, UTTERANCE_ENCODER)
    encode, ids = _encoding(g, model, given["ids"])
    return g.build(UTTERANCE_ENCODER, {"vectors": encode(g, p, ids)}, _width(p))


def dialog_encoder_graph(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> onnx.ModelProto:
    """Emit dialog_encoder.onnx: what the context encoder makes of vectors of utterances."""
    g, given = begin(weights, DIALOG_ENCODER)
    state = dialog_state(g, p, given["vectors"], given["floor"], given["num_utterances"])
    c = _condition(g, model, p, state, given)
    return g.build(DIALOG_ENCODER, {"c": c}, {**sizes.by_axis(), **_width(p)})


def _encoding(g: GraphBuilder, model: TrainedModel, ids: Value) -> tuple[Encode, Value]:
    """Return what encodes utterances of contexts, and the part of their ids that it is told."""
    if model.sentence is None:
        return utterance_vectors, told_utterances(g, model, ids)
    return partial(sentence_vectors, shape=model.sentence), ids


def _condition(
    g: GraphBuilder, model: TrainedModel, p: Parameters, state: Value, given: dict[str, Value]
) -> Value:
    """Emit c from the context's state, (B, C)."""
    parts = [state]
    if model.features.profile:
        parts.insert(0, given["profile"])
    if model.features.topics:
        table = p["topic_embedding.weight"]
        parts.insert(0, g.rows_of("topic_embedding.weight", table, given["topic"]))
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)  # (B, C)


def _width(p: Parameters) -> dict[str, int]:
    """Return F by its axis: the context's GRU takes a vector and two flags of the floor."""
    return {"F": p.shape("context_encoder.gru.weight_ih_l0")[1] - 2}


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

    It is emitted whole and in its two steps.

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
        built = {
            CONTEXT_ENCODER.file: context_encoder_graph(model, weights, p, sizes),
            UTTERANCE_ENCODER.file: utterance_encoder_graph(model, weights, p),
            DIALOG_ENCODER.file: dialog_encoder_graph(model, weights, p, sizes),
            **built,
        }
    unused = [name for name in p.unused() if not name.startswith(training_only)]
    if unused:
        raise ExportError(
            f"no graph uses {', '.join(unused)}; the features or the method named for the export "
            "are not those that the model was trained with"
        )
    return GraphSet(built, sizes.manifest(p))
