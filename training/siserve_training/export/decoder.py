"""Emitter of the decoder: a chunk of K steps that starts, samples or scores, and ends rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from siserve.bundle.manifest import Tokens
from siserve.bundle.tensors import (
    DECODER,
    DECODER_INT8,
    DECODER_UNROLLED,
    Graph,
    Tensor,
)

from siserve_training.export.dense import log_sum_exp
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.products import Affine, Rows
from siserve_training.export.sampling import FORBIDDEN, Blocks, choose_token, read_options
from siserve_training.export.steps import FirstState, Step
from siserve_training.export.unrolled import unrolled_decoder
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["decoder_graphs"]


def decoder_graphs(
    weights: WeightStore,
    p: Parameters,
    tokens: Tokens,
    sizes: dict[str, int],
    first_state: FirstState,
    step: Step,
    is_bounded: bool,
) -> dict[Graph, onnx.ModelProto]:
    """Emit decoder.onnx, decoder_int8.onnx with other products, and decoder_unrolled.onnx.

    Args:
        weights: the store that all graphs of a bundle share.
        p: the model's weights; decoder.out is the output layer.
        tokens: ids of the special tokens.
        sizes: sizes of the model by axis name.
        first_state: how a row starts.
        step: what one token does to the state.
        is_bounded: whether features of the output layer lie in [-1, 1] by construction.
    """
    decoder = _Decoder(p, tokens, sizes, first_state, step, is_bounded)
    return {
        DECODER: decoder.emit(GraphBuilder(weights), DECODER),
        DECODER_INT8: decoder.emit(GraphBuilder(weights, precision="int8"), DECODER_INT8),
        DECODER_UNROLLED: unrolled_decoder(
            GraphBuilder(weights), p, tokens, sizes, first_state, step
        ),
    }


@dataclass(frozen=True)
class _Now:
    """A step in the making: (R,), (R, H), (R, H), (R, H) and (R, words)."""

    is_start: Value
    current: Value
    features: Value
    following: Value
    logits: Value


class _Decoder:
    """Emits the decoder of one model in any precision."""

    def __init__(
        self,
        p: Parameters,
        tokens: Tokens,
        sizes: dict[str, int],
        first_state: FirstState,
        step: Step,
        is_bounded: bool,
    ) -> None:
        self._p = p
        self._tokens = tokens
        self._sizes = sizes
        self._first_state = first_state
        self._step = step
        self._is_bounded = is_bounded

    def emit(self, g: GraphBuilder, graph: Graph) -> onnx.ModelProto:
        """Emit a loop over any number of steps, for rows of every kind."""
        given = {tensor.name: Value(tensor.name) for tensor in graph.inputs}
        output = _OutputLayer(g, self._p, self._tokens, self._is_bounded)
        options = read_options(
            g, given["temperature"], given["top_k"], given["top_p"], given["forced"]
        )
        first = self._first_states(g, given)

        def one_step(b: GraphBuilder, index: Value, token: Value, state: Value) -> Sequence[Value]:
            uniform = b.op("Gather", given["uniform"], index)  # (R,)
            forced = b.op("Gather", given["forced"], index)
            now = self._enter(b, output, first, token, state)
            chosen = choose_token(
                b, now.logits, output.barred, now.is_start, uniform, options, output.blocks
            )
            chosen = b.op("Where", b.op("Less", forced, b.integer(0)), chosen, forced)
            chosen, log_prob, following = self._leave(b, output, now, token, chosen)
            return chosen, following, chosen, log_prob

        num_steps = g.op("Squeeze", g.op("Shape", given["uniform"], start=0, end=1))
        carried = [
            (Tensor("token", "int64", ("R",)), given["token"]),
            (Tensor("state", "float32", ("R", "H")), given["state"]),
        ]
        scanned = [Tensor("chosen", "int64", ("R",)), Tensor("log_prob", "float32", ("R",))]
        looped = g.loop(num_steps, carried, scanned, one_step, self._sizes)
        _, state, chosen, log_probs = looped
        outputs = {"tokens": chosen, "log_probs": log_probs, "state_out": state}
        return g.build(graph, outputs, self._sizes)

    def _enter(
        self, b: GraphBuilder, output: _OutputLayer, first: Value, token: Value, state: Value
    ) -> _Now:
        """Emit a step up to the logits of its words."""
        is_start = b.op("Equal", token, b.integer(self._tokens.start))
        current = b.op("Where", b.unsqueeze(is_start, 1), first, state)
        features, following = self._step(b, token, current)
        return _Now(is_start, current, features, following, output.logits(b, features))

    def _leave(
        self,
        b: GraphBuilder,
        output: _OutputLayer,
        now: _Now,
        token: Value,
        chosen: Value,
    ) -> tuple[Value, Value, Value]:
        """Emit what a step gives: the token, its log-probability and the state that follows.

        A row that had ended says ``</s>`` again, for nothing, and keeps its state.
        """
        has_ended = b.op("Equal", token, b.integer(self._tokens.end))
        log_prob = b.op("Where", has_ended, b.real(0.0), output.log_prob(b, now, chosen))
        chosen = b.op("Where", has_ended, b.integer(self._tokens.end), chosen)
        following = b.op("Where", b.unsqueeze(has_ended, 1), now.current, now.following)
        return chosen, log_prob, following

    def _first_states(self, g: GraphBuilder, given: dict[str, Value]) -> Value:
        """Compute the states before ``<s>`` if any row starts in this chunk, else nothing of use.

        Not inside the loop: onnxruntime packs weights for a branch of the graph, not for a branch
        in a loop's body, and products with weights that are not packed depend on the number of
        rows.
        """
        start = g.integer(self._tokens.start)
        last_tokens = g.op("Concat", g.unsqueeze(given["token"], 0), given["forced"], axis=0)
        is_start = g.reshape(g.op("Equal", last_tokens, start), -1)
        return g.when(
            g.any(is_start),
            lambda branch: self._first_state(branch, given["c"], given["z"]),
            lambda branch: given["state"],
            "float32",
        )


class _OutputLayer:
    """The output layer, filled up to whole blocks when the graph is loaded.

    Words that may never be chosen have a logit of -1e30 in it, so that no step has to mask them.
    What the model gives to them counts in log-probabilities all the same: a narrow layer of float32
    has their logits.

    Attributes:
        blocks: the vocabulary as a rectangle.
        barred: what bars ``</s>`` when added to the logits, (words,).
    """

    def __init__(self, g: GraphBuilder, p: Parameters, tokens: Tokens, is_bounded: bool) -> None:
        vocabulary = p.shape("decoder.out.bias")[0]
        self.blocks = Blocks.of(vocabulary)
        self._is_bounded = is_bounded
        missing = self.blocks.words - vocabulary
        kernel = g.weight("decoder.out.kernel", p["decoder.out.weight"].T)  # (H, V)
        bias = g.weight("decoder.out.bias", p["decoder.out.bias"])  # (V,)
        forbidden = sorted({tokens.pad, tokens.unk, tokens.start, tokens.dialog_start})
        ids = g.integers(*forbidden)  # (F,)
        self._end = g.integers(tokens.end)
        self._forbidden_row = g.unsqueeze(ids, 0)  # (1, F)
        self._narrow_kernel = g.op("Gather", kernel, ids, axis=1)  # (H, F)
        self._narrow_bias = g.op("Gather", bias, ids)  # (F,)
        full_bias = g.op("Pad", bias, g.integers(0, missing), g.real(FORBIDDEN))
        full_kernel = g.op("Pad", kernel, g.integers(0, 0, 0, missing), g.real(0.0))
        self._layer = Affine.of(g, full_kernel, _forbid(g, full_bias, *forbidden))
        nothing = g.op("Expand", g.real(0.0), g.integers(self.blocks.words))
        self.barred = _forbid(g, nothing, tokens.end)

    def logits(self, b: GraphBuilder, features: Value) -> Value:
        """Emit the logits of all places, (R, H) to (R, words)."""
        return self._layer.apply(b, Rows.of(b, features, self._is_bounded))

    def log_prob(self, b: GraphBuilder, now: _Now, token: Value) -> Value:
        """Emit the log-softmax of one word a row, which may be a forbidden one, (R,)."""
        place = b.unsqueeze(token, 1)  # (R, 1)
        narrow = b.op("Add", b.op("MatMul", now.features, self._narrow_kernel), self._narrow_bias)
        usual = b.op("GatherElements", now.logits, place, axis=1)  # (R, 1)
        is_it = b.op("Equal", place, self._forbidden_row)  # (R, F)
        own = b.op("Where", is_it, narrow, b.real(FORBIDDEN))
        logit = b.reduce("ReduceMax", b.op("Concat", usual, own, axis=1), 1)  # (R,)
        sums = self._rough_sum if b.precision == "int8" else self._exact_sums
        total = log_sum_exp(b, b.op("Concat", sums(b, now.logits), narrow, axis=1))
        return b.op("Sub", logit, total)

    def _exact_sums(self, b: GraphBuilder, logits: Value) -> Value:
        """Emit the log of the sum of exp over each block, (R, count).

        Over all words at once, onnxruntime adds 10,000 small numbers to one that may be near 1,
        and loses 1e-5.
        """
        rectangle = b.reshape(logits, 0, self.blocks.count, self.blocks.size)
        log_softmax = b.op("LogSoftmax", rectangle, axis=2)  # (R, count, size)
        largest, of_largest = (b.reduce("ReduceMax", v, 2) for v in (rectangle, log_softmax))
        return b.op("Sub", largest, of_largest)

    def _rough_sum(self, b: GraphBuilder, logits: Value) -> Value:
        """Emit the log of the sum of exp over all words, (R, 1): 1e-5 is nothing beside 8 bits.

        The log-softmax of a word, here ``</s>``, is its logit minus that.
        """
        log_softmax = b.op("LogSoftmax", logits, axis=1)  # (R, words)
        logit, of_end = (b.op("Gather", v, self._end, axis=1) for v in (logits, log_softmax))
        return b.op("Sub", logit, of_end)


def _forbid(g: GraphBuilder, logits: Value, *ids: int) -> Value:
    values = g.op("Expand", g.real(FORBIDDEN), g.integers(len(ids)))
    return g.op("ScatterElements", logits, g.integers(*ids), values, axis=0)
