"""Emitter of the decoder for devices that replay a recording: no loop, no branch, few kernels.

Replayed, a kernel over a few rows takes about two microseconds whatever it does, and one over
thousands of rows what it moves. So here, unlike in `sampling`, whatever can be is done once for all
steps or left out: words that may never be chosen have a block of their own behind the others, so
that one log-softmax serves the log-probability and the draw; a greedy row is one whose logits are
stretched until a single word holds all mass; the bias is one more row of the matrix; `<s>`, which
may come before the first step alone, is looked for there alone; and rows go on after their end,
until what they said then is wiped out.
"""

from __future__ import annotations

import onnx
from siserve.bundle.manifest import Tokens
from siserve.bundle.tensors import DECODER_UNROLLED, UNROLLED_STEPS

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.sampling import BELOW_ONE, FORBIDDEN, Blocks, read_temperature
from siserve_training.export.steps import FirstState, Step
from siserve_training.export.weights import Parameters

__all__ = ["unrolled_decoder"]

#: Logits of a greedy row are multiplied by it: two that differ in their last bit are then further
#: apart than float32's exponents reach.
_GREEDY = 2.0**30
#: Columns that the bias takes beside the features, all but one of them zeros: products on tensor
#: cores want rows of a multiple of 16 bytes.
_ALIGNED = 8


def unrolled_decoder(
    g: GraphBuilder,
    p: Parameters,
    tokens: Tokens,
    sizes: dict[str, int],
    first_state: FirstState,
    step: Step,
) -> onnx.ModelProto:
    """Emit UNROLLED_STEPS steps one after the other, for rows that are drawn or greedy.

    A row that has ended says the end mark again, for nothing; its state is of no use.

    Args:
        g: the graph, empty.
        p: the model's weights; decoder.out is the output layer.
        tokens: ids of the special tokens.
        sizes: sizes of the model by axis name.
        first_state: how a row starts.
        step: what one token does to the state.
    """
    given = {tensor.name: Value(tensor.name) for tensor in DECODER_UNROLLED.inputs}
    choice = _Choice(g, p, tokens, given["temperature"], given["uniform"])
    token, state = given["token"], given["state"]
    is_start = g.unsqueeze(g.op("Equal", token, g.integer(tokens.start)), 1)  # (R, 1)
    state = g.op("Where", is_start, first_state(g, given["c"], given["z"]), state)
    words, log_probs = [], []
    for number in range(UNROLLED_STEPS):
        features, state = step(g, token, state)
        token, log_prob = choice.make(features, number, is_start if number == 0 else None)
        words.append(g.unsqueeze(token, 0))
        log_probs.append(g.unsqueeze(log_prob, 0))
    said = g.op("Concat", g.unsqueeze(given["token"], 0), *words, axis=0)  # (K + 1, R)
    outputs = _until_the_end(g, said, g.op("Concat", *log_probs, axis=0), tokens.end)
    return g.build(DECODER_UNROLLED, {**outputs, "state_out": state}, sizes)


def _until_the_end(g: GraphBuilder, said: Value, log_probs: Value, end: int) -> dict[str, Value]:
    """Replace what rows say after their end by the end, which costs nothing.

    Args:
        g: the graph.
        said: the last token and those of all steps, (K + 1, R).
        log_probs: of those of all steps, (K, R).
        end: id of the end mark.
    """
    is_end = g.cast(g.op("Equal", said, g.integer(end)), "float32")
    ends = g.op("CumSum", is_end, g.integer(0))  # how many so far
    kept = g.integers(UNROLLED_STEPS, 1)
    before, _ = g.ops("Split", 2, ends, kept, axis=0)
    _, words = g.ops("Split", 2, said, g.integers(1, UNROLLED_STEPS), axis=0)
    has_ended = g.op("Greater", before, g.real(0.0))  # (K, R)
    return {
        "tokens": g.op("Where", has_ended, g.integer(end), words),
        "log_probs": g.op("Where", has_ended, g.real(0.0), log_probs),
    }


