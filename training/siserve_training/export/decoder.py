"""Emitter of the decoder: a chunk of K steps that starts, samples or scores, and ends rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from siserve.bundle.manifest import Tokens
from siserve.bundle.tensors import DECODER, Tensor

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.recurrent import gru_step
from siserve_training.export.sampling import Blocks, choose_token, read_options
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["FirstState", "Step", "decoder_graph", "word_step"]

#: (graph, c, z) to the state before ``<s>``, (R, H).
FirstState = Callable[[GraphBuilder, Value, Value], Value]
#: (body, last token (R,), state (R, H)) to (features of the output layer, state), both (R, H).
Step = Callable[[GraphBuilder, Value, Value], tuple[Value, Value]]

#: Logit of places that fill up the last block; exp() of it is 0, and float16 could hold it.
_NO_WORD = -60000.0
#: Added to the logits of words that must not be chosen.
_FORBIDDEN = -1e30


def decoder_graph(
    weights: WeightStore,
    p: Parameters,
    tokens: Tokens,
    sizes: dict[str, int],
    first_state: FirstState,
    step: Step,
) -> onnx.ModelProto:
    """Emit decoder.onnx.

    Args:
        weights: the store that all graphs of a bundle share.
        p: the model's weights; decoder.out is the output layer.
        tokens: ids of the special tokens.
        sizes: sizes of the model by axis name.
        first_state: how a row starts.
        step: what one token does to the state.
    """
    g = GraphBuilder(weights)
    given = {tensor.name: Value(tensor.name) for tensor in DECODER.inputs}
    output = _OutputLayer(g, p, tokens)
    is_free = g.op(
        "Less", g.op("ReduceMin", given["forced"], g.integers(0), keepdims=0), g.integer(0)
    )
    options = read_options(g, given["temperature"], given["top_k"], given["top_p"], is_free)

    first = _first_states(g, tokens, given, first_state)

    def one_step(b: GraphBuilder, index: Value, token: Value, state: Value) -> Sequence[Value]:
        uniform = b.op("Gather", given["uniform"], index)  # (R,)
        forced = b.op("Gather", given["forced"], index)
        is_start = b.op("Equal", token, b.integer(tokens.start))
        current = b.op("Where", b.unsqueeze(is_start, 1), first, state)
        features, following = step(b, token, current)
        logits = output.logits(b, features)  # (R, words)
        mask = output.mask(b, is_start)  # (R, words) or (1, words)
        chosen = choose_token(b, logits, mask, uniform, options, output.blocks)
        chosen = b.op("Where", b.op("Less", forced, b.integer(0)), chosen, forced)
        log_prob = output.log_prob(b, logits, chosen)
        has_ended = b.op("Equal", token, b.integer(tokens.end))
        log_prob = b.op("Where", has_ended, b.real(0.0), log_prob)
        chosen = b.op("Where", has_ended, b.integer(tokens.end), chosen)
        following = b.op("Where", b.unsqueeze(has_ended, 1), current, following)
        return chosen, following, chosen, log_prob

    num_steps = g.op("Squeeze", g.op("Shape", given["uniform"], start=0, end=1))
    carried = [
        (Tensor("token", "int64", ("R",)), given["token"]),
        (Tensor("state", "float32", ("R", "H")), given["state"]),
    ]
    scanned = [Tensor("chosen", "int64", ("R",)), Tensor("log_prob", "float32", ("R",))]
    _, state, chosen, log_probs = g.loop(num_steps, carried, scanned, one_step, sizes)
    outputs = {"tokens": chosen, "log_probs": log_probs, "state_out": state}
    return g.build(DECODER, outputs, sizes)


def word_step(p: Parameters) -> Step:
    """Return the step of a decoder whose GRU is told the last word and nothing else."""

    def step(b: GraphBuilder, token: Value, state: Value) -> tuple[Value, Value]:
        embedded = b.rows_of("embedding.weight", p["embedding.weight"], token)  # (R, W)
        state = gru_step(b, p, "decoder.gru", embedded, state)
        return state, state

    return step


def _first_states(
    g: GraphBuilder, tokens: Tokens, given: dict[str, Value], first_state: FirstState
) -> Value:
    """Compute the states before ``<s>`` if any row starts in this chunk, else nothing of use.

    Not inside the loop: onnxruntime packs weights for a branch of the graph, not for a branch in a
    loop's body, and products with weights that are not packed depend on the number of rows.
    """
    start = g.integer(tokens.start)
    last_tokens = g.op("Concat", g.unsqueeze(given["token"], 0), given["forced"], axis=0)
    is_start = g.reshape(g.op("Equal", last_tokens, start), -1)
    return g.when(
        g.any(is_start),
        lambda branch: first_state(branch, given["c"], given["z"]),
        lambda branch: given["state"],
        "float32",
    )


class _OutputLayer:
    """The output layer, filled up to whole blocks when the graph is loaded, and its masks."""

    def __init__(self, g: GraphBuilder, p: Parameters, tokens: Tokens) -> None:
        vocabulary = p.shape("decoder.out.bias")[0]
        self.blocks = Blocks.of(vocabulary)
        missing = self.blocks.words - vocabulary
        kernel = g.weight("decoder.out.kernel", p["decoder.out.weight"].T)
        bias = g.weight("decoder.out.bias", p["decoder.out.bias"])
        self._kernel = g.op("Pad", kernel, g.integers(0, 0, 0, missing), g.real(0.0))  # (H, words)
        self._bias = g.op("Pad", bias, g.integers(0, missing), g.real(_NO_WORD))  # (words,)
        allowed = g.op("Expand", g.real(0.0), g.integers(vocabulary))
        allowed = g.op("Pad", allowed, g.integers(0, missing), g.real(_FORBIDDEN))
        forbidden = sorted({tokens.pad, tokens.unk, tokens.start, tokens.dialog_start})
        self._later = self._forbid(g, allowed, *forbidden)  # (words,)
        self._first = self._forbid(g, self._later, tokens.end)

    def logits(self, b: GraphBuilder, features: Value) -> Value:
        """Emit logits of all places, (R, H) to (R, words)."""
        return b.op("Add", b.op("MatMul", features, self._kernel), self._bias)

    def log_prob(self, b: GraphBuilder, logits: Value, token: Value) -> Value:
        """Emit the log-softmax of one word a row, (R,): of its block, plus of it in the block.

        Over all words at once, onnxruntime adds 10,000 small numbers to one that may be near 1,
        and loses 1e-5.
        """
        rectangle = b.reshape(logits, 0, self.blocks.count, self.blocks.size)
        of_words = b.op("LogSoftmax", rectangle, axis=2)  # (R, count, size)
        largest, of_largest = (b.reduce("ReduceMax", v, 2) for v in (rectangle, of_words))
        of_blocks = b.op("LogSoftmax", b.op("Sub", largest, of_largest), axis=1)  # (R, count)
        place = b.unsqueeze(token, 1)  # (R, 1)
        block = b.op("Div", place, b.integer(self.blocks.size))
        in_block = b.op("GatherElements", b.reshape(of_words, 0, -1), place, axis=1)
        log_prob = b.op("Add", in_block, b.op("GatherElements", of_blocks, block, axis=1))
        return b.op("Squeeze", log_prob, b.integers(1))

    def mask(self, b: GraphBuilder, is_start: Value) -> Value:
        """Emit what is added to the logits before a choice: no ``</s>`` after ``<s>``."""
        return b.when(
            b.any(is_start),
            lambda branch: branch.op(
                "Where", branch.unsqueeze(is_start, 1), self._first, self._later
            ),
            lambda branch: branch.unsqueeze(self._later, 0),
            "float32",
        )

    @staticmethod
    def _forbid(g: GraphBuilder, mask: Value, *ids: int) -> Value:
        values = g.op("Expand", g.real(_FORBIDDEN), g.integers(len(ids)))
        return g.op("ScatterElements", mask, g.integers(*ids), values, axis=0)
