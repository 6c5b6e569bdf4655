"""Emitter of a pretrained sentence encoder: a BERT (Devlin et al. 2019) and its pooling.

A sentence's vector is the same bit for bit whatever stands beside it and however long the padding
is: sums over tokens are matrix products, to which padding adds zeros at the end, and not
onnxruntime's Softmax or ReduceSum, whose order of adding depends on the length of the row.
"""

from __future__ import annotations

import math

from siserve_training.data.sentence_folder import SentenceShape
from siserve_training.export.dense import linear
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.weights import Parameters

__all__ = ["sentence_vectors"]

_PATH = "sentence_encoder.bert"
_EMBEDDINGS = f"{_PATH}.embeddings"
#: Added to the scores of padding; its exponential is 0.
_FORBIDDEN = -1e30
_LEAST_SQUARE = 1e-24


def sentence_vectors(g: GraphBuilder, p: Parameters, ids: Value, shape: SentenceShape) -> Value:
    """Encode sentences, (N, T) ids padded by 0 at their ends, to (N, P).

    A row of nothing but padding gives finite numbers that must not be used.

    Args:
        g: the graph.
        p: the model's weights.
        ids: of the encoder's own tokenizer.
        shape: of the encoder.
    """
    is_token = g.cast(g.op("Not", g.op("Equal", ids, g.integer(0))), "float32")  # (N, T)
    mask = g.op("Mul", g.op("Sub", g.real(1.0), is_token), g.real(_FORBIDDEN))
    mask = g.op("Unsqueeze", mask, g.integers(1, 2))  # (N, 1, 1, T)
    states = _embed(g, p, ids, shape)  # (N, T, P)
    for number in range(shape.layers):
        states = _layer(g, p, f"{_PATH}.encoder.layer.{number}", states, mask, shape)
    if shape.pooling == "first":
        vectors = g.op("Gather", states, g.integer(0), axis=1)  # (N, P)
    else:
        vectors = _mean(g, states, is_token)
    return _to_length(g, vectors, shape.hidden) if shape.normalize else vectors


def _embed(g: GraphBuilder, p: Parameters, ids: Value, shape: SentenceShape) -> Value:
    words = g.rows_of(
        f"{_EMBEDDINGS}.word_embeddings", p[f"{_EMBEDDINGS}.word_embeddings.weight"], ids
    )
    length = g.op("Squeeze", g.op("Shape", ids, start=1, end=2))
    places = g.op("Range", g.integer(0), length, g.integer(1))  # (T,)
    positions = g.rows_of(
        f"{_EMBEDDINGS}.position_embeddings", p[f"{_EMBEDDINGS}.position_embeddings.weight"], places
    )
    first_type = g.weight(
        f"{_EMBEDDINGS}.first_token_type", p[f"{_EMBEDDINGS}.token_type_embeddings.weight"][0]
    )
    joined = g.op("Add", g.op("Add", words, first_type), positions)  # (N, T, P)
    return _normalized(g, p, f"{_EMBEDDINGS}.LayerNorm", joined, shape.epsilon)


def _layer(
    g: GraphBuilder, p: Parameters, name: str, states: Value, mask: Value, shape: SentenceShape
) -> Value:
    """Emit attention and the feed-forward part, each added to its input, (N, T, P)."""
    attended = _attention(g, p, f"{name}.attention.self", states, mask, shape)
    attended = linear(g, p, f"{name}.attention.output.dense", attended)
    states = g.op("Add", attended, states)
    states = _normalized(g, p, f"{name}.attention.output.LayerNorm", states, shape.epsilon)
    inner = _gelu(g, linear(g, p, f"{name}.intermediate.dense", states))
    inner = linear(g, p, f"{name}.output.dense", inner)
    return _normalized(g, p, f"{name}.output.LayerNorm", g.op("Add", inner, states), shape.epsilon)


def _attention(
    g: GraphBuilder, p: Parameters, name: str, states: Value, mask: Value, shape: SentenceShape
) -> Value:
    """Emit multi-head attention, (N, T, P); weights and their sum come from one product."""
    width = shape.hidden // shape.heads

    def by_head(part: str, order: list[int]) -> Value:
        heads = g.reshape(linear(g, p, f"{name}.{part}", states), 0, 0, shape.heads, width)
        return g.op("Transpose", heads, perm=order)

    query = by_head("query", [0, 2, 1, 3])  # (N, heads, T, width)
    key = by_head("key", [0, 2, 3, 1])  # (N, heads, width, T)
    value = by_head("value", [0, 2, 1, 3])
    scores = g.op("Mul", g.op("MatMul", query, key), g.real(1 / math.sqrt(width)))
    scores = g.op("Add", scores, mask)  # (N, heads, T, T)
    largest = g.reduce("ReduceMax", scores, 3, keep=True)
    weights = g.op("Exp", g.op("Sub", scores, largest))
    sums = _with_ones(g, value)  # (N, heads, T, width + 1)
    total = g.op("MatMul", weights, sums)
    above, below = g.ops("Split", 2, total, g.integers(width, 1), axis=3)
    by_token = g.op("Transpose", g.op("Div", above, below), perm=[0, 2, 1, 3])
    return g.reshape(by_token, 0, 0, shape.hidden)  # (N, T, P)


def _with_ones(g: GraphBuilder, value: Value) -> Value:
    """Put a column of ones after the last, (..., D) to (..., D + 1)."""
    return g.op("Pad", value, g.integers(0, 0, 0, 0, 0, 0, 0, 1), g.real(1.0))


def _mean(g: GraphBuilder, states: Value, is_token: Value) -> Value:
    """Emit the mean over real tokens, (N, T, P) and (N, T) to (N, P).

    A second row of zeros beside the mask keeps onnxruntime from its product of one row with a
    matrix, which adds in another order if the length is 3 modulo 4.
    """
    rows = g.op("Pad", g.unsqueeze(is_token, 1), g.integers(0, 0, 0, 0, 1, 0))  # (N, 2, T)
    total = g.op("Gather", g.op("MatMul", rows, states), g.integer(0), axis=1)  # (N, P)
    count = g.reduce("ReduceSum", is_token, 1, keep=True)  # (N, 1), exact in any order
    return g.op("Div", total, g.op("Max", count, g.real(1.0)))


def _to_length(g: GraphBuilder, vectors: Value, hidden: int) -> Value:
    """Scale vectors to length sqrt(P), (N, P)."""
    ones = g.op("Expand", g.real(1 / hidden), g.integers(hidden, 1))
    mean_square = g.op("MatMul", g.op("Mul", vectors, vectors), ones)  # (N, 1)
    return g.op("Div", vectors, g.op("Sqrt", g.op("Max", mean_square, g.real(_LEAST_SQUARE))))


def _gelu(g: GraphBuilder, x: Value) -> Value:
    """Emit x Phi(x), exact (Hendrycks & Gimpel 2016)."""
    erf = g.op("Erf", g.op("Mul", x, g.real(math.sqrt(0.5))))
    return g.op("Mul", g.op("Mul", x, g.real(0.5)), g.op("Add", erf, g.real(1.0)))


def _normalized(g: GraphBuilder, p: Parameters, name: str, x: Value, epsilon: float) -> Value:
    scale, shift = (g.weight(f"{name}.{part}", p[f"{name}.{part}"]) for part in ("weight", "bias"))
    return g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon)
