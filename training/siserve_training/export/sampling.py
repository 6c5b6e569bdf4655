"""Emitter of the choice of a token: two-level inverse CDF with one uniform a row, or the likeliest.

Block sums of the probabilities, a prefix sum over the blocks, then a prefix sum inside the chosen
block: about two hundred additions in sequence instead of ten thousand. What only some requests ask
for (greedy rows, top-k, top-p) runs in a branch that is skipped when no row asks, and a branch
gives tokens, never a matrix, which it would copy. No branch mixes rows, so a row's token never
depends on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from siserve_training.export.graph import Branch, GraphBuilder, Value

__all__ = [
    "BELOW_ONE",
    "FORBIDDEN",
    "Blocks",
    "Options",
    "choose_token",
    "read_options",
    "read_temperature",
]

#: Largest uniform that is used; keeps u * total strictly below the total in float32.
BELOW_ONE = 1.0 - 2.0**-20
#: Logit of a word that must not be chosen, and of places that fill up the last block.
FORBIDDEN = -1e30
#: Words that are sorted first; a nucleus is seldom larger.
_FIRST_SORT = 2048
_MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Blocks:
    """The vocabulary as a rectangle: `count` blocks of `size` words, the last one filled up."""

    count: int
    size: int

    @classmethod
    def of(cls, vocabulary: int) -> Blocks:
        """Choose about as many blocks as words a block, which are a multiple of 16."""
        size = 16 * max(1, round(math.sqrt(vocabulary) / 16))
        return cls(-(-vocabulary // size), size)

    @property
    def words(self) -> int:
        """Number of places, at least the vocabulary."""
        return self.count * self.size


@dataclass(frozen=True)
class Options:
    """What the rows ask for.

    Attributes:
        inverse_temperature: 1 where greedy, (R, 1).
        is_greedy: (R,).
        top_k: 0 = off, (R, 1).
        top_p: 1 = off, (R, 1).
        any_drawn: whether any row that is not forced throughout is to be drawn, ().
        any_greedy: the same for the likeliest token, ().
        any_truncated: whether any row asks for top-k or top-p, ().
        only_drawn: whether every token is drawn from all words, the usual case, ().
        no_token: 0 for each row, (R,).
    """

    inverse_temperature: Value
    is_greedy: Value
    top_k: Value
    top_p: Value
    any_drawn: Value
    any_greedy: Value
    any_truncated: Value
    only_drawn: Value
    no_token: Value


def read_options(
    g: GraphBuilder, temperature: Value, top_k: Value, top_p: Value, forced: Value
) -> Options:
    """Work out once for all steps what the rows ask for.

    Args:
        g: the graph.
        temperature: 0 = the likeliest token, (R,).
        top_k: 0 = off, (R,).
        top_p: 1 = off, (R,).
        forced: the token of a step, -1 for none, (K, R).
    """
    is_greedy, inverse = read_temperature(g, temperature)
    asks_k = g.op("Greater", top_k, g.integer(0))
    asks_p = g.op("Less", top_p, g.real(1.0))
    is_free = g.op("Less", g.reduce("ReduceMin", forced, 0), g.integer(0))
    is_never_forced = g.op("Less", g.reduce("ReduceMax", forced, 0), g.integer(0))
    asks_more = g.op("Or", is_greedy, g.op("Or", asks_k, asks_p))
    asks_more = g.op("Or", asks_more, g.op("Not", is_never_forced))
    return Options(
        inverse_temperature=g.unsqueeze(inverse, 1),
        is_greedy=is_greedy,
        top_k=g.unsqueeze(top_k, 1),
        top_p=g.unsqueeze(top_p, 1),
        any_drawn=g.any(g.op("And", is_free, g.op("Not", is_greedy))),
        any_greedy=g.any(g.op("And", is_free, is_greedy)),
        any_truncated=g.any(g.op("Or", asks_k, asks_p)),
        only_drawn=g.op("Not", g.any(asks_more)),
        no_token=g.op("Mul", top_k, g.integer(0)),
    )


def choose_token(
    g: GraphBuilder,
    logits: Value,
    barred: Value,
    is_barred: Value,
    uniform: Value,
    options: Options,
    blocks: Blocks,
) -> Value:
    """Emit the choice of a token for each row, (R,) int64.

    Args:
        g: the graph.
        logits: (R, words); very negative where a word may not be chosen.
        barred: added to the logits of rows that may not end yet, (words,).
        is_barred: which rows those are, (R,).
        uniform: in [0, 1), (R,).
        options: what the rows ask for.
        blocks: the vocabulary as a rectangle.
    """

    def among(b: GraphBuilder, choose: Callable[[GraphBuilder, Value], Value]) -> Value:
        """Choose among the words that each row may say, without a matrix that leaves a branch."""

        def all_words(branch: GraphBuilder) -> Value:
            return choose(branch, branch.op("Mul", logits, options.inverse_temperature))

        def fewer_words(branch: GraphBuilder) -> Value:
            scaled = branch.op("Mul", logits, options.inverse_temperature)
            fewer = branch.op("Add", scaled, barred)
            return choose(branch, branch.op("Where", branch.unsqueeze(is_barred, 1), fewer, scaled))

        return b.when(b.any(is_barred), fewer_words, all_words, "int64")

    def draw(b: GraphBuilder, scaled: Value) -> Value:
        probabilities = b.op("Softmax", scaled, axis=1)  # (R, words)
        return _invert_blocks(b, probabilities, b.unsqueeze(uniform, 1), blocks)

    def of_any_kind(b: GraphBuilder, scaled: Value) -> Value:
        drawn = b.when(
            options.any_drawn,
            lambda branch: _draw_or_truncate(branch, scaled, uniform, options, blocks),
            _nothing(options),
            "int64",
        )
        likeliest = b.when(
            options.any_greedy,
            lambda branch: branch.op("ArgMax", scaled, axis=1, keepdims=0),
            _nothing(options),
            "int64",
        )
        return b.op("Where", options.is_greedy, likeliest, drawn)

    def otherwise(b: GraphBuilder) -> Value:
        any_chosen = b.op("Or", options.any_drawn, options.any_greedy)
        return b.when(
            any_chosen, lambda branch: among(branch, of_any_kind), _nothing(options), "int64"
        )

    return g.when(options.only_drawn, lambda b: among(b, draw), otherwise, "int64")


def read_temperature(g: GraphBuilder, temperature: Value) -> tuple[Value, Value]:
    """Say which rows are greedy, and by what logits are multiplied, 1 for those; both as given."""
    is_greedy = g.op("LessOrEqual", temperature, g.real(0.0))
    inverse = g.op("Reciprocal", g.op("Max", temperature, g.real(_MIN_TEMPERATURE)))
    return is_greedy, g.op("Where", is_greedy, g.real(1.0), inverse)


def _nothing(options: Options) -> Branch:
    return lambda branch: branch.op("Identity", options.no_token)


def _draw_or_truncate(
    g: GraphBuilder, scaled: Value, uniform: Value, options: Options, blocks: Blocks
) -> Value:
    probabilities = g.op("Softmax", scaled, axis=1)  # (R, words)
    u = g.unsqueeze(uniform, 1)  # (R, 1)
    return g.when(
        options.any_truncated,
        lambda b: _invert_blocks(b, _truncate(b, probabilities, options, blocks.words), u, blocks),
        lambda b: _invert_blocks(b, probabilities, u, blocks),
        "int64",
    )


def _invert_blocks(g: GraphBuilder, masses: Value, u: Value, blocks: Blocks) -> Value:
    """Find the word whose prefix sum exceeds u times the total, (R,)."""
    rectangle = g.reshape(masses, 0, blocks.count, blocks.size)  # (R, count, size)
    sums = g.reduce("ReduceSum", rectangle, 2)  # (R, count)
    prefix, target, block = _invert(g, sums, u)
    end = g.op("GatherElements", prefix, block, axis=1)
    mass = g.op("GatherElements", sums, block, axis=1)
    reached = g.op("Div", g.op("Sub", target, g.op("Sub", end, mass)), mass)
    rest = g.op("Clip", reached, g.real(0.0), g.real(BELOW_ONE))  # how far into the block
    inside = g.op("GatherND", rectangle, block, batch_dims=1)  # (R, size)
    _, _, word = _invert(g, inside, rest)
    token = g.op("Add", g.op("Mul", block, g.integer(blocks.size)), word)  # (R, 1)
    return g.op("Squeeze", token, g.integers(1))


def _invert(g: GraphBuilder, masses: Value, u: Value) -> tuple[Value, Value, Value]:
    """Find the first place whose prefix sum exceeds u times the total.

    That place has positive mass, whatever the rounding: u times the total stays below the total,
    and a prefix sum grows only where there is mass.

    Returns:
        Prefix sums, (R, n), u times the total, (R, 1), and the place, (R, 1) int64.
    """
    prefix = g.op("CumSum", masses, g.integer(1))  # (R, n)
    total = g.op("Gather", prefix, g.integers(-1), axis=1)  # (R, 1)
    target = g.op("Mul", g.op("Min", u, g.real(BELOW_ONE)), total)
    is_passed = g.op("LessOrEqual", prefix, target)
    place = g.reduce("ReduceSum", g.cast(is_passed, "int64"), 1, keep=True)  # (R, 1)
    return prefix, target, place


def _truncate(g: GraphBuilder, probabilities: Value, options: Options, words: int) -> Value:
    """Keep the top_k likeliest words, then the fewest of them that hold top_p of their mass."""
    asks_k = g.op("Greater", options.top_k, g.integer(0))  # (R, 1)
    asks_p = g.op("Less", options.top_p, g.real(1.0))
    only_p = g.op("And", asks_p, g.op("Not", asks_k))
    first = g.op("Mul", g.cast(_any_row(g, only_p), "int64"), g.integer(_FIRST_SORT))
    largest_k = g.reduce("ReduceMax", options.top_k, 0)  # (1,)
    first = g.op("Min", g.op("Max", first, largest_k), g.integer(words))  # (1,)
    some, _ = g.ops("TopK", 2, probabilities, first, axis=1)
    mass = g.op("Gather", g.op("CumSum", some, g.integer(1)), g.integers(-1), axis=1)  # (R, 1)
    is_short = g.op("And", only_p, g.op("Less", mass, options.top_p))
    ordered = g.when(
        _any_row(g, is_short),
        lambda branch: branch.ops("TopK", 2, probabilities, branch.integers(words), axis=1)[0],
        lambda branch: some,
        "float32",
    )
    least = _least_kept(g, ordered, asks_k, options)  # (R, 1)
    asks = g.op("Or", asks_k, asks_p)
    least = g.op("Where", asks, least, g.real(0.0))
    is_kept = g.op("GreaterOrEqual", probabilities, least)
    return g.op("Where", is_kept, probabilities, g.real(0.0))


def _least_kept(g: GraphBuilder, ordered: Value, asks_k: Value, options: Options) -> Value:
    """Find the smallest probability that stays, given the probabilities from the largest on.

    The mass without top-k is 1, a softmax's; so the answer does not depend on how many
    probabilities were sorted for the sake of other rows.
    """
    width = g.op("Shape", ordered, start=1, end=2)
    ranks = g.op("Range", g.integer(0), g.op("Squeeze", width), g.integer(1))  # (n,)
    limit = g.op("Where", asks_k, options.top_k, width)  # (R, 1)
    within = g.op("Less", g.unsqueeze(ranks, 0), limit)  # (R, n)
    masses = g.op("Where", within, ordered, g.real(0.0))
    before = g.op("CumSum", masses, g.integer(1), exclusive=1)
    total = g.op("Gather", g.op("CumSum", masses, g.integer(1)), g.integers(-1), axis=1)  # (R, 1)
    total = g.op("Where", asks_k, total, g.real(1.0))
    is_nucleus = g.op("Less", before, g.op("Mul", options.top_p, total))
    kept = g.cast(g.op("And", within, is_nucleus), "int64")
    last = g.op("Sub", g.reduce("ReduceSum", kept, 1, keep=True), g.integer(1))
    return g.op("GatherElements", ordered, g.op("Max", last, g.integer(0)), axis=1)


def _any_row(g: GraphBuilder, flags: Value) -> Value:
    return g.any(g.op("Squeeze", flags, g.integers(1)))
