"""Emitters of recurrent parts. All GRUs are torch's: the reset gate acts after the product.

Whole sequences go through ONNX's GRU operator, whose gates are ordered z, r, h; single steps of a
decoder are spelt out, with torch's order r, z, n, because onnxruntime's operator is slower there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.products import Affine, Rows
from siserve_training.export.weights import FloatArray, Parameters

__all__ = [
    "Encode",
    "context_state",
    "count_real",
    "dialog_state",
    "gates_of",
    "gates_of_word",
    "gru_last_state",
    "gru_step",
    "state_layer",
    "utterance_vectors",
]

#: Numbers in a table of what words add to gates; 64 MiB in float32.
_LARGEST_TABLE = 16 << 20

#: (graph, weights, ids padded by 0, (N, T)) to vectors, (N, F).
Encode = Callable[[GraphBuilder, Parameters, Value], Value]


def gru_last_state(
    g: GraphBuilder,
    p: Parameters,
    name: str,
    steps: Value,
    lengths: Value,
    direction: Literal["forward", "bidirectional"] = "forward",
) -> Value:
    """Run a GRU over ragged rows and return its state after each row's last step.

    Args:
        g: the graph.
        p: the model's weights; `name` is the path of an nn.GRU of one layer.
        name: path of the GRU.
        steps: inputs, time first, (T, N, F).
        lengths: steps of each row, at least 1, (N,).
        direction: "bidirectional" runs backwards too, from each row's last step.

    Returns:
        (N, H), or (N, 2H): the forward and the backward final state.
    """
    suffixes = ("", "_reverse") if direction == "bidirectional" else ("",)
    hidden = p.shape(f"{name}.weight_hh_l0")[1]
    kernel = np.stack([_zrh(p[f"{name}.weight_ih_l0{s}"]) for s in suffixes])
    recurrence = np.stack([_zrh(p[f"{name}.weight_hh_l0{s}"]) for s in suffixes])
    biases = [
        np.concatenate([_zrh(p[f"{name}.bias_{part}_l0{s}"]) for part in ("ih", "hh")])
        for s in suffixes
    ]
    _, state = g.ops(
        "GRU",
        2,
        steps,
        g.weight(f"{name}.W", kernel),
        g.weight(f"{name}.R", recurrence),
        g.weight(f"{name}.B", np.stack(biases)),
        g.cast(lengths, "int32"),
        hidden_size=hidden,
        direction=direction,
        linear_before_reset=1,
    )  # (directions, N, H)
    by_row = g.op("Transpose", state, perm=[1, 0, 2])  # (N, directions, H)
    return g.reshape(by_row, 0, len(suffixes) * hidden)


def utterance_vectors(g: GraphBuilder, p: Parameters, ids: Value) -> Value:
    """Encode utterances, (N, T) ids padded by 0 at their ends, to (N, F).

    A row of nothing but padding is run as if it had one token; what it gives must not be used.
    """
    lengths = g.op("Max", count_real(g, ids), g.integers(1))
    by_time = g.op("Transpose", ids, perm=[1, 0])  # (T, N)
    embedded = g.rows_of("embedding.weight", p["embedding.weight"], by_time)  # (T, N, W)
    return gru_last_state(g, p, "utterance_encoder.gru", embedded, lengths, "bidirectional")


def context_state(
    g: GraphBuilder, p: Parameters, utterances: Value, floor: Value, encode: Encode
) -> Value:
    """Encode contexts: utterances one by one, then a GRU over them and their floors.

    Args:
        g: the graph.
        p: the model's weights.
        utterances: ids, (B, U, T); real utterances first, the rest of the rows all padding.
        floor: 1 where the responder spoke, 0 elsewhere, (B, U).
        encode: what makes a vector of an utterance.

    Returns:
        State after the last real utterance, (B, H).
    """
    batch_and_window = g.op("Shape", utterances, start=0, end=2)
    length = g.op("Shape", utterances, start=2, end=3)
    ids = g.op("Reshape", utterances, g.op("Concat", g.integers(-1), length, axis=0))  # (B*U, T)
    vectors = encode(g, p, ids)  # (B*U, F)
    shape = g.op("Concat", batch_and_window, g.integers(-1), axis=0)
    vectors = g.op("Reshape", vectors, shape)  # (B, U, F)
    used = g.reduce("ReduceMax", utterances, 2)  # (B, U), 0 for an utterance of padding
    return dialog_state(g, p, vectors, floor, count_real(g, used))


def dialog_state(
    g: GraphBuilder, p: Parameters, vectors: Value, floor: Value, num_utterances: Value
) -> Value:
    """Run the GRU over utterances that are encoded, (B, U, F), and their floors, (B, U).

    Returns:
        State after the last of a context's first `num_utterances`, (B,), at least 1; (B, H).
    """
    spoke = g.unsqueeze(g.cast(g.op("Equal", floor, g.integer(1)), "float32"), 2)  # (B, U, 1)
    steps = g.op("Concat", vectors, g.op("Sub", g.real(1.0), spoke), spoke, axis=2)  # (B, U, F+2)
    by_time = g.op("Transpose", steps, perm=[1, 0, 2])  # (U, B, F+2)
    lengths = g.op("Max", num_utterances, g.integers(1))
    return gru_last_state(g, p, "context_encoder.gru", by_time, lengths)


def gru_step(
    g: GraphBuilder, p: Parameters, name: str, from_x: Value, state: Value, is_bounded: bool
) -> Value:
    """Take one step of a GRU.

    Args:
        g: the graph.
        p: the model's weights; `name` is the path of an nn.GRU of one layer.
        name: path of the GRU.
        from_x: what `gates_of` or `gates_of_word` makes of the inputs, (R, 3H).
        state: (R, H).
        is_bounded: whether states lie in [-1, 1] by construction.

    Returns:
        The following states, (R, H).
    """
    hidden = p.shape(f"{name}.weight_hh_l0")[1]
    from_state = state_layer(g, p, name).apply(g, Rows.of(g, state, is_bounded))  # (R, 3H)
    parts = g.integers(2 * hidden, hidden)
    x_rz, x_n = g.ops("Split", 2, from_x, parts, axis=1)
    h_rz, h_n = g.ops("Split", 2, from_state, parts, axis=1)
    r_and_z = g.op("Sigmoid", g.op("Add", x_rz, h_rz))
    r, z = g.ops("Split", 2, r_and_z, g.integers(hidden, hidden), axis=1)
    n = g.op("Tanh", g.op("Add", x_n, g.op("Mul", r, h_n)))
    return g.op("Add", n, g.op("Mul", z, g.op("Sub", state, n)))  # (1 - z) n + z h


def gates_of(g: GraphBuilder, p: Parameters, name: str, x: Value) -> Value:
    """Emit what inputs, (R, F), add to the gates of a GRU or an LSTM: (R, gates * H)."""
    kernel, bias = _kernel_and_bias(g, p, name, "ih")
    return g.op("Add", g.op("MatMul", x, kernel), bias)


def gates_of_word(g: GraphBuilder, p: Parameters, name: str, token: Value) -> Value:
    """Emit the same for words that are told and nothing else, (R,) to (R, gates * H).

    The product of the whole embedding with the weights is formed in float32 when the graph is
    loaded, and a step gathers rows of it, unless it would take more than 64 MiB.
    """
    embedding = p["embedding.weight"]
    size = embedding.shape[0] * p.shape(f"{name}.weight_ih_l0")[0]
    if size > _LARGEST_TABLE:
        return gates_of(g, p, name, g.rows_of("embedding.weight", embedding, token))
    table = g.once(
        f"{name}.gates_of_words",
        lambda root: gates_of(root, p, name, root.weight("embedding.weight", embedding)),
    )
    return g.op("Gather", table, token)


def count_real(g: GraphBuilder, ids: Value) -> Value:
    """Count the entries of each row that are not padding, (N, T) to (N,)."""
    is_real = g.op("Not", g.op("Equal", ids, g.integer(0)))
    return g.reduce("ReduceSum", g.cast(is_real, "int64"), 1)


def state_layer(g: GraphBuilder, p: Parameters, name: str) -> Affine:
    """Return the layer by which the last state enters the gates of a GRU or an LSTM."""
    return g.once(
        f"{name}.state_layer",
        lambda root: Affine.of(root, *_kernel_and_bias(root, p, name, "hh")),
    )


def _kernel_and_bias(g: GraphBuilder, p: Parameters, name: str, part: str) -> tuple[Value, Value]:
    kernel = g.weight(f"{name}.kernel_{part}", p[f"{name}.weight_{part}_l0"].T)
    return kernel, g.weight(f"{name}.bias_{part}", p[f"{name}.bias_{part}_l0"])


def _zrh(rows: FloatArray) -> FloatArray:
    """Reorder gates from torch's r, z, n to ONNX's z, r, h."""
    r, z, n = np.split(rows, 3)
    return np.concatenate([z, r, n])