class _Choice:
    """The output layer and the choice of a word from it.

    Its W = (count + 1) * size places are the vocabulary in blocks, in which words that may never be
    chosen have no mass, and one block more with what the model gives to those.
    """

    def __init__(
        self, g: GraphBuilder, p: Parameters, tokens: Tokens, temperature: Value, uniform: Value
    ) -> None:
        self._g = g
        self._blocks = Blocks.of(p.shape("decoder.out.bias")[0])
        forbidden = sorted({tokens.pad, tokens.unk, tokens.start, tokens.dialog_start})
        self._kernel = self._with_bias(p, forbidden)
        column = g.unsqueeze(temperature, 1)  # (R, 1)
        self._ones = g.op("Add", g.op("Mul", column, g.real(0.0)), self._unit())  # (R, ALIGNED)
        is_greedy, inverse = read_temperature(g, column)
        self._inverse = g.op("Where", is_greedy, g.real(_GREEDY), inverse)  # (R, 1)
        by_row = g.op("Min", g.op("Transpose", uniform, perm=[1, 0]), g.real(BELOW_ONE))  # (R, K)
        ones = g.integers(*(UNROLLED_STEPS * [1]))
        drawn_by = g.op("Where", is_greedy, g.real(0.0), by_row)
        self._uniforms = g.ops("Split", UNROLLED_STEPS, drawn_by, ones, axis=1)  # (R, 1) each
        words, behind = self._row(0.0, self._blocks.words), self._row(FORBIDDEN, self._blocks.size)
        self._hidden = g.op("Concat", words, behind, axis=1)  # (1, W)
        self._no_end = self._lowered(self._hidden, [tokens.end])

    def make(self, features: Value, step: int, is_start: Value | None) -> tuple[Value, Value]:
        """Emit a step's choice.

        Args:
            features: of the output layer, (R, H).
            step: its number.
            is_start: rows that may not end yet, (R, 1); None where there can be none.

        Returns:
            The token, (R,) int64, and its log-probability under the model at temperature 1, (R,).
        """
        g = self._g
        logits = g.op("MatMul", g.op("Concat", features, self._ones, axis=1), self._kernel)
        log_p = g.op("LogSoftmax", logits, axis=1)  # (R, W)
        mask = self._hidden
        if is_start is not None:
            mask = g.op("Where", is_start, self._no_end, mask)
        stretched = g.op("Mul", g.op("Add", log_p, mask), self._inverse)
        place = self._draw(g.op("Softmax", stretched, axis=1), self._uniforms[step])  # (R, 1)
        log_prob = g.op("GatherElements", log_p, place, axis=1)
        token, log_prob = (g.op("Squeeze", value, g.integers(1)) for value in (place, log_prob))
        return token, log_prob

    def _draw(self, masses: Value, u: Value) -> Value:
        """Find the place whose prefix sum exceeds u times the total, (R, W) and (R, 1) to (R, 1).

        First the block, then the word in it, which has positive mass whatever the rounding: what
        is left for it is at least 0 and below the block's own total.
        """
        g, blocks = self._g, self._blocks
        rectangle = g.reshape(masses, 0, blocks.count + 1, blocks.size)
        sums = g.reduce("ReduceSum", rectangle, 2)  # (R, count + 1)
        prefix, total = self._prefix(sums)
        target = g.op("Mul", u, total)
        is_before, block = self._passed(prefix, target)
        before = g.reduce("ReduceSum", g.op("Mul", is_before, sums), 1, keep=True)
        inside = g.op("GatherND", rectangle, block, batch_dims=1)  # (R, size)
        prefix, total = self._prefix(inside)
        left = g.op("Relu", g.op("Sub", target, before))
        left = g.op("Min", left, g.op("Mul", total, g.real(BELOW_ONE)))
        _, word = self._passed(prefix, left)
        return g.op("Add", g.op("Mul", block, g.integer(blocks.size)), word)

    def _prefix(self, masses: Value) -> tuple[Value, Value]:
        """Emit prefix sums, (R, n), and the last of them, (R, 1)."""
        prefix = self._g.op("CumSum", masses, self._g.integer(1))
        return prefix, self._g.op("Gather", prefix, self._g.integers(-1), axis=1)

    def _passed(self, prefix: Value, target: Value) -> tuple[Value, Value]:
        """Tell which prefix sums do not exceed a target, (R, n), and how many, (R, 1) int64.

        Counted in float32: onnxruntime's sums of integers on CUDA take several kernels.
        """
        g = self._g
        is_passed = g.cast(g.op("LessOrEqual", prefix, target), "float32")
        return is_passed, g.cast(g.reduce("ReduceSum", is_passed, 1, keep=True), "int64")

    def _with_bias(self, p: Parameters, forbidden: list[int]) -> Value:
        """Lay the output layer out over all places, its bias as a row below, (H + ALIGNED, W)."""
        g, blocks = self._g, self._blocks
        spare = blocks.words - p.shape("decoder.out.bias")[0]
        kernel = g.weight("decoder.out.kernel", p["decoder.out.weight"].T)  # (H, V)
        bias = g.unsqueeze(g.weight("decoder.out.bias", p["decoder.out.bias"]), 0)  # (1, V)
        ids = g.integers(*forbidden)

        def placed(part: Value, open_part: Value, filling: float) -> Value:
            own = g.op("Gather", part, ids, axis=1)  # (., F)
            wide = g.op("Pad", open_part, g.integers(0, 0, 0, spare), g.real(filling))
            behind = g.integers(0, 0, 0, blocks.size - len(forbidden))
            return g.op("Concat", wide, g.op("Pad", own, behind, g.real(filling)), axis=1)

        whole_bias = placed(bias, self._lowered(bias, forbidden), FORBIDDEN)  # (1, W)
        filled = g.op("Pad", whole_bias, g.integers(0, 0, _ALIGNED - 1, 0), g.real(0.0))
        return g.op("Concat", placed(kernel, kernel, 0.0), filled, axis=0)

    def _unit(self) -> Value:
        """Emit what meets the bias, 1 and zeros, (1, ALIGNED)."""
        return self._g.op("Concat", self._row(1.0, 1), self._row(0.0, _ALIGNED - 1), axis=1)

    def _row(self, value: float, width: int) -> Value:
        return self._g.op("Expand", self._g.real(value), self._g.integers(1, width))

    def _lowered(self, row: Value, ids: list[int]) -> Value:
        """Put FORBIDDEN into places of a row, (1, n)."""
        g = self._g
        places, lowest = g.unsqueeze(g.integers(*ids), 0), self._row(FORBIDDEN, len(ids))
        return g.op("ScatterElements", row, places, lowest, axis=1)
