"""Emitters of LSTMs. ONNX orders gates i, o, f, g; torch orders them i, f, g, o."""

from __future__ import annotations

import numpy as np

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.products import Rows
from siserve_training.export.recurrent import gates_of, state_layer
from siserve_training.export.weights import FloatArray, Parameters

__all__ = ["lstm_last_state", "lstm_step"]


def lstm_last_state(
    g: GraphBuilder, p: Parameters, name: str, steps: Value, lengths: Value
) -> Value:
    """Run an LSTM over ragged rows and return its state after each row's last step.

    Args:
        g: the graph.
        p: the model's weights; `name` is the path of an nn.LSTM of one layer.
        name: path of the LSTM.
        steps: inputs, time first, (T, N, F).
        lengths: steps of each row, at least 1, (N,).

    Returns:
        (N, H).
    """
    bias = np.concatenate([_iofg(p[f"{name}.bias_{part}_l0"]) for part in ("ih", "hh")])
    _, state = g.ops(
        "LSTM",
        2,
        steps,
        g.weight(f"{name}.W", _iofg(p[f"{name}.weight_ih_l0"])[None]),
        g.weight(f"{name}.R", _iofg(p[f"{name}.weight_hh_l0"])[None]),
        g.weight(f"{name}.B", bias[None]),
        g.cast(lengths, "int32"),
        hidden_size=p.shape(f"{name}.weight_hh_l0")[1],
    )  # (1, N, H)
    return g.op("Squeeze", state, g.integers(0))


def lstm_step(
    g: GraphBuilder, p: Parameters, name: str, x: Value, state: Value, cell: Value
) -> tuple[Value, Value]:
    """Take one step of an LSTM, inputs (R, F), state and cell (R, H) each, to state and cell."""
    hidden = p.shape(f"{name}.weight_hh_l0")[1]
    from_state = state_layer(g, p, name).apply(g, Rows.of(g, state, is_bounded=True))
    sums = g.op("Add", gates_of(g, p, name, x), from_state)  # (R, 4H)
    i, f, candidate, o = g.ops("Split", 4, sums, g.integers(*(4 * [hidden])), axis=1)
    kept = g.op("Mul", g.op("Sigmoid", f), cell)
    cell = g.op("Add", kept, g.op("Mul", g.op("Sigmoid", i), g.op("Tanh", candidate)))
    return g.op("Mul", g.op("Sigmoid", o), g.op("Tanh", cell)), cell


def _iofg(rows: FloatArray) -> FloatArray:
    i, f, candidate, o = np.split(rows, 4)
    return np.concatenate([i, o, f, candidate])
