"""What a decoder is to the emitters of its graphs: how a row starts, and what one token does."""

from __future__ import annotations

from collections.abc import Callable

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.recurrent import gates_of_word, gru_step
from siserve_training.export.weights import Parameters

__all__ = ["FirstState", "Step", "word_step"]

#: (graph, c, z) to the state before ``<s>``, (R, H).
FirstState = Callable[[GraphBuilder, Value, Value], Value]
#: (body, last token (R,), state (R, H)) to (features of the output layer, state), both (R, H).
Step = Callable[[GraphBuilder, Value, Value], tuple[Value, Value]]


def word_step(p: Parameters) -> Step:
    """Return the step of a decoder whose GRU is told the last word and nothing else."""

    def step(b: GraphBuilder, token: Value, state: Value) -> tuple[Value, Value]:
        gates = gates_of_word(b, p, "decoder.gru", token)
        state = gru_step(b, p, "decoder.gru", gates, state, is_bounded=False)
        return state, state

    return step
